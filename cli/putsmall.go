package cli

import (
	"context"
	"syscall"

	"dfsd/client"
	"dfsd/dfs"
)

const (
	// smallFile is up to how many bytes a file is stored together with others: one
	// commit makes them, which costs more than so few bytes do.
	smallFile = dfs.ChunkSize

	// putTogether is how many small files of a directory are stored together: each
	// has an open file and the memory of a small block.
	putTogether = 16
)

// isSmall reports whether a file is stored together with others. One that has
// several names waits for what becomes of the first of them.
func isSmall(st *syscall.Stat_t) bool { return st.Size <= smallFile && st.Nlink < 2 }

// localFile is a regular file on its way into the cluster.
type localFile struct {
	local string
	at    place
}

// together stores small files of one directory, as one of the batch's jobs.
func (p *putter) together(ctx context.Context, b *batch, dir client.Inode, list []localFile) {
	if len(list) == 0 {
		return
	}
	b.do(ctx, func() {
		var files []*client.NewFile
		var of []localFile
		for _, l := range list {
			f, st, err := openRegular(l.local)
			if err != nil {
				p.fail(l.local, err)
				continue
			}
			if !isSmall(st) { // any more
				f.Close()
				p.file(ctx, l.local, l.at)
				continue
			}
			defer f.Close()
			files = append(files, &client.NewFile{Name: l.at.name, Options: p.options(st), Content: meterReader{f, p.transfer}})
			of = append(of, l)
		}
		dir.PutFiles(ctx, files)
		for i, f := range files {
			if f.Err != nil {
				p.outcome(of[i].local, f.Err)
				continue
			}
			p.done(counts{Files: 1})
		}
	})
}
