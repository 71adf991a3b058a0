package namespace

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// pair is an inode and a directory that names it.
type pair struct{ ino, dir dfs.Ino }

func pairOf(key []byte) pair { return pair{keyIno(key), keyDir(key)} }

func comparePairs(a, b pair) int { return cmp.Or(cmp.Compare(a.ino, b.ino), cmp.Compare(a.dir, b.dir)) }

// ledgers is what a group's rows say of accounts.
type ledgers struct {
	accounts map[dfs.Ino]*account
	absorbed map[pair]*absorbedRow
	names    map[pair]nameRow
	named    map[pair]uint64 // entries of this group that have been counted
	untold   map[dfs.Ino]untoldRow
	reports  map[dfs.Ino]untoldRow
}

// checkAccounts verifies what holds at any moment, whatever waits: that an account
// is the sum of what all that has its home there has told, that what has not told
// everything stands in its queue, and that names are counted right.
func (c *checker) checkAccounts() {
	l := &c.ledgers
	*l = ledgers{map[dfs.Ino]*account{}, map[pair]*absorbedRow{}, map[pair]nameRow{}, map[pair]uint64{}, map[dfs.Ino]untoldRow{}, map[dfs.Ino]untoldRow{}}
	counted := c.readLedgers()
	if c.st.level < LevelAccounts {
		if len(l.accounts)+len(l.absorbed)+len(l.names)+len(l.untold)+len(l.reports) > 0 || c.st.counting || c.st.untold > 0 {
			c.fault("accounts in a group of feature level %d", c.st.level)
		}
		return
	}
	c.countNames(counted)
	want := map[dfs.Ino]sums{}
	waiting := 0
	for _, ino := range slices.Sorted(maps.Keys(c.inodes)) {
		n := c.inodes[ino]
		home, told, waits := n.home, n.counts(), byte(0)
		if n.isDir() {
			home, told, waits = c.checkAccount(n)
		} else {
			waits = c.checkHome(n)
			if row, ok := l.untold[ino]; ok {
				told.bytes = row.told
			}
		}
		_, untold := l.untold[ino]
		_, report := l.reports[ino]
		if untold != (waits == tagUntold) || report != (waits == tagReport) {
			c.fault("inode %v, home %v: in the queues %v, %v, want %c", ino, home, untold, report, waits)
		}
		if waits != 0 {
			waiting++
		}
		if home != 0 && home.Group() == c.st.group && ino != dfs.RootIno {
			want[home] = want[home].plus(told)
		}
	}
	if waits := len(l.untold) + len(l.reports); waits != waiting || uint64(waits) != c.st.untold {
		c.fault("%d rows in the queues of accounts, %d inodes that wait, %d counted", waits, waiting, c.st.untold)
	}
	for p, row := range l.absorbed {
		want[p.dir] = want[p.dir].plus(row.sums)
	}
	for dir := range l.accounts {
		want[dir] = want[dir].plus(sums{})
	}
	for _, dir := range slices.Sorted(maps.Keys(want)) {
		below := sums{}
		if a := l.accounts[dir]; a != nil {
			below = a.below
		}
		if n := c.inodes[dir]; n == nil || !n.isDir() || below != want[dir] {
			c.fault("what is in directory %v has told %+v, its account says %+v", dir, want[dir], below)
		}
	}
}

