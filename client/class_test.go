package client_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// WantClass notes which classes were asked for; their groups come with a map
// that a test makes.
func (n *node) WantClass(_ context.Context, in *wire.WantClassRequest) (*wire.WantClassReply, error) {
	if err := n.leads(dfs.ControlGroup); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return &wire.WantClassReply{}, n.lostLocked("want class " + in.Class)
}

// SetClass changes the map at once, as the control group does.
func (n *node) SetClass(_ context.Context, in *wire.SetClassRequest) (*wire.SetClassReply, error) {
	if err := n.leads(dfs.ControlGroup); err != nil {
		return nil, err
	}
	set, err := in.Setting.ToDFS()
	if err != nil {
		return nil, err
	}
	n.publish(func(m *dfs.Map) { m.Settings = []dfs.ClassSetting{set} })
	return &wire.SetClassReply{}, nil
}

// TestCompressionOfAClass: what is set holds for new blocks of the class and of no
// other, old ones are read as they are, and a codec that is not known is as good as
// none set.
func TestCompressionOfAClass(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		text := bytes.Repeat([]byte("a line that shrinks well\n"), 20000)
		want := map[string]dfs.Codec{}
		write := func(name string, codec dfs.Codec) {
			t.Helper()
			put(t, c, name, text)
			want[name] = codec
		}
		write("/first", dfs.CodecS2)
		for _, codec := range []dfs.Codec{dfs.CodecZstd, dfs.CodecNone, dfs.CodecS2} {
			noErr(t, c.SetCompression(ctx, dfs.Replicated(3), codec))
			_, err := c.Refresh(ctx)
			noErr(t, err)
			write("/"+codec.String(), codec)
		}
		noErr(t, c.SetCompression(ctx, dfs.Replicated(2), dfs.CodecZstd))
		_, err := c.Refresh(ctx)
		noErr(t, err)
		write("/other class", dfs.CodecS2)
		w.meta.publish(func(m *dfs.Map) { m.Settings = []dfs.ClassSetting{{Class: dfs.Replicated(3), Codec: 77}} })
		_, err = c.Refresh(ctx)
		noErr(t, err)
		write("/later release", dfs.CodecS2)
		for name, codec := range want {
			wantContent(t, c, name, text)
			a, err := c.Stat(ctx, name)
			noErr(t, err)
			blocks := 0
			for x, err := range c.Inode(a.Ino).Extents(ctx) {
				noErr(t, err)
				info, err := c.Describe(ctx, x)
				noErr(t, err)
				blocks++
				if info.Codec != codec || (codec != dfs.CodecNone) != (info.StoredLen() < int(info.Length)/10) {
					t.Errorf("%s: %v, %d of %d bytes, want %v", name, info.Codec, info.StoredLen(), info.Length, codec)
				}
			}
			if blocks == 0 {
				t.Errorf("%s has no blocks", name)
			}
		}
	})
}

// TestBlockOfALaterRelease: a block of a codec that this release does not know is
// no damage, and no other copy is asked in vain.
func TestBlockOfALaterRelease(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		put(t, c, "/f", bytes.Repeat([]byte("from the future "), 1000))
		for _, s := range w.stores {
			for _, b := range s.blocks {
				b.desc.Codec = 3
			}
		}
		start := time.Now()
		f, err := c.Open(t.Context(), "/f")
		noErr(t, err)
		_, err = f.WriteTo(t.Context(), io.Discard)
		wantKind(t, err, dfs.Unsupported)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v to say so", took)
		}
	})
}
