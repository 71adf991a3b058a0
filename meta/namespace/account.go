package namespace

import (
	"encoding/binary"

	"dfsd/dfs"
	"dfsd/raftgroup"
)

// sums is what lies below a directory, or what an inode counts for in its home.
// The bytes are modulo 2^64: a file may say that it is as long as dfs.MaxFileSize.
type sums struct{ bytes, files, dirs uint64 }

func (s sums) plus(o sums) sums  { return sums{s.bytes + o.bytes, s.files + o.files, s.dirs + o.dirs} }
func (s sums) minus(o sums) sums { return sums{s.bytes - o.bytes, s.files - o.files, s.dirs - o.dirs} }

// fits reports whether the counts are some that a tree can have.
func (s sums) fits() bool { return s.files>>63 == 0 && s.dirs>>63 == 0 }

func (s sums) append(b []byte) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(b, s.bytes), s.files), s.dirs)
}

func (d *decoder) sums() sums { return sums{d.uvarint(), d.uvarint(), d.uvarint()} }

// counts is what a file or symlink counts for.
func (n *inode) counts() sums { return sums{bytes: uint64(n.size), files: 1} }

// account is what a directory knows of all that lies below it.
type account struct {
	dir   dfs.Ino
	below sums // Invariant: the sum of what all that has its home here has told

	// queued says that the directory counts for something else than it has told.
	queued    bool
	elsewhere bool // its home is in another group

	told           sums        // queued, and the home is in this group: what that has taken in
	since, changed dfs.Version // elsewhere: when the home became that (0: by a one-sided mkdir), when what it counts for last changed

	stored     []byte // the row as it was read; nil: there is none
	queue      byte   // tag of the queue in which it stands
	dirty      bool
	disappears bool
}

const (
	flagQueued    = 1
	flagElsewhere = 2
)

// counts is what the directory counts for in its home.
func (a *account) counts() sums { return a.below.plus(sums{dirs: 1}) }

// taken is what a home in this group has taken in of the directory.
func (a *account) taken() sums {
	if a.queued {
		return a.told
	}
	return a.counts()
}

// waits is the tag of the queue in which the directory has to stand, 0 for none.
func (a *account) waits() byte {
	switch {
	case !a.queued || a.disappears:
		return 0
	case a.elsewhere:
		return tagReport
	}
	return tagUntold
}

func (a *account) append(b []byte) []byte {
	var flags byte
	if a.queued {
		flags |= flagQueued
	}
	if a.elsewhere {
		flags |= flagElsewhere
	}
	b = a.below.append(append(b, rowFormat, flags))
	switch {
	case a.elsewhere:
		b = binary.BigEndian.AppendUint64(b, uint64(a.since))
		b = binary.BigEndian.AppendUint64(b, uint64(a.changed))
	case a.queued:
		b = a.told.append(b)
	}
	return b
}

func decodeAccount(key, v []byte) (*account, error) {
	if len(key) != 9 {
		return nil, damaged(key, "malformed key of an account")
	}
	d := decode(v)
	flags := d.u8()
	a := &account{dir: keyIno(key), queued: flags&flagQueued != 0, elsewhere: flags&flagElsewhere != 0, stored: v}
	a.below = d.sums()
	switch {
	case a.elsewhere:
		a.since, a.changed = dfs.Version(d.u64()), dfs.Version(d.u64())
	case a.queued:
		a.told = d.sums()
	}
	if flags > flagQueued|flagElsewhere || !a.below.fits() || !a.told.fits() {
		d.bad = true
	}
	a.queue = a.waits()
	return a, d.done(key)
}

// readAccount returns a directory's account, nil when there is none.
func readAccount(r raftgroup.Reader, dir dfs.Ino) (*account, error) {
	key := accountKey(dir)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodeAccount(key, v)
}

// untoldRow says that a file counts for something else than it has told.
type untoldRow struct {
	told    uint64      // its home is in this group: the size that this has taken in
	changed dfs.Version // it is in another one: when the size last changed
}

// untoldKey and reportKey are where a file or directory stands in a queue.
func untoldKey(ino dfs.Ino) []byte { return key8(tagUntold, uint64(ino)) }
func reportKey(ino dfs.Ino) []byte { return key8(tagReport, uint64(ino)) }

