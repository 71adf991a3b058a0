package namespace

import (
	"bytes"
	"encoding/binary"
	"slices"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// retries sends commands again: the answer is the same bytes and nothing
// changes, or it is refused because the floor or a fence has passed it.
func (l *life) retries(planted bool) {
	l.hinder = planted
	for range 3 {
		if len(l.sent) == 0 {
			return
		}
		c := pick(l, l.sent)
		if l.rng.IntN(2) == 0 {
			c = l.sent[len(l.sent)-1-l.rng.IntN(min(8, len(l.sent)))]
		}
		row, _, err := readFloor(l.w.reader(c.g), dfs.SessionID(c.session))
		if err != nil {
			l.t.Fatal(err)
		}
		reply := l.w.applyBytes(c.g, c.entry)
		res := &wire.Result{}
		if err := proto.Unmarshal(reply, res); err != nil {
			l.t.Fatal(err)
		}
		switch kind := dfs.Kind(res.Kind); {
		case l.fencedAt[c.g][c.session]:
			if kind != dfs.Fenced {
				l.fatalf("a retry of a fenced session: %v", kind)
			}
		case c.seq < row.floor:
			if kind != dfs.Stale {
				l.fatalf("a retry below the floor: %v", kind)
			}
		case !bytes.Equal(reply, c.reply):
			l.fatalf("a retry was answered\n%x, first\n%x", reply, c.reply)
		}
		if l.w.wrote != "" {
			l.fatalf("a retry wrote rows %q", l.w.wrote)
		}
		if l.noticed {
			return
		}
	}
}

// trim drops some history; what it releases is looked at in settle.
func (l *life) trim() {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	oldest, err := HistoryOldest(l.w.reader(g))
	if err != nil {
		l.t.Fatal(err)
	}
	if oldest == 0 {
		return
	}
	before := oldest + dfs.Version(l.rng.IntN(100_000_000))
	l.trimmed[g] = max(l.trimmed[g], before)
	res := l.w.trim(g, before, uint32(1+l.rng.IntN(60)))
	l.expect(res, "trim", done)
}

// mortality ends the lease of a session, or brings a fence to a group.
func (l *life) mortality() {
	if l.rng.IntN(2) == 0 {
		pick(l, l.sessions).dying = true
		return
	}
	l.bringFence(dfs.GroupID(1 + l.rng.IntN(lifeGroups)))
}

func (l *life) bringFence(g dfs.GroupID) {
	var live []uint64
	for _, s := range l.sessions {
		if !s.dying && !l.fencedAt[g][s.id] {
			live = append(live, s.id)
		}
	}
	l.fenceIdx++
	if res := l.w.fence(g, l.fenceIdx, l.lastID, live...); res.Kind != 0 {
		l.fatalf("fence: %v", res)
	}
	for id := uint64(1); id <= l.lastID; id++ {
		if !slices.Contains(live, id) {
			l.fencedAt[g][id] = true
		}
	}
	l.sessions = slices.DeleteFunc(l.sessions, func(s *mortal) bool {
		for h := 1; h <= lifeGroups; h++ {
			if !l.fencedAt[h][s.id] {
				return false
			}
		}
		return true
	})
	for len(l.sessions) < 3 {
		l.open()
	}
}

// settle lets every session die, resolves everything, compares the tree with
// the model, trims all history and compares what was released.
func (l *life) settle() {
	for _, s := range l.sessions {
		s.dying = true
	}
	for g := range lifeGroups {
		l.bringFence(dfs.GroupID(g + 1))
	}
	for range 1000 {
		left := 0
		for g := range lifeGroups {
			list, err := Intents(l.w.reader(dfs.GroupID(g+1)), 0, 1)
			if err != nil {
				l.t.Fatal(err)
			}
			left += len(list)
		}
		if left == 0 {
			break
		}
		l.answers = nil
		l.resolver()
	}
	l.w.check(lifeGroups)
	for len(l.pasts) > 0 {
		l.recall()
	}
	l.compare(l.m.root)
	for _, n := range l.m.nodes {
		if n.held != 0 {
			l.fatalf("%v is still held", n.ino)
		}
	}
	l.release()
}

// compare walks the tree below a directory beside the model.
func (l *life) compare(dir *mnode) {
	seen := 0
	var cursor []byte
	for more := true; more; {
		q := &wire.ReadDirQuery{Ino: uint64(dir.ino), After: cursor, Limit: 2, Plus: true}
		res, err := l.w.query(dir.group(), &wire.Query{Query: &wire.Query_ReadDir{ReadDir: q}})
		if err != nil {
			l.t.Fatal(err)
		}
		page := res.GetReadDir()
		if got := wireAttr(page.Dir); got != dir.attr() {
			l.fatalf("directory\n%s, the model says\n%s", got, dir.attr())
		}
		for _, e := range page.Entries {
			seen++
			cursor = e.Name
			n := dir.entries[string(e.Name)]
			if n == nil || n.ino != dfs.Ino(e.Ino) || n.typ != e.Type {
				l.fatalf("entry %v of %v, the model says %+v", e, dir.ino, n)
			}
			if n.isDir() {
				l.compare(n)
				continue
			}
			if got := wireAttr(e.Attr); got != n.attr() {
				l.fatalf("inode\n%s, the model says\n%s", got, n.attr())
			}
			if n.typ == wire.FileType_FILE {
				l.compareData(n)
			}
		}
		more = page.More
	}
	if seen != len(dir.entries) {
		l.fatalf("directory %v has %d entries, the model says %d", dir.ino, seen, len(dir.entries))
	}
}

func (l *life) compareData(n *mnode) {
	got := &mnode{}
	for at, more := int64(0), true; more; {
		res, err := l.w.query(n.group(), &wire.Query{Query: &wire.Query_Extents{Extents: &wire.ExtentsQuery{Ino: uint64(n.ino), Offset: at, Limit: 2}}})
		if err != nil {
			l.t.Fatal(err)
		}
		more = res.GetExtents().More
		for _, e := range res.GetExtents().Extents {
			id, _ := dfs.ParseBlockID(e.Block)
			got.put(e.Offset, int(e.Length), int(e.BlockOffset), id.Counter)
			at = e.Offset + e.Length
		}
	}
	for i := range max(len(got.data), len(n.data)) {
		var a, b cell
		if i < len(got.data) {
			a = got.data[i]
		}
		if i < len(n.data) {
			b = n.data[i]
		}
		if a != b {
			l.fatalf("byte %d of %v is %+v, the model says %+v", i, n.ino, a, b)
		}
	}
}

// release trims everything: exactly the blocks that no file names are in the
// delete queues.
func (l *life) release() {
	want := map[dfs.BlockID]bool{}
	for id := range l.blocks {
		want[id] = true
	}
	for _, n := range l.m.nodes {
		for _, c := range n.counters() {
			for id := range l.blocks {
				if id.Ino == n.ino && id.Counter == c {
					delete(want, id)
				}
			}
		}
	}
	for g := dfs.GroupID(1); g <= lifeGroups; g++ {
		for {
			oldest, err := HistoryOldest(l.w.reader(g))
			if err != nil {
				l.t.Fatal(err)
			}
			if oldest == 0 {
				break
			}
			l.expect(l.w.trim(g, oldest+1, 50), "trim", done)
		}
		var cursor []byte
		for {
			blocks, next, err := DeleteQueue(l.w.reader(g), cursor, 7)
			if err != nil {
				l.t.Fatal(err)
			}
			for _, id := range blocks {
				if !want[id] {
					l.fatalf("block %v was released and is named, or released twice", id)
				}
				delete(want, id)
			}
			if cursor = next; len(next) == 0 {
				break
			}
		}
		for _, row := range l.w.rows(g, "abcdefgiqsuvxy") {
			if tag := row[0][0]; tag != tagFloor && tag != tagReply && tag != tagLease || l.fencedAt[g][binary.BigEndian.Uint64(row[0][1:])] {
				l.fatalf("%v is left with a row of key %x", g, row[0])
			}
		}
	}
	l.judgeAll()
	if len(want) > 0 {
		l.fatalf("%d blocks that nothing names were not released", len(want))
	}
	l.w.check(lifeGroups)
}
