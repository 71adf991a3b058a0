package wire_test

import (
	"bytes"
	"errors"
	"testing"

	"dfsd/dfs"
	"dfsd/transport/wire"
	"dfsd/transport/wire/codec"
)

func TestBlockFrame(t *testing.T) {
	big := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	for _, c := range []struct {
		name       string
		head, data []byte
		want       dfs.Kind
	}{
		{name: "empty"},
		{name: "head only", head: []byte("head")},
		{name: "data only", data: []byte("data")},
		{name: "long head", head: big(300), data: big(1)},
		{name: "largest", head: big(wire.MaxFrameHead), data: big(dfs.FrameSize)},
		{name: "head too large", head: big(wire.MaxFrameHead + 1), want: dfs.TooLarge},
		{name: "data too large", data: big(dfs.FrameSize + 1), want: dfs.TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			prefix := []byte("before")
			enc, err := codec.MarshalAppend(prefix, &wire.BlockFrame{Head: c.head, Data: c.data})
			if c.want != 0 {
				if !errors.Is(err, c.want) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				return
			}
			if err != nil || !bytes.HasPrefix(enc, prefix) {
				t.Fatalf("marshal: %v", err)
			}
			enc = enc[len(prefix):]
			if len(enc) > wire.MaxFrame {
				t.Errorf("%d bytes, over the limit of %d", len(enc), wire.MaxFrame)
			}
			var got wire.BlockFrame
			if err := codec.Unmarshal(enc, &got); err != nil {
				t.Fatal(err)
			}
			clear(enc) // the frame must own its bytes
			if !bytes.Equal(got.Head, c.head) || !bytes.Equal(got.Data, c.data) {
				t.Error("head or data changed on the way")
			}
		})
	}
}

// The caller's capacity is used: a frame that is reused costs no allocation.
func TestBlockFrameReusesItsBuffers(t *testing.T) {
	enc, err := codec.Marshal(&wire.BlockFrame{Head: []byte("head"), Data: make([]byte, dfs.FrameSize)})
	if err != nil {
		t.Fatal(err)
	}
	frame := &wire.BlockFrame{Head: make([]byte, 0, 64), Data: make([]byte, 0, dfs.FrameSize)}
	buf := make([]byte, 0, wire.MaxFrame)
	allocs := testing.AllocsPerRun(20, func() {
		if err := codec.Unmarshal(enc, frame); err != nil {
			t.Fatal(err)
		}
		if _, err := codec.MarshalAppend(buf, frame); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a frame, want none", allocs)
	}
}

func TestBlockFrameRefusesWhatIsCutShort(t *testing.T) {
	for _, src := range [][]byte{
		nil,
		{5, 'a'},
		{0x80},
		bytes.Repeat([]byte{0xff}, 10),
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1, 2, 3},
	} {
		frame := wire.BlockFrame{Head: []byte("h"), Data: []byte("d")}
		if err := codec.Unmarshal(src, &frame); !errors.Is(err, dfs.Invalid) {
			t.Errorf("% x: got %v, want %v", src, err, dfs.Invalid)
		}
		if string(frame.Head) != "h" || string(frame.Data) != "d" {
			t.Errorf("% x: the frame was changed", src)
		}
	}
}

func FuzzBlockFrame(f *testing.F) {
	for _, frame := range []*wire.BlockFrame{{}, {Head: []byte("head"), Data: []byte("data")}, {Head: make([]byte, 200)}} {
		enc, err := codec.Marshal(frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		var frame wire.BlockFrame
		if err := codec.Unmarshal(src, &frame); err != nil {
			return
		}
		enc, err := codec.Marshal(&frame)
		if err != nil {
			t.Fatalf("a decoded frame does not encode: %v", err)
		}
		var again wire.BlockFrame
		if err := codec.Unmarshal(enc, &again); err != nil || !bytes.Equal(again.Head, frame.Head) || !bytes.Equal(again.Data, frame.Data) {
			t.Fatalf("decoding twice differs: %v", err)
		}
	})
}

func TestCodecLimits(t *testing.T) {
	if _, err := codec.Marshal(&wire.RaftBatch{Data: make([]byte, dfs.MaxMessage+1)}); !errors.Is(err, dfs.TooLarge) {
		t.Errorf("marshal: got %v, want %v", err, dfs.TooLarge)
	}
	if err := codec.Unmarshal(make([]byte, dfs.MaxMessage+1), &wire.RaftBatch{}); !errors.Is(err, dfs.TooLarge) {
		t.Errorf("unmarshal: got %v, want %v", err, dfs.TooLarge)
	}
	if err := codec.Unmarshal([]byte{0xff}, &wire.RaftBatch{}); !errors.Is(err, dfs.Invalid) {
		t.Errorf("unmarshal: got %v, want %v", err, dfs.Invalid)
	}
	if _, err := codec.Marshal(42); !errors.Is(err, dfs.Internal) {
		t.Errorf("marshal: got %v, want %v", err, dfs.Internal)
	}
}

// Map fields are written in one order: logs and hashes of equal state are equal.
func TestCodecIsDeterministic(t *testing.T) {
	node := &wire.MapNode{Labels: map[string]string{}}
	for c := 'a'; c <= 'z'; c++ {
		node.Labels[string(c)] = "v"
	}
	first, err := codec.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if again, err := codec.Marshal(node); err != nil || !bytes.Equal(first, again) {
			t.Fatalf("two encodings of one message differ (%v)", err)
		}
	}
}
