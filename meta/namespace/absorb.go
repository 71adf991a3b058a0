package namespace

import (
	"bytes"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// MaxAbsorb is how many inodes one entry takes in, or notes as told.
const MaxAbsorb = 256

// What an inode counts for in a home of another group is told in three steps, by the
// leader of its own one:
//
//	inode's group                      home's group
//	  in the queue of reports
//	  read: sums at version v ────────▶ absorb: the difference to what was taken in goes
//	                                    to the home's account
//	  reported: unless it has  ◀─────── taken in
//	  changed since v, out of the queue
//
// The sums are absolute and v grows: a report that is lost, late or repeated does no
// harm. It counts only while the home names the inode by the very name, made at
// version since, that the inode's group knows of.

// checkAbsorptions refuses what no leader sends.
func (c *change) checkAbsorptions(list []*wire.Absorption, own bool) error {
	if !c.accounts() {
		return refuse(dfs.Unsupported, "group %v is of feature level %d, and keeps no accounts", c.st.group, c.st.level)
	}
	if len(list) > MaxAbsorb {
		return refuse(dfs.TooLarge, "accounts of %d inodes: at most %d", len(list), MaxAbsorb)
	}
	for _, a := range list {
		here, there := dfs.Ino(a.GetIno()), dfs.Ino(a.GetDir())
		if !own {
			here, there = there, here
		}
		if here.Group() != c.st.group || there.Group() == c.st.group || !sumsOf(a).fits() {
			return refuse(dfs.Invalid, "inode %v does not report %v to directory %v", dfs.Ino(a.GetIno()), a.GetSums(), dfs.Ino(a.GetDir()))
		}
	}
	return nil
}

func sumsOf(a *wire.Absorption) sums {
	s := a.GetSums()
	return sums{s.GetBytes(), s.GetFiles(), s.GetDirectories()}
}

// absorb takes in what inodes of another group count for in directories of this one.
func (c *change) absorb(op *wire.AbsorbOp) (out outcome, err error) {
	if err := c.checkAbsorptions(op.GetOf(), false); err != nil {
		return outcome{}, err
	}
	for _, a := range op.Of {
		taken, err := c.absorbOne(a)
		if err != nil {
			return outcome{}, err
		}
		if taken {
			out.absorbed = append(out.absorbed, a.Ino)
		}
	}
	return out, nil
}

// absorbOne reports whether a directory has taken in so much of an inode, or what it
// counted for later.
func (c *change) absorbOne(a *wire.Absorption) (bool, error) {
	ino, dir := dfs.Ino(a.Ino), dfs.Ino(a.Dir)
	row, err := readAbsorbed(c.tx, ino, dir)
	if err != nil {
		return false, err
	}
	if row == nil && a.Since == 0 { // a directory that was made before accounts has a child row alone
		child, err := readChild(c.tx, ino)
		if err != nil {
			return false, err
		}
		if child != nil && child.parent == dir {
			row = &absorbedRow{count: 1}
		}
	}
	switch {
	case row == nil || row.since != dfs.Version(a.Since):
		return false, nil
	case row.seq >= dfs.Version(a.Seq):
		return true, nil
	}
	now := sumsOf(a)
	if err := c.tell(dir, now, row.sums); err != nil {
		return false, err
	}
	row.seq, row.sums = dfs.Version(a.Seq), now
	return true, c.set(absorbedKey(ino, dir), row.append(nil))
}

// reported takes inodes out of the queue of reports that have been taken in as they
// are.
func (c *change) reported(op *wire.ReportedOp) error {
	if err := c.checkAbsorptions(op.GetOf(), true); err != nil {
		return err
	}
	for _, a := range op.Of {
		if err := c.reportedOne(a); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) reportedOne(a *wire.Absorption) error {
	ino, dir, seq := dfs.Ino(a.Ino), dfs.Ino(a.Dir), dfs.Version(a.Seq)
	key := reportKey(ino)
	v, waits, err := c.tx.Get(key)
	if err != nil || !waits {
		return err
	}
	n, err := readInode(c.tx, ino)
	switch {
	case err != nil:
		return err
	case n == nil:
		return broken("inode %v waits to be reported, and does not exist", ino)
	case n.isDir():
		acc, err := c.account(ino)
		if err == nil && acc.elsewhere && n.parent == dir && acc.since == dfs.Version(a.Since) && acc.changed <= seq {
			acc.queued, acc.dirty = false, true
		}
		return err
	}
	row, err := decodeUntold(key, v)
	if err != nil || n.home != dir || row.changed > seq {
		return err
	}
	name, err := readName(c.tx, ino, dir)
	if err != nil || name.since != dfs.Version(a.Since) {
		return err
	}
	c.st.untold--
	return c.delete(key)
}

// Untold is what a group has to do for its accounts.
type Untold struct {
	Tally   bool               // an entry may move something up, or count something
	Reports []*wire.Absorption // what other groups do not know, in the order of inodes; each group a page
	More    bool               // there are more reports, past the last one
}

// ReadUntold returns what a group has to do for its accounts, with up to limit
// reports past an inode.
func ReadUntold(r raftgroup.Reader, past dfs.Ino, limit int) (Untold, error) {
	st, err := readState(r)
	if err != nil || st == nil || st.untold == 0 && !st.counting {
		return Untold{}, err
	}
	out := Untold{Tally: st.counting}
	err = scan(r, []byte{tagUntold}, []byte{tagUntold + 1}, func([]byte, []byte) (bool, error) {
		out.Tally = true
		return false, nil
	})
	if err != nil {
		return Untold{}, err
	}
	keys, _, err := gather(r, reportKey(past+1), []byte{tagReport + 1}, limit)
	if err != nil {
		return Untold{}, err
	}
	out.More = len(keys) == limit
	for _, key := range keys {
		a, err := report(r, st, keyIno(bytes.Clone(key)))
		if err != nil {
			return Untold{}, err
		}
		out.Reports = append(out.Reports, a)
	}
	return out, nil
}

// report is what an inode counts for in its home, as of the group's last change.
func report(r raftgroup.Reader, st *state, ino dfs.Ino) (*wire.Absorption, error) {
	n, err := readInode(r, ino)
	if err == nil && n == nil {
		err = broken("inode %v waits to be reported, and does not exist", ino)
	}
	if err != nil {
		return nil, err
	}
	a := &wire.Absorption{Ino: uint64(ino), Seq: uint64(st.version)}
	var s sums
	if n.isDir() {
		acc, err := readAccount(r, ino)
		if err == nil && acc == nil {
			err = broken("directory %v waits to be reported, and has no account", ino)
		}
		if err != nil {
			return nil, err
		}
		a.Dir, a.Since, s = uint64(n.parent), uint64(acc.since), acc.counts()
	} else {
		name, err := readName(r, ino, n.home)
		if err != nil {
			return nil, err
		}
		a.Dir, a.Since, s = uint64(n.home), uint64(name.since), n.counts()
	}
	a.Sums = s.wire()
	return a, nil
}

func (s sums) wire() *wire.Sums {
	return &wire.Sums{Bytes: s.bytes, Files: s.files, Directories: s.dirs}
}

// below answers what lies below a directory, nil where that is not kept.
func (v view) below(n *inode) (*wire.Sums, error) {
	if v.st.level < LevelAccounts || !n.isDir() {
		return nil, nil
	}
	a, err := readAccount(v.r, n.ino)
	if err != nil {
		return nil, err
	}
	out := &wire.Sums{}
	if a != nil {
		out = a.below.wire()
	}
	out.Settled = v.st.untold == 0 && !v.st.counting
	return out, nil
}