// readLedgers collects the rows, and returns how far counting has come.
func (c *checker) readLedgers() countRow {
	l := &c.ledgers
	c.each(tagAccount, 9, func(key, value []byte) error {
		a, err := decodeAccount(key, value)
		if err == nil {
			l.accounts[a.dir] = a
		}
		return err
	})
	c.each(tagTaken, 17, func(key, value []byte) error {
		row, err := decodeAbsorbed(key, value)
		if err == nil {
			l.absorbed[pairOf(key)] = row
		}
		return err
	})
	c.each(tagNames, 17, func(key, value []byte) error {
		row, err := decodeName(key, value)
		if err == nil {
			l.names[pairOf(key)] = row
		}
		return err
	})
	for tag, into := range map[byte]map[dfs.Ino]untoldRow{tagUntold: l.untold, tagReport: l.reports} {
		c.each(tag, 9, func(key, value []byte) (err error) {
			ino, row := keyIno(key), untoldRow{}
			if n := c.inodes[ino]; n == nil || !n.isDir() {
				row, err = decodeUntold(key, value)
			} else if !bytes.Equal(value, []byte{rowFormat}) {
				err = damaged(key, "malformed value")
			}
			into[ino] = row
			return err
		})
	}
	counting := 0
	var row countRow
	c.each(tagCount, 1, func(key, value []byte) (err error) {
		counting++
		row, err = decodeCount(key, value)
		return err
	})
	if c.st.counting != (counting == 1) {
		c.fault("the group counts what it had: %v, and has %d rows that say how far it has come", c.st.counting, counting)
	}
	return row
}

// countNames counts the entries that are of account.
func (c *checker) countNames(counted countRow) {
	if counted.raised > c.st.version {
		c.fault("the group counts what it had at %d: version %d", counted.raised, c.st.version)
	}
	c.each(tagDentry, 10, func(key, value []byte) error {
		e, err := decodeDentry(key, value)
		if err != nil {
			return err
		}
		known := !c.st.counting || e.version > counted.raised || bytes.Compare(key, counted.next) < 0
		if known && e.ino.Group() != c.st.group && c.ledgers.absorbed[pair{e.ino, keyIno(key)}] == nil {
			c.fault("directory %v names inode %v and has no account of it", keyIno(key), e.ino)
		}
		if known || e.typ == wire.FileType_DIR {
			c.ledgers.named[pair{e.ino, keyIno(key)}]++
		}
		return nil
	})
	for p, row := range c.ledgers.absorbed {
		if p.ino.Group() == c.st.group || p.dir.Group() != c.st.group || c.ledgers.named[p] != row.count {
			c.fault("directory %v has an account of inode %v for %d names, and has %d", p.dir, p.ino, row.count, c.ledgers.named[p])
		}
	}
}

// checkAccount verifies a directory's account and returns its home, what that has
// taken in, and in which queue the directory has to stand.
func (c *checker) checkAccount(n *inode) (home dfs.Ino, told sums, waits byte) {
	a := c.ledgers.accounts[n.ino]
	switch {
	case a == nil && n.ino != dfs.RootIno && !c.st.counting:
		c.fault("directory %v has no account", n.ino)
		return n.parent, sums{}, 0
	case a == nil:
		return n.parent, sums{}, 0
	case n.ino == dfs.RootIno && (a.queued || a.elsewhere), n.ino != dfs.RootIno && a.elsewhere != (n.parent.Group() != c.st.group),
		a.elsewhere && a.changed > c.st.version, a.queued && !a.elsewhere && a.told == a.counts():
		c.fault("directory %v in %v has the account %+v", n.ino, n.parent, a)
	}
	return n.parent, a.taken(), a.waits()
}

// checkHome verifies the home of a file and its names, and returns in which queue
// it stands, if that is the right one.
func (c *checker) checkHome(n *inode) (waits byte) {
	if n.home == 0 {
		if !c.st.counting {
			c.fault("inode %v counts in no directory", n.ino)
		}
	} else if n.home.Group() == c.st.group && c.ledgers.named[pair{n.ino, n.home}] == 0 {
		c.fault("inode %v counts in directory %v, which does not name it", n.ino, n.home)
	}
	kept := n.home != 0 && (n.nlink > 1 || n.home.Group() != c.st.group)
	if _, ok := c.ledgers.names[pair{n.ino, n.home}]; ok != kept {
		c.fault("inode %v, %d links, home %v: its names are counted: %v", n.ino, n.nlink, n.home, ok)
	}
	if _, ok := c.ledgers.untold[n.ino]; ok && n.home != 0 && n.home.Group() == c.st.group {
		return tagUntold
	}
	if _, ok := c.ledgers.reports[n.ino]; ok && n.home != 0 && n.home.Group() != c.st.group {
		return tagReport
	}
	return 0
}

