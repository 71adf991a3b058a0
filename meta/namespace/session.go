package namespace

import (
	"encoding/binary"
	"math/bits"
	"sort"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// fenceRow says which sessions are fenced: every one up to highest that is in
// no live range.
type fenceRow struct {
	highest dfs.SessionID
	index   uint64 // of the control group's state that it was read from
	live    []byte // 16 bytes a range: first and last session. Invariant: in order, apart, within 1..highest
}

const fenceRange = 16

func (f *fenceRow) ranges() int { return len(f.live) / fenceRange }

func (f *fenceRow) at(i int) (first, last dfs.SessionID) {
	p := f.live[i*fenceRange:]
	return dfs.SessionID(binary.BigEndian.Uint64(p)), dfs.SessionID(binary.BigEndian.Uint64(p[8:]))
}

// find returns the first range that ends at s or later.
func (f *fenceRow) find(s dfs.SessionID) int {
	return sort.Search(f.ranges(), func(i int) bool {
		_, last := f.at(i)
		return last >= s
	})
}

// covers reports whether every session from first to last is live.
func (f *fenceRow) covers(first, last dfs.SessionID) bool {
	for i := f.find(first); i < f.ranges(); i++ {
		a, b := f.at(i)
		if a > first {
			return false
		}
		if b >= last {
			return true
		}
		first = b + 1
	}
	return false
}

func (f *fenceRow) fenced(s dfs.SessionID) bool {
	return s <= f.highest && !f.covers(s, s)
}

func (f *fenceRow) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(f.highest))
	b = binary.BigEndian.AppendUint64(b, f.index)
	return append(b, f.live...)
}

func readFence(r raftgroup.Reader) (*fenceRow, error) {
	key := []byte{tagFence}
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return &fenceRow{}, err
	}
	d := decode(v)
	f := &fenceRow{highest: dfs.SessionID(d.u64()), index: d.u64(), live: d.rest()}
	if len(f.live)%fenceRange != 0 {
		d.bad = true
	}
	return f, d.done(key)
}

// fence refuses for ever every session up to the entry's highest that is not
// live. What was fenced stays fenced.
func (c *change) fence(op *wire.FenceOp) error {
	old, err := readFence(c.tx)
	if err != nil {
		return err
	}
	if c.st.unfenced { // what ended before the reading is in this one or in the old one
		c.st.unfenced, c.wrote = false, true
	}
	if op.GetIndex() <= old.index {
		return nil // an older or equal reading of the control group
	}
	f := &fenceRow{highest: dfs.SessionID(op.Highest), index: op.Index}
	if f.highest < old.highest || f.highest > dfs.MaxSessionID {
		return refuse(dfs.Invalid, "fence up to session %d after one up to %d", f.highest, old.highest)
	}
	end := dfs.SessionID(0)
	for _, r := range op.Live {
		first, count := dfs.SessionID(r.GetFirst()), r.GetCount()
		if first <= end || first > f.highest || count == 0 || count > uint64(f.highest-first)+1 {
			return refuse(dfs.Invalid, "live sessions from %d, %d of them: want ranges in order up to %d", first, count, f.highest)
		}
		end = first + dfs.SessionID(count) - 1
		if first <= old.highest && !old.covers(first, min(end, old.highest)) {
			return refuse(dfs.Invalid, "sessions %d to %d: one of them is fenced already", first, end)
		}
		f.live = binary.BigEndian.AppendUint64(f.live, uint64(first))
		f.live = binary.BigEndian.AppendUint64(f.live, uint64(end))
	}
	if err := c.set([]byte{tagFence}, f.append(nil)); err != nil {
		return err
	}
	return c.sweep(f)
}

