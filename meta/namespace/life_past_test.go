package namespace

import (
	"encoding/binary"

	"dfsd/dfs"
)

// past is what the rows of a group's tree were at a version.
type past struct {
	g       dfs.GroupID
	version dfs.Version
	rows    map[string]string
}

// remember notes the rows of a group as they are.
func (l *life) remember() {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	version, err := LastVersion(l.w.reader(g))
	if err != nil {
		l.t.Fatal(err)
	}
	l.pasts = append(l.pasts, past{g, version, l.rowsAt(g, version)})
}

// recall compares what history says of a version with what was noted then.
// What has been trimmed cannot be recalled.
func (l *life) recall() {
	if len(l.pasts) == 0 {
		return
	}
	i := l.rng.IntN(len(l.pasts))
	p := l.pasts[i]
	l.pasts = append(l.pasts[:i], l.pasts[i+1:]...)
	if l.trimmed[p.g] > p.version+1 {
		return
	}
	l.did["recall"]++
	rows := l.rowsAt(p.g, p.version)
	for key, value := range p.rows {
		if rows[key] != value {
			l.fatalf("row %x of %v at version %d was %x, history says %x", key, p.g, p.version, value, rows[key])
		}
	}
	if len(rows) != len(p.rows) {
		l.fatalf("%d rows of %v at version %d, history says %d", len(p.rows), p.g, p.version, len(rows))
	}
}

// rowsAt returns the inodes, entries and extents of a group as they were at a
// version, from those that stand and those in history.
func (l *life) rowsAt(g dfs.GroupID, version dfs.Version) map[string]string {
	out := map[string]string{}
	began := func(value []byte) dfs.Version {
		d := decode(value)
		return dfs.Version(d.u64())
	}
	take := func(key, value []byte) {
		at := value
		switch key[0] { // the version follows type and flags of an inode, the type of an entry
		case tagInode:
			at = append([]byte{rowFormat}, value[3:]...)
		case tagDentry:
			at = append([]byte{rowFormat}, value[2:]...)
		}
		if began(at) <= version {
			out[string(key)] = string(value)
		}
	}
	for _, row := range l.w.rows(g, "abcfglmnoqrsuvwxy") {
		key, value := row[0], row[1]
		if key[0] == tagHistory {
			if dfs.Version(binary.BigEndian.Uint64(key[1:])) > version {
				take(key[9:], value[1:])
			}
			continue
		}
		take(key, value)
	}
	for key := range out { // extents of a file that was gone by then wait for a trim
		if key[0] == tagExtent {
			if _, ok := out[string(inodeKey(keyIno([]byte(key))))]; !ok {
				delete(out, key)
			}
		}
	}
	return out
}
