package namespace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// maxFindings bounds what one check reports: the first ones say what is wrong.
const maxFindings = 100

// Check verifies every invariant of one group's rows and returns what does not
// hold, nothing when all is well. It holds the group's inodes and counts in
// memory: it is for tests and for an operator's fsck, not for a running service.
func Check(r raftgroup.Reader) []error {
	c := newChecker(r)
	c.run()
	return c.faults
}

// CheckTree verifies every group, by its number, and what holds between
// them: that each directory is linked where it says it is, and that all lead
// up to the root. It needs readers of one moment.
func CheckTree(groups map[dfs.GroupID]raftgroup.Reader) []error {
	var faults []error
	checkers := map[dfs.GroupID]*checker{}
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		c := newChecker(groups[g])
		c.run()
		for _, err := range c.faults {
			faults = append(faults, dfs.Wrap("check", g.String(), err))
		}
		checkers[g] = c
	}
	t := tree{checkers}
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		faults = append(faults, t.check(g)...)
	}
	t.checkAccounts(func(g dfs.GroupID, format string, args ...any) {
		if len(faults) < maxFindings {
			faults = append(faults, dfs.Errorf(dfs.Corrupt, "check", "%v: %s", g, fmt.Sprintf(format, args...)))
		}
	})
	return faults
}

// checker collects a group's rows.
type checker struct {
	r      raftgroup.Reader
	faults []error

	st       *state
	fence    *fenceRow
	inodes   map[dfs.Ino]*inode
	links    map[dfs.Ino]uint32 // dentries of this group that name it
	entries  map[dfs.Ino]int64  // dentries below it
	subdirs  map[dfs.Ino]uint32
	children map[dfs.Ino]*childRow
	intents  map[dfs.Ino]*Intent
	removed  map[dfs.Ino]bool // inodes whose removal is in history
	named    map[dfs.BlockID]blockRow
	queued   map[dfs.BlockID]bool
	floors   map[dfs.SessionID]floorRow
	remote   map[dfs.Ino]wire.FileType // files and symlinks of other groups that entries name
	parts    []*wire.TxnIntent
	ledgers  ledgers
}

func newChecker(r raftgroup.Reader) *checker {
	return &checker{
		r: r, inodes: map[dfs.Ino]*inode{}, links: map[dfs.Ino]uint32{}, entries: map[dfs.Ino]int64{}, subdirs: map[dfs.Ino]uint32{},
		children: map[dfs.Ino]*childRow{}, intents: map[dfs.Ino]*Intent{}, removed: map[dfs.Ino]bool{},
		named: map[dfs.BlockID]blockRow{}, queued: map[dfs.BlockID]bool{}, floors: map[dfs.SessionID]floorRow{},
		remote: map[dfs.Ino]wire.FileType{},
	}
}

func (c *checker) fault(format string, args ...any) {
	if len(c.faults) < maxFindings {
		c.faults = append(c.faults, dfs.Errorf(dfs.Corrupt, "", format, args...))
	}
}

// each calls fn with every row of a tag; what fn returns is a fault.
func (c *checker) each(tag byte, keyLen int, fn func(key, value []byte) error) {
	err := scan(c.r, []byte{tag}, []byte{tag + 1}, func(key, value []byte) (bool, error) {
		if len(key) < keyLen {
			c.fault("%x: malformed key", key)
			return true, nil
		}
		if err := fn(bytes.Clone(key), bytes.Clone(value)); err != nil {
			c.fault("%v", err)
		}
		return true, nil
	})
	if err != nil {
		c.fault("rows of tag %c cannot be read: %v", tag, err)
	}
}

func (c *checker) run() {
	var err error
	if c.st, err = readState(c.r); err != nil || c.st == nil {
		c.fault("no counters: %v", err)
		return
	}
	if c.fence, err = readFence(c.r); err != nil {
		c.fault("%v", err)
		return
	}
	c.readTree()
	c.checkInodes()
	c.checkIntents()
	c.readHistory()
	c.checkExtents()
	c.checkBlocks()
	c.checkSessions()
	c.checkTransactions()
	c.checkAccounts()
}

func keyIno(key []byte) dfs.Ino { return dfs.Ino(binary.BigEndian.Uint64(key[1:])) }

