package transport

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"storj.io/drpc/drpcwire"

	"dfsd/dfs"
)

// packets returns the bytes of random messages as dRPC writes them, and their
// ends in it.
func packets(random *rand.Rand, count int) (stream []byte, ends []int) {
	for i := range count {
		pkt := drpcwire.Packet{Data: make([]byte, random.IntN(1000)), ID: drpcwire.ID{Stream: 1 + random.Uint64N(1<<40), Message: uint64(i + 1)}, Kind: drpcwire.KindMessage}
		if random.IntN(4) == 0 {
			pkt.Data = nil
		}
		_ = drpcwire.SplitN(pkt, 1+random.IntN(500), func(fr drpcwire.Frame) error {
			stream = drpcwire.AppendFrame(stream, fr)
			return nil
		})
		ends = append(ends, len(stream))
	}
	return stream, ends
}

// The scanner sees the messages that dRPC writes, however the bytes are cut.
func TestScannerFollowsMessages(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	stream, ends := packets(random, 200)
	isEnd := make(map[int]bool)
	for _, e := range ends {
		isEnd[e] = true
	}
	for range 20 {
		var s frameScanner
		for at := 0; at < len(stream); {
			n := min(1+random.IntN(1+random.IntN(700)), len(stream)-at)
			ended, err := s.feed(stream[at : at+n])
			if err != nil {
				t.Fatal(err)
			}
			want := false
			for e := at + 1; e <= at+n; e++ {
				want = want || isEnd[e]
			}
			at += n
			if ended != want || s.inMessage() == isEnd[at] {
				t.Fatalf("after %d bytes: ended %v, want %v; within %v, at an end %v", at, ended, want, s.inMessage(), isEnd[at])
			}
		}
	}
}

// A frame over the limit is refused when its head is read, and what dRPC's own
// parser takes for a frame the scanner does too.
func TestScannerLimits(t *testing.T) {
	head := func(length uint64) []byte {
		b := []byte{byte(drpcwire.KindMessage)<<1 | 1, 1, 1}
		return drpcwire.AppendVarint(b, length)
	}
	for _, c := range []struct {
		name string
		in   []byte
		bad  bool
	}{
		{"largest", head(dfs.MaxMessage), false},
		{"too large", head(dfs.MaxMessage + 1), true},
		{"far too large", head(1 << 62), true},
		{"endless number", append([]byte{5}, bytes.Repeat([]byte{0xff}, 11)...), true},
		{"longest number", append([]byte{5}, append(bytes.Repeat([]byte{0xff}, 9), 1, 1, 0)...), false},
	} {
		var s frameScanner
		if _, err := s.feed(c.in); (err != nil) != c.bad {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzScanner(f *testing.F) {
	stream, _ := packets(rand.New(rand.NewPCG(3, 4)), 5)
	f.Add(stream, 7)
	f.Add([]byte{0xff, 0xff}, 1)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		if step < 1 {
			return
		}
		var s frameScanner
		complete := 0
		for rest := in; len(rest) > 0; {
			n := min(step, len(rest))
			ended, err := s.feed(rest[:n])
			if err != nil {
				return
			}
			if ended {
				complete++
			}
			rest = rest[n:]
		}
		// What the scanner let pass, dRPC parses into frames under the limit.
		last := true
		for rest := in; ; {
			next, frame, ok, err := drpcwire.ParseFrame(rest)
			if err != nil {
				t.Fatalf("the scanner passed what dRPC refuses: %v", err)
			}
			if !ok {
				if (len(rest) > 0 || !last) != s.inMessage() {
					t.Fatalf("%d bytes are left, last frame ended its message: %v; the scanner is within one: %v", len(rest), last, s.inMessage())
				}
				return
			}
			last = frame.Done
			rest = next
		}
	})
}

// What is too large is refused before any buffer grows for it.
func TestGuardRefusesBeforeAllocation(t *testing.T) {
	head := drpcwire.AppendVarint([]byte{byte(drpcwire.KindMessage)<<1 | 1, 1, 1}, 1<<40)
	m := NewMemory(MemoryOptions{})
	lis, err := m.Host("a").Listen("a:1")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	near, err := m.Host("b").Dial(t.Context(), "a:1")
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := near.Write(head); err != nil {
		t.Fatal(err)
	}
	r := drpcwire.NewReaderWithOptions(&guard{Conn: far, messageTimeout: DefaultMessageTimeout}, drpcwire.ReaderOptions{MaximumBufferSize: dfs.MaxMessage})
	if _, err := r.ReadPacket(); err == nil || err == io.EOF {
		t.Errorf("got %v", err)
	}
}
