package client

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Usage is what lies below a directory. An inode with several names counts once, in
// one of the directories that name it.
type Usage struct {
	Bytes uint64 // sizes of files, and of the targets of symlinks; modulo 2^64
	Files uint64 // and symlinks
	Dirs  uint64

	// Settled says that nothing waits to be counted in the group of the directory:
	// everything that was done there before is in, and everything that other
	// groups have told of what they have below it.
	Settled bool
}

// Usage returns what lies below a directory, as its account says, however much that
// is. Errors: NotDir; Unsupported where the group keeps no accounts; NotExist and others.
func (i Inode) Usage(ctx context.Context) (Usage, error) {
	return op(ctx, i.c, "count", i.ino.String(), func(ctx context.Context) (Usage, error) {
		got, err := i.c.below(ctx, i.ino.Group(), []uint64{uint64(i.ino)})
		switch {
		case err != nil:
			return Usage{}, err
		case got[0] == nil:
			return Usage{}, dfs.Errorf(dfs.NotExist, "", "inode %v does not exist", i.ino)
		case got[0].GetType() != wire.FileType_DIR:
			return Usage{}, dfs.Errorf(dfs.NotDir, "", "it is a %v", Type(got[0].GetType()))
		case got[0].Below == nil:
			return Usage{}, noAccounts(i.ino.Group())
		}
		return toUsage(got[0].Below), nil
	})
}

// Usages returns what lies below directories, by their numbers; those that do not
// exist, and what is no directory, are left out. Errors: as those of [Inode.Usage].
func (c *Client) Usages(ctx context.Context, dirs []dfs.Ino) (map[dfs.Ino]Usage, error) {
	return op(ctx, c, "count", "directories", func(ctx context.Context) (map[dfs.Ino]Usage, error) {
		byGroup := map[dfs.GroupID][]uint64{}
		for _, ino := range dirs {
			byGroup[ino.Group()] = append(byGroup[ino.Group()], uint64(ino))
		}
		out := map[dfs.Ino]Usage{}
		for g, inos := range byGroup {
			got, err := c.below(ctx, g, inos)
			if err != nil {
				return nil, err
			}
			for _, a := range got {
				switch {
				case a.GetType() != wire.FileType_DIR:
				case a.Below == nil:
					return nil, noAccounts(g)
				default:
					out[dfs.Ino(a.Ino)] = toUsage(a.Below)
				}
			}
		}
		return out, nil
	})
}

func noAccounts(g dfs.GroupID) error {
	return dfs.Errorf(dfs.Unsupported, "", "group %v keeps no accounts: not all of its members are of a release that does", g)
}

func toUsage(s *wire.Sums) Usage {
	return Usage{Bytes: s.GetBytes(), Files: s.GetFiles(), Dirs: s.GetDirectories(), Settled: s.GetSettled()}
}