// sweep deletes rows of fenced sessions, MaxSweep at the most, and notes
// whether some are left. Nothing depends on their absence: the fence refuses
// the session whatever its rows say.
func (c *change) sweep(f *fenceRow) error {
	left := MaxSweep
	marked, err := c.dead(f, tagMark, left)
	if err != nil {
		return err
	}
	for _, s := range marked {
		if err := c.delete(markKey(s)); err != nil {
			return err
		}
	}
	if left -= len(marked); left == 0 {
		return c.set([]byte{tagSweep}, []byte{rowFormat})
	}
	dead, err := c.dead(f, tagFloor, left)
	if err != nil {
		return err
	}
	for _, s := range dead {
		for _, tag := range []byte{tagLease, tagReply, tagFloor} { // the floor last: it leads back to the others
			prefix := key8(tag, uint64(s))
			keys, _, err := gather(c.tx, prefix, after(prefix), left)
			if err != nil {
				return err
			}
			for _, k := range keys {
				if err := c.delete(k); err != nil {
					return err
				}
			}
			if left -= len(keys); left == 0 {
				return c.set([]byte{tagSweep}, []byte{rowFormat})
			}
		}
	}
	return c.endSweep()
}

// dead lists fenced sessions that have a row of a tag, limit of them at the most.
func (c *change) dead(f *fenceRow, tag byte, limit int) (out []dfs.SessionID, err error) {
	err = scan(c.tx, []byte{tag}, []byte{tag + 1}, func(key, _ []byte) (bool, error) {
		if s := dfs.SessionID(binary.BigEndian.Uint64(key[1:])); f.fenced(s) {
			out = append(out, s)
		}
		return len(out) < limit, nil
	})
	return out, err
}

func (c *change) endSweep() error {
	_, ok, err := c.tx.Get([]byte{tagSweep})
	if err != nil || !ok {
		return err
	}
	return c.delete([]byte{tagSweep})
}

// goOnSweeping sweeps when an earlier entry has left rows.
func (c *change) goOnSweeping() error {
	_, ok, err := c.tx.Get([]byte{tagSweep})
	if err != nil || !ok {
		return err
	}
	f, err := readFence(c.tx)
	if err != nil {
		return err
	}
	return c.sweep(f)
}

// floorRow is what a group knows of a session's commands.
type floorRow struct {
	floor uint64 // every command below it has been answered
	last  uint64 // no later command has an answer here, so none is looked for
}

func (f floorRow) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, rowFormat), f.floor)
	return binary.BigEndian.AppendUint64(b, f.last)
}

func decodeFloor(key, value []byte) (f floorRow, err error) {
	d := decode(value)
	f.floor, f.last = d.u64(), d.u64()
	return f, d.done(key)
}

// readFloor returns a session's row, and whether the group knows the session.
func readFloor(r raftgroup.Reader, s dfs.SessionID) (f floorRow, known bool, err error) {
	key := floorKey(s)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return floorRow{}, false, err
	}
	f, err = decodeFloor(key, v)
	return f, true, err
}

// writeFloor writes the session's row.
func (c *change) writeFloor(f floorRow) error {
	return c.tx.Set(floorKey(c.session), f.append(nil))
}

// fewReplies is up to how many sequence numbers are deleted one by one, present
// or not, rather than looked for.
const fewReplies = 64

// forget drops the replies below a session's new floor. There
// are none below the old floor: to look there would be to walk over the marks
// that the store keeps of what was deleted.
func (c *change) forget(old, floor uint64) error {
	if old > 0 && floor-old <= fewReplies {
		for seq := old; seq < floor; seq++ {
			if err := c.tx.Delete(replyKey(c.session, seq)); err != nil {
				return err
			}
		}
		return nil
	}
	keys, _, err := gather(c.tx, replyKey(c.session, old), replyKey(c.session, floor), 2*MaxUnacknowledged)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := c.tx.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// leaseChunk is how many inode numbers one lease row covers.
const leaseChunk = 256

// leaseRow is a bitmap of the numbers of a chunk that are leased to a session
// and unused.
type leaseRow [leaseChunk / 8]byte

func readLease(r raftgroup.Reader, s dfs.SessionID, chunk uint64) (l leaseRow, err error) {
	key := leaseKey(s, chunk)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return l, err
	}
	return decodeLease(key, v)
}

