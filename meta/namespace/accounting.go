package namespace

import (
	"bytes"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Every directory knows what lies below it: its account. What an entry does to names
// and inodes follows from what it has changed by its end, so accounts are brought up
// to date there, for every operation in the same way (settle).
//
//	home      of a directory its parent; of a file one of the directories that name it
//	counts    of a file or symlink its size and 1 file; of a directory what its account
//	          says and 1 directory
//	told      what the home has taken in of that
//
// The home's account takes at once what appears in it and what leaves it. What
// counts differently from now on stands in a queue, until an entry of the group's
// leader moves the difference up (tally.go), or the leader reports it to the group
// of the home (absorb.go). Of an inode in no queue, told is what it counts.

// naming is a name that an inode has got or lost.
type naming struct {
	ino, dir dfs.Ino
	delta    int
}

// accounts reports whether the group keeps accounts.
func (c *change) accounts() bool { return c.st.level >= LevelAccounts }

// name notes that an inode has got a name in a directory, or lost one.
func (c *change) name(ino, dir dfs.Ino, delta int) {
	if !c.accounts() {
		return
	}
	for i := range c.named {
		if c.named[i].ino == ino && c.named[i].dir == dir {
			c.named[i].delta += delta
			return
		}
	}
	c.named = append(c.named, naming{ino, dir, delta})
}

// unname notes that an entry is gone. One that was there before accounts, and has not
// been counted since, is of no account.
func (c *change) unname(parent dfs.Ino, name []byte, e *dentry) error {
	if c.st.counting && e.typ != wire.FileType_DIR {
		row, err := readCount(c.tx)
		if err != nil {
			return err
		}
		if e.version <= row.raised && bytes.Compare(dentryKey(parent, name), row.next) >= 0 {
			return nil
		}
	}
	c.name(e.ino, parent, -1)
	return nil
}

// otherwhere notes a name in a directory of another group: that of this group notes
// its own entries.
func (c *change) otherwhere(ino, dir dfs.Ino, delta int) {
	if dir != 0 && dir.Group() != c.st.group {
		c.name(ino, dir, delta)
	}
}

// settle brings the accounts up to date with what the entry has done.
func (c *change) settle() error {
	if !c.accounts() {
		return nil
	}
	for _, m := range c.named {
		var err error
		switch {
		case m.ino.Group() != c.st.group && m.delta == 0:
			err = c.meet(m.ino, m.dir)
		case m.ino.Group() != c.st.group:
			err = c.settleForeign(m)
		case m.delta == 0:
		default:
			_, err = c.needHere(m.ino)
		}
		if err != nil {
			return err
		}
	}
	for i := 0; i < len(c.inodes); i++ { // what is looked at on the way is there then too
		var err error
		if n := c.inodes[i]; n.isDir() {
			err = c.settleDir(n)
		} else {
			err = c.settleFile(n)
		}
		if err != nil {
			return err
		}
	}
	for _, a := range c.ledger {
		if err := c.writeAccount(a); err != nil {
			return err
		}
	}
	return nil
}

// counted is the version of what an entry does to accounts. It is above the group's
// last one, so that what a report says of the group at a version is all of it.
func (c *change) counted() dfs.Version {
	v := max(c.version, c.st.version+1)
	c.latest = max(c.latest, v)
	return v
}

// account returns a directory's account, the same one each time. One that was there
// before accounts has told nothing.
func (c *change) account(dir dfs.Ino) (*account, error) {
	for _, a := range c.ledger {
		if a.dir == dir {
			return a, nil
		}
	}
	a, err := readAccount(c.tx, dir)
	if err != nil {
		return nil, err
	}
	if a == nil {
		n, err := c.needHere(dir)
		if err != nil {
			return nil, err
		}
		a = &account{dir: dir, queued: dir != dfs.RootIno, elsewhere: n.parent.Group() != c.st.group}
	}
	c.ledger = append(c.ledger, a)
	return a, nil
}

// tell has a directory of this group take in that something counts for more, or less.
func (c *change) tell(dir dfs.Ino, more, less sums) error {
	if more == less {
		return nil
	}
	a, err := c.account(dir)
	if err != nil {
		return err
	}
	if !a.queued && dir != dfs.RootIno {
		a.queued, a.told = true, a.counts()
	}
	a.below = a.below.plus(more).minus(less)
	a.changed, a.dirty = c.counted(), true
	if !a.below.fits() {
		return broken("the account of directory %v would be %+v", dir, a.below)
	}
	return nil
}

// local reports whether an inode's home is a directory of this group.
func (c *change) local(home dfs.Ino) bool { return home.Group() == c.st.group }

// writeAccount writes a directory's account, and whether it stands in a queue.
func (c *change) writeAccount(a *account) error {
	if !a.dirty {
		return nil
	}
	if a.queued && !a.elsewhere && a.told == a.counts() {
		a.queued = false
	}
	var err error
	switch {
	case !a.disappears:
		err = c.set(accountKey(a.dir), a.append(make([]byte, 0, 32)))
	case a.stored != nil:
		err = c.delete(accountKey(a.dir))
	}
	if err != nil || a.queue == a.waits() {
		return err
	}
	if a.queue != 0 {
		c.st.untold--
		if err := c.delete(key8(a.queue, uint64(a.dir))); err != nil {
			return err
		}
	}
	if a.waits() != 0 {
		c.st.untold++
		return c.set(key8(a.waits(), uint64(a.dir)), []byte{rowFormat})
	}
	return nil
}

// settleDir moves what a directory counts for from one home to another.
func (c *change) settleDir(n *inode) error {
	fresh := n.stored == nil
	if n.ino == dfs.RootIno || !fresh && !n.disappeared && n.was.home == n.parent {
		return nil
	}
	if fresh {
		c.ledger = append(c.ledger, &account{dir: n.ino})
	}
	a, err := c.account(n.ino)
	if err != nil {
		return err
	}
	a.dirty = true
	if !fresh && c.local(n.was.home) {
		if err := c.tell(n.was.home, sums{}, a.taken()); err != nil {
			return err
		}
	}
	if n.disappeared {
		a.disappears = true
		if a.below != (sums{}) {
			return broken("directory %v is removed, and its account says %+v", n.ino, a.below)
		}
		return nil
	}
	a.elsewhere, a.queued, a.told = !c.local(n.parent), false, sums{}
	if !a.elsewhere {
		return c.tell(n.parent, a.counts(), sums{})
	}
	a.queued, a.since, a.changed = true, c.version, c.counted()
	if n.unlinked { // by a one-sided mkdir: the parent's group does not know this version
		a.since = 0
	}
	return nil
}

// settleFile moves what a file or symlink counts for from one home to another, or
// has it wait until its home has taken in that it counts differently.
func (c *change) settleFile(n *inode) error {
	renewed := false
	if n.nlink != n.was.nlink || slices.ContainsFunc(c.named, func(m naming) bool { return m.ino == n.ino }) {
		var err error
		if renewed, err = c.moveNames(n); err != nil {
			return err
		}
	}
	from, to := n.was.home, n.home
	switch {
	case from != to:
		n.rehomed = true
		if err := c.leaveHome(n, from); err != nil || to == 0 {
			return err
		}
		if c.local(to) {
			return c.tell(to, n.counts(), sums{})
		}
		return c.queueFile(n.ino, tagReport, untoldRow{changed: c.counted()})
	case to == 0 || n.size == n.was.size && !renewed:
		return nil
	case !c.local(to):
		return c.queueFile(n.ino, tagReport, untoldRow{changed: c.counted()})
	}
	_, waits, err := readUntold(c.tx, untoldKey(n.ino))
	if err != nil || waits {
		return err
	}
	c.counted()
	return c.queueFile(n.ino, tagUntold, untoldRow{told: uint64(n.was.size)})
}

// leaveHome takes what a file has told out of its home, 0 for none. One in another group
// sees that by itself.
func (c *change) leaveHome(n *inode, home dfs.Ino) error {
	if home == 0 {
		return nil
	}
	tag := byte(tagUntold)
	if !c.local(home) {
		tag = tagReport
	}
	told := sums{bytes: uint64(n.was.size), files: 1}
	if c.st.untold > 0 {
		row, waits, err := readUntold(c.tx, key8(tag, uint64(n.ino)))
		if err != nil {
			return err
		}
		if waits {
			told.bytes = row.told
			c.st.untold--
			if err := c.delete(key8(tag, uint64(n.ino))); err != nil {
				return err
			}
		}
	}
	if tag == tagReport {
		return nil
	}
	return c.tell(home, sums{}, told)
}

// queueFile puts a file in a queue.
func (c *change) queueFile(ino dfs.Ino, tag byte, row untoldRow) error {
	key := key8(tag, uint64(ino))
	_, waits, err := c.tx.Get(key)
	if err != nil {
		return err
	}
	if !waits {
		c.st.untold++
	}
	return c.set(key, row.append(tag))
}

// meet gives a directory of another group, made before accounts, the row that says
// what its home has taken in of it, unless it has one.
func (c *change) meet(ino, dir dfs.Ino) error {
	row, err := readAbsorbed(c.tx, ino, dir)
	if err != nil || row != nil {
		return err
	}
	return c.set(absorbedKey(ino, dir), (&absorbedRow{count: 1}).append(nil))
}

// settleForeign counts the names of an inode of another group in a directory of
// this one. With each new one the directory begins anew to take in what the inode
// counts, since the inode's group, which makes the names of an inode one after the
// other, does so too. Shares of different transactions may be carried out here in
// another order: what comes of them is the same.
func (c *change) settleForeign(m naming) error {
	key := absorbedKey(m.ino, m.dir)
	row, err := readAbsorbed(c.tx, m.ino, m.dir)
	if err != nil {
		return err
	}
	fresh := row == nil
	if fresh {
		row = &absorbedRow{}
	}
	more, less := uint64(max(m.delta, 0)), uint64(max(-m.delta, 0))
	if more > 0 || row.count <= less {
		if err := c.tell(m.dir, sums{}, row.sums); err != nil {
			return err
		}
		row.sums, row.seq = sums{}, 0
	}
	switch {
	case more > 0:
		row.count += more
		if c.txn != (holder{}) { // else a one-sided mkdir: the child's group does not know this version
			row.since = max(row.since, c.version)
		}
		c.counted()
		return c.set(key, row.append(nil))
	case less < row.count:
		row.count -= less
		return c.set(key, row.append(nil))
	case fresh: // a directory that was made before accounts and has told nothing
		return nil
	}
	return c.delete(key)
}