func (c *checker) readTree() {
	c.each(tagInode, 9, func(key, value []byte) error {
		n, err := decodeInode(keyIno(key), value)
		c.inodes[n.ino] = n
		return err
	})
	c.each(tagChild, 9, func(key, value []byte) error {
		row, err := decodeChild(key, value)
		c.children[keyIno(key)] = row
		return err
	})
	c.each(tagIntent, 9, func(key, value []byte) error {
		in, err := decodeIntent(key, value)
		if err == nil {
			c.intents[in.Child] = in
		}
		return err
	})
	c.each(tagDentry, 10, func(key, value []byte) error {
		e, err := decodeDentry(key, value)
		if err != nil {
			return err
		}
		c.dentry(keyIno(key), key[9:], e)
		return nil
	})
}

func (c *checker) dentry(parent dfs.Ino, name []byte, e *dentry) {
	c.links[e.ino]++
	c.entries[parent]++
	if e.typ == wire.FileType_DIR {
		c.subdirs[parent]++
	}
	if err := checkName(name); err != nil {
		c.fault("directory %v: %v", parent, err)
	}
	if dir := c.inodes[parent]; dir == nil || !dir.isDir() || dir.frozen || dir.unlinked {
		c.fault("entry %q is in %v, which is no directory for it", name, parent)
	}
	if e.ino.Group() != c.st.group && e.typ != wire.FileType_DIR && c.st.level >= LevelTransactions {
		if typ, ok := c.remote[e.ino]; ok && typ != e.typ {
			c.fault("entry %q of %v names %v, a %v that another one calls a %v", name, parent, e.ino, e.typ, typ)
		}
		c.remote[e.ino] = e.typ
		return
	}
	if e.ino.Group() != c.st.group {
		row := c.children[e.ino]
		if row == nil || row.parent != parent || !bytes.Equal(row.name, name) || e.typ != wire.FileType_DIR {
			c.fault("entry %q of %v names %v, whose child row says %+v", name, parent, e.ino, row)
		}
		return
	}
	n := c.inodes[e.ino]
	if n == nil || n.typ != e.typ || n.isDir() && n.parent != parent {
		c.fault("entry %q of %v names %v, a %v, which is %+v", name, parent, e.ino, e.typ, n)
	}
}