func decodeLease(key, v []byte) (l leaseRow, err error) {
	d := decode(v)
	copy(l[:], d.take(len(l)))
	return l, d.done(key)
}

func (l *leaseRow) has(local uint64) bool { return l[local%leaseChunk/8]&(1<<(local%8)) != 0 }
func (l *leaseRow) flip(local uint64)     { l[local%leaseChunk/8] ^= 1 << (local % 8) }

func (l *leaseRow) count() (n int) {
	for _, b := range l {
		n += bits.OnesCount8(b)
	}
	return n
}

func (c *change) writeLease(chunk uint64, l leaseRow) error {
	if l == (leaseRow{}) {
		return c.delete(leaseKey(c.session, chunk))
	}
	return c.set(leaseKey(c.session, chunk), append([]byte{rowFormat}, l[:]...))
}

// leaseInos gives the session numbers that nobody else will get: as many as it
// asks for, or as it may hold.
func (c *change) leaseInos(op *wire.LeaseInosOp) (outcome, error) {
	if op.GetCount() == 0 || op.Count > MaxLeased {
		return outcome{}, refuse(dfs.Invalid, "lease of %d inode numbers: want 1 to %d", op.GetCount(), MaxLeased)
	}
	held := 0
	prefix := key8(tagLease, uint64(c.session))
	err := scan(c.tx, prefix, after(prefix), func(key, value []byte) (bool, error) {
		l, err := decodeLease(key, value)
		held += l.count()
		return true, err
	})
	if err != nil {
		return outcome{}, err
	}
	n := min(uint64(op.Count), uint64(max(MaxLeased-held, 0)))
	if n == 0 {
		return outcome{}, refuse(dfs.Busy, "session %d holds %d unused inode numbers", c.session, held)
	}
	first := c.st.next
	if !c.numbersLeft(n) {
		return outcome{}, refuse(dfs.NoSpace, "group %v has no inode numbers left", c.st.group)
	}
	c.st.next += n
	for local := first; local < first+n; {
		chunk := local / leaseChunk
		l, err := readLease(c.tx, c.session, chunk)
		if err != nil {
			return outcome{}, err
		}
		for ; local < first+n && local/leaseChunk == chunk; local++ {
			l.flip(local)
		}
		if err := c.writeLease(chunk, l); err != nil {
			return outcome{}, err
		}
	}
	return outcome{leased: []*wire.InoRange{{First: uint64(dfs.MakeIno(c.st.group, first)), Count: n}}}, nil
}

// numbersLeft reports whether n more inode numbers can be given out.
func (c *change) numbersLeft(n uint64) bool { return c.st.next+n <= 1<<48 }

// pick gives out one number for the group's own use.
func (c *change) pick() (dfs.Ino, error) {
	if !c.numbersLeft(1) {
		return 0, refuse(dfs.NoSpace, "group %v has no inode numbers left", c.st.group)
	}
	ino := dfs.MakeIno(c.st.group, c.st.next)
	c.st.next++
	return ino, nil
}

// leased returns the row of a number that the session may use, and refuses any
// other number.
func (c *change) leased(ino dfs.Ino) (leaseRow, error) {
	if ino.Group() != c.st.group {
		return leaseRow{}, refuse(dfs.Invalid, "inode number %v is not of group %v", ino, c.st.group)
	}
	l, err := readLease(c.tx, c.session, ino.Local()/leaseChunk)
	if err == nil && !l.has(ino.Local()) {
		err = refuse(dfs.Invalid, "inode number %v is not leased to session %d, or used", ino, c.session)
	}
	return l, err
}

// use takes a number out of the lease row that holds it.
func (c *change) use(ino dfs.Ino, l leaseRow) error {
	l.flip(ino.Local())
	return c.writeLease(ino.Local()/leaseChunk, l)
}
