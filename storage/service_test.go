package storage

import (
	"bytes"
	"testing"

	"dfsd/dfs"
)

func TestPutAndGetOverTheWire(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 2)
		c.plane.create(1, dfs.Replicated(2))
		e := c.plane.activate(t, 1, a.store(0), b.store(1))
		for _, size := range []int{1, 4096, dfs.ChunkSize, dfs.ChunkSize + 1, dfs.FrameSize, dfs.FrameSize + 7, 400_001} {
			id, data := c.block(1, size)
			if err := c.putAll(id, data); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if err := c.put(a.store(0), id, e, data); err != nil {
				t.Fatalf("again: %v", err)
			}
			c.holds(a.store(0), id, data)
			c.holds(b.store(1), id, data)
			for _, r := range [][2]int{{0, 1}, {size - 1, 1}, {size / 2, size}, {size, 5}, {0, size}} {
				head, got, err := c.get(b.store(1), id, uint32(r[0]), uint32(r[1]))
				if err != nil {
					t.Fatalf("%d bytes, range %v: %v", size, r, err)
				}
				info, err := head.Desc.ToDFS()
				if err != nil {
					t.Fatal(err)
				}
				first, end := info.Range(uint32(r[0]), uint32(r[1]))
				want := data[min(size, first*dfs.ChunkSize):min(size, end*dfs.ChunkSize)]
				if int(head.First) != first || !bytes.Equal(got, want) || dfs.Epoch(head.Epoch) != e {
					t.Fatalf("%d bytes, range %v: chunk %d, %d bytes of epoch %d; want chunk %d, %d bytes of epoch %d", size, r, head.First, len(got), head.Epoch, first, len(want), e)
				}
			}
		}
		if st := a.service.Stats(); st.Puts != 14 || st.Busy != 0 || st.Corrupt != 0 {
			t.Errorf("stats %+v", st)
		}
	})
}
