package meta

import (
	"testing"

	"dfsd/dfs"
	"dfsd/meta/namespace"
)

// TestBatchBounds: a batch has so many commands, and so many bytes.
func TestBatchBounds(t *testing.T) {
	cmds := func(n, size int) (out [][]byte) {
		for range n {
			out = append(out, make([]byte, size))
		}
		return out
	}
	for _, c := range []struct {
		cmds [][]byte
		want dfs.Kind // Other: it is taken
	}{
		{nil, dfs.Invalid},
		{cmds(1, 10), dfs.Other},
		{cmds(namespace.MaxBatch, maxBatchBytes/namespace.MaxBatch), dfs.Other},
		{cmds(namespace.MaxBatch+1, 10), dfs.Invalid},
		{cmds(2, maxBatchBytes/2+1), dfs.TooLarge},
	} {
		if err := checkBatch(c.cmds); (err == nil) != (c.want == dfs.Other) || dfs.KindOf(err) != c.want {
			t.Errorf("%d commands: %v, want %v", len(c.cmds), err, c.want)
		}
	}
}