// quiet reports whether nothing waits in any group: no accounts, no transactions, no intents.
func (t tree) quiet() (accounts, names bool) {
	accounts, names = true, true
	for _, c := range t.groups {
		if c.st == nil || c.st.level < LevelAccounts || len(c.parts) > 0 || len(c.intents) > 0 {
			return false, false
		}
		if c.st.counting || c.st.untold > 0 {
			accounts = false
		}
		names = names && !c.st.counting
	}
	return accounts, names
}

// checkAccounts verifies what holds between groups: how often each names the files of
// others and, when nothing waits, that all accounts are what a walk would find.
func (t tree) checkAccounts(fault func(g dfs.GroupID, format string, args ...any)) {
	exact, names := t.quiet()
	if !names {
		return
	}
	walked := map[dfs.Ino]sums{}
	for _, g := range slices.Sorted(maps.Keys(t.groups)) {
		c := t.groups[g]
		for _, p := range slices.SortedFunc(maps.Keys(c.ledgers.absorbed), comparePairs) {
			row := c.ledgers.absorbed[p]
			n := t.inode(p.ino)
			if n == nil {
				fault(g, "directory %v has an account of %v, which does not exist", p.dir, p.ino)
				continue
			}
			other := t.groups[p.ino.Group()].ledgers
			since, now, home := other.names[p].since, n.counts(), n.home
			if n.isDir() {
				a := other.accounts[p.ino]
				if a == nil {
					continue // said before
				}
				since, now, home = a.since, a.counts(), n.parent
			} else if other.names[p].count != row.count {
				fault(g, "directory %v names %v %d times, its group knows of %d", p.dir, p.ino, row.count, other.names[p].count)
			}
			if since != row.since {
				fault(g, "directory %v has an account of %v since %d, its group since %d", p.dir, p.ino, row.since, since)
			}
			if home != p.dir {
				now = sums{}
			}
			if exact && row.sums != now {
				fault(g, "directory %v has taken in %+v of %v, which counts for %+v", p.dir, row.sums, p.ino, now)
			}
		}
		for p, row := range c.ledgers.names {
			if p.dir.Group() != g {
				if other := t.groups[p.dir.Group()]; other == nil || other.ledgers.named[p] != row.count {
					fault(g, "%v has %d names in %v, which does not have so many", p.ino, row.count, p.dir)
				}
			} else if c.ledgers.named[p] != row.count {
				fault(g, "%v has %d names in %v, and %d are counted", p.ino, c.ledgers.named[p], p.dir, row.count)
			}
		}
		if exact {
			t.walk(c, walked)
		}
	}
	for dir, s := range walked {
		n := t.inode(dir)
		if n == nil {
			continue
		}
		if a := t.groups[dir.Group()].ledgers.accounts[dir]; a == nil && s != (sums{}) || a != nil && a.below != s {
			fault(dir.Group(), "%+v lies below directory %v, its account says %+v", s, dir, a)
		}
	}
}

// walk adds what each inode of a group is to all directories above it.
func (t tree) walk(c *checker, into map[dfs.Ino]sums) {
	for ino, n := range c.inodes {
		home, s := n.home, n.counts()
		if n.isDir() {
			into[ino] = into[ino].plus(sums{})
			home, s = n.parent, sums{dirs: 1}
		}
		for range MaxDepth {
			if up := t.inode(home); ino == dfs.RootIno || up == nil {
				break
			} else if into[home] = into[home].plus(s); home == dfs.RootIno {
				break
			} else {
				home = up.parent
			}
		}
	}
}

// keyDir is the directory in the key of a row about an inode and a directory.
func keyDir(key []byte) dfs.Ino { return dfs.Ino(binary.BigEndian.Uint64(key[9:])) }