func (c *checker) checkInodes() {
	if uint64(len(c.inodes)) != c.st.inodes {
		c.fault("%d inodes are counted, %d exist", c.st.inodes, len(c.inodes))
	}
	if err := checkClass(c.st.defaultClass); err != nil {
		c.fault("%v", err)
	}
	if c.st.group == dfs.RootIno.Group() && c.inodes[dfs.RootIno] == nil {
		c.fault("there is no root")
	}
	for _, ino := range slices.Sorted(maps.Keys(c.children)) {
		if c.links[ino] != 1 {
			c.fault("remote child %v has %d entries", ino, c.links[ino])
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(c.inodes)) {
		n := c.inodes[ino]
		if ino.Group() != c.st.group || ino.Local() >= c.st.next || n.version > c.st.version {
			c.fault("inode %v of version %d is beyond the counters %+v", ino, n.version, *c.st)
		}
		if err := checkClass(n.class); err != nil {
			c.fault("inode %v: %v", ino, err)
		}
		if !n.isDir() {
			if n.nlink == 0 || n.nlink < c.links[ino] || n.nlink > c.links[ino] && c.st.level < LevelTransactions {
				c.fault("inode %v says %d links and has %d", ino, n.nlink, c.links[ino])
			}
			if n.typ == wire.FileType_SYMLINK && n.size != int64(len(n.target)) {
				c.fault("symlink %v says %d bytes and has %d", ino, n.size, len(n.target))
			}
			continue
		}
		if n.size != c.entries[ino] || n.nlink != 2+c.subdirs[ino] {
			c.fault("directory %v says %d entries and %d links, and has %d entries and %d subdirectories", ino, n.size, n.nlink, c.entries[ino], c.subdirs[ino])
		}
		want := uint32(1)
		if ino == dfs.RootIno || n.parent.Group() != c.st.group {
			want = 0
		}
		if c.links[ino] != want {
			c.fault("directory %v has %d entries that name it, want %d", ino, c.links[ino], want)
		}
		if in := c.intents[ino]; n.unlinked != (in != nil && in.Kind == IntentMkdir) || n.frozen != (in != nil && in.Kind == IntentRmdir) {
			c.fault("directory %v: frozen %v, unlinked %v, intent %+v", ino, n.frozen, n.unlinked, in)
		}
	}
}

func (c *checker) checkIntents() {
	for _, ino := range slices.Sorted(maps.Keys(c.intents)) {
		in, n := c.intents[ino], c.inodes[ino]
		if n == nil || n.parent != in.Parent || in.Parent.Group() == c.st.group || in.Session == 0 || in.Version > c.st.version {
			c.fault("intent %+v for %+v", in, n)
		}
	}
}

// name counts an extent or history row.
func (c *checker) name(e extent) {
	row := c.named[e.block]
	if row.count > 0 && row.length != e.blockLength {
		c.fault("block %v has %d bytes and %d", e.block, row.length, e.blockLength)
	}
	c.named[e.block] = blockRow{row.count + 1, e.blockLength}
}

func (c *checker) readHistory() {
	c.each(tagHistory, 10, func(key, value []byte) error {
		ended := endedAt(key)
		if ended > c.st.version || ended < c.st.trimmed || len(value) < 1 || value[0] > endedRemoved {
			return damaged(key, "history row that ended at %d", ended)
		}
		row, old := key[9:], value[1:]
		var began dfs.Version
		switch {
		case row[0] == tagInode && len(row) == 9:
			n, err := decodeInode(keyIno(row), old)
			if err != nil {
				return err
			}
			began = n.version
			if value[0] == endedRemoved {
				c.removed[n.ino] = true
			}
		case row[0] == tagDentry && len(row) > 9:
			e, err := decodeDentry(row, old)
			if err != nil {
				return err
			}
			began = e.version
		case row[0] == tagExtent:
			e, err := decodeExtent(row, old)
			if err != nil {
				return err
			}
			began = e.version
			if e.block.Ino != keyIno(row) {
				c.fault("history of inode %v names block %v", keyIno(row), e.block)
			}
			c.name(e)
		default:
			return damaged(key, "history of an unknown row")
		}
		if began >= ended {
			return damaged(key, "a value that began at %d and ended at %d", began, ended)
		}
		return nil
	})
}

func (c *checker) checkExtents() {
	var last dfs.Ino
	var end int64
	c.each(tagExtent, 17, func(key, value []byte) error {
		e, err := decodeExtent(key, value)
		if err != nil {
			return err
		}
		ino := keyIno(key)
		if ino != last {
			last, end = ino, 0
		}
		n := c.inodes[ino]
		switch {
		case e.offset < end:
			c.fault("inode %v: an extent begins at %d, the one ahead ends at %d", ino, e.offset, end)
		case n == nil && !c.removed[ino]:
			c.fault("extents of inode %v, which does not exist", ino)
		case n != nil && (n.typ != wire.FileType_FILE || e.end > n.size):
			c.fault("inode %v, a %v of %d bytes, has an extent to %d", ino, n.typ, n.size, e.end)
		case e.block.Ino != ino:
			c.fault("inode %v names block %v of another", ino, e.block)
		}
		end = e.end
		c.name(e)
		return nil
	})
}

func (c *checker) checkBlocks() {
	rows := map[dfs.BlockID]blockRow{}
	c.each(tagBlock, 9+dfs.BlockIDLen, func(key, value []byte) error {
		id, err := dfs.ParseBlockID(key[9:])
		if err != nil || id.Ino != keyIno(key) {
			return damaged(key, "malformed key of a block")
		}
		rows[id], err = decodeBlock(key, value)
		return err
	})
	for _, id := range slices.SortedFunc(maps.Keys(c.named), compareBlocks) {
		if rows[id] != c.named[id] {
			c.fault("block %v: row %+v, named %+v", id, rows[id], c.named[id])
		}
	}
	if len(rows) > len(c.named) {
		c.fault("%d block rows, %d blocks are named", len(rows), len(c.named))
	}
	c.each(tagQueue, 1+dfs.BlockIDLen, func(key, _ []byte) error {
		id, err := dfs.ParseBlockID(key[1:])
		c.queued[id] = true
		if _, ok := rows[id]; ok {
			c.fault("block %v is released and named", id)
		}
		return err
	})
}

func (c *checker) checkSessions() {
	c.each(tagFloor, 9, func(key, value []byte) error {
		s := dfs.SessionID(binary.BigEndian.Uint64(key[1:]))
		f, err := decodeFloor(key, value)
		c.floors[s] = f
		return err
	})
	c.each(tagReply, 17, func(key, value []byte) error {
		s, seq := dfs.SessionID(binary.BigEndian.Uint64(key[1:])), binary.BigEndian.Uint64(key[9:])
		f, ok := c.floors[s]
		if !ok || seq < f.floor || seq-f.floor >= MaxUnacknowledged || seq > f.last {
			c.fault("reply %d of session %d, whose floor is %d and whose last command is %d", seq, s, f.floor, f.last)
		}
		return proto.Unmarshal(value, &wire.Result{})
	})
	c.each(tagMark, 9, func(key, value []byte) error {
		d := decode(value)
		if d.u64() > dfs.MaxBlockCounter+1 {
			d.bad = true
		}
		return d.done(key)
	})
	holders := map[uint64]dfs.SessionID{}
	held := map[dfs.SessionID]int{}
	c.each(tagLease, 17, func(key, value []byte) error {
		s, chunk := dfs.SessionID(binary.BigEndian.Uint64(key[1:])), binary.BigEndian.Uint64(key[9:])
		l, err := decodeLease(key, value)
		if _, ok := c.floors[s]; !ok {
			c.fault("inode numbers are leased to session %d, which is not known", s)
		}
		held[s] += l.count()
		for i := range uint64(leaseChunk) {
			if !l.has(i) {
				continue
			}
			local := chunk*leaseChunk + i
			if local >= c.st.next || c.inodes[dfs.MakeIno(c.st.group, local)] != nil || holders[local] != 0 {
				c.fault("number %d is leased to session %d, and used, not given out, or leased to session %d", local, s, holders[local])
			}
			holders[local] = s
		}
		return err
	})
	for s, n := range held {
		if n > MaxLeased {
			c.fault("session %d holds %d inode numbers", s, n)
		}
	}
}

// tree is all groups together.
type tree struct {
	groups map[dfs.GroupID]*checker
}

func (t tree) inode(ino dfs.Ino) *inode {
	if c := t.groups[ino.Group()]; c != nil {
		return c.inodes[ino]
	}
	return nil
}

func (t tree) check(g dfs.GroupID) (faults []error) {
	c := t.groups[g]
	fault := func(format string, args ...any) {
		if len(faults) < maxFindings {
			faults = append(faults, dfs.Errorf(dfs.Corrupt, "check", "%v: %s", g, fmt.Sprintf(format, args...)))
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(c.children)) {
		row := c.children[ino]
		if n := t.inode(ino); n == nil || !n.isDir() || n.parent != row.parent {
			fault("remote child %v of %v, %q, is %+v", ino, row.parent, row.name, n)
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(c.remote)) {
		if n := t.inode(ino); n == nil || n.typ != c.remote[ino] {
			fault("an entry names %v, a %v of another group, which is %+v", ino, c.remote[ino], n)
		}
	}
	for _, in := range c.parts {
		if !t.undecided(in.Txn) {
			fault("a share of transaction %v, which its coordinator has decided", in.Txn)
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(c.inodes)) {
		n := c.inodes[ino]
		if !n.isDir() {
			links := uint32(0)
			for _, other := range t.groups {
				links += other.links[ino]
			}
			if n.nlink != links {
				fault("inode %v says %d links, and %d entries of all groups name it", ino, n.nlink, links)
			}
			continue
		}
		if n.parent.Group() != g && !n.unlinked && !n.frozen {
			if p := t.groups[n.parent.Group()]; p == nil || p.children[ino] == nil {
				fault("directory %v is not linked in %v", ino, n.parent)
			}
		}
		if n.unlinked || n.frozen {
			continue
		}
		up := n
		for range MaxDepth {
			if up == nil || up.ino == dfs.RootIno {
				break
			}
			up = t.inode(up.parent)
		}
		if up == nil || up.ino != dfs.RootIno {
			fault("directory %v does not lead to the root", ino)
		}
	}
	return faults
}