func accountKey(dir dfs.Ino) []byte { return key8(tagAccount, uint64(dir)) }

// decodeUntold reads a row of a file in either queue, decodeQueued one of a directory.
func decodeUntold(key, v []byte) (row untoldRow, err error) {
	d := decode(v)
	if key[0] == tagUntold {
		row.told = d.uvarint()
	} else {
		row.changed = dfs.Version(d.u64())
	}
	return row, d.done(key)
}

func (row untoldRow) append(tag byte) []byte {
	if tag == tagUntold {
		return binary.AppendUvarint([]byte{rowFormat}, row.told)
	}
	return binary.BigEndian.AppendUint64([]byte{rowFormat}, uint64(row.changed))
}

// readUntold returns a file's row in a queue, and whether there is one.
func readUntold(r raftgroup.Reader, key []byte) (row untoldRow, ok bool, err error) {
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return row, false, err
	}
	row, err = decodeUntold(key, v)
	return row, true, err
}

// nameRow counts the names that a file has in one directory. A file has such rows
// while it has more than one name that is counted, or its home is in another group.
type nameRow struct {
	since dfs.Version // of a directory of another group: of the transaction that made the last name
	count uint64      // Invariant: > 0
}

func nameKey(file, dir dfs.Ino) []byte { return key16(tagNames, uint64(file), uint64(dir)) }

func (n nameRow) append(b []byte) []byte {
	return binary.AppendUvarint(binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(n.since)), n.count)
}

func decodeName(key, v []byte) (nameRow, error) {
	d := decode(v)
	n := nameRow{dfs.Version(d.u64()), d.uvarint()}
	if len(key) != 17 || n.count == 0 {
		d.bad = true
	}
	return n, d.done(key)
}

// readName returns how often a file is named in a directory.
func readName(r raftgroup.Reader, file, dir dfs.Ino) (nameRow, error) {
	key := nameKey(file, dir)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nameRow{}, err
	}
	return decodeName(key, v)
}

// absorbedRow is what a directory of this group has taken in of an inode of another
// one that it names.
type absorbedRow struct {
	since dfs.Version // of the transaction that made the last name; 0: a one-sided mkdir
	seq   dfs.Version // of the inode's group when it counted for this
	count uint64      // names in this directory. Invariant: > 0
	sums  sums
}

func absorbedKey(ino, dir dfs.Ino) []byte { return key16(tagTaken, uint64(ino), uint64(dir)) }

func (a *absorbedRow) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(a.since))
	b = binary.BigEndian.AppendUint64(b, uint64(a.seq))
	return a.sums.append(binary.AppendUvarint(b, a.count))
}

func decodeAbsorbed(key, v []byte) (*absorbedRow, error) {
	d := decode(v)
	a := &absorbedRow{since: dfs.Version(d.u64()), seq: dfs.Version(d.u64()), count: d.uvarint(), sums: d.sums()}
	if len(key) != 17 || a.count == 0 || !a.sums.fits() {
		d.bad = true
	}
	return a, d.done(key)
}

func readAbsorbed(r raftgroup.Reader, ino, dir dfs.Ino) (*absorbedRow, error) {
	key := absorbedKey(ino, dir)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodeAbsorbed(key, v)
}

// countRow is how far a group has come that counts for the first time what it had
// before it kept accounts.
type countRow struct {
	raised dfs.Version // entries that are younger were counted when they were made
	next   []byte      // key from which on nothing has been looked at
}

func (r countRow) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(r.raised)), r.next...)
}

func decodeCount(key, v []byte) (countRow, error) {
	d := decode(v)
	row := countRow{raised: dfs.Version(d.u64()), next: d.rest()}
	if len(row.next) == 0 || row.next[0] != tagDentry && row.next[0] != tagInode {
		d.bad = true
	}
	return row, d.done(key)
}

func readCount(r raftgroup.Reader) (countRow, error) {
	key := []byte{tagCount}
	v, ok, err := r.Get(key)
	if err != nil {
		return countRow{}, err
	}
	if !ok {
		return countRow{}, broken("the group counts what it had, and has no row that says how far it has come")
	}
	return decodeCount(key, v)
}
