package raftgroup

import (
	"encoding/binary"
	"errors"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"
)

// Reader reads one group's part of the state store. Keys are relative to the
// group. Returned slices are the caller's.
type Reader interface {
	// Get returns the value of key, or nil and false when there is none.
	Get(key []byte) ([]byte, bool, error)

	// Scan calls fn for each key in [lower, upper) in order until fn returns
	// false or an error. A nil upper means the end of the group. The slices
	// are valid only inside fn.
	Scan(lower, upper []byte, fn func(key, value []byte) (bool, error)) error
}

// Tx is what a state machine sees while it applies one entry: reads see the
// writes of this and every earlier entry. Writes become visible to others, and
// durable, together with the applied index.
type Tx interface {
	Reader
	Set(key, value []byte) error
	Delete(key []byte) error
}

type pebbleReader interface {
	Get(key []byte) ([]byte, closer, error)
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

type closer = interface{ Close() error }

type pebbleBatch struct{ *pebble.Batch }

func (b pebbleBatch) Get(key []byte) ([]byte, closer, error) { return b.Batch.Get(key) }

type pebbleDB struct{ pebble.Reader }

func (d pebbleDB) Get(key []byte) ([]byte, closer, error) { return d.Reader.Get(key) }

// view is a Reader over keys below a prefix.
type view struct {
	r      pebbleReader
	prefix []byte
}

// NewReader returns a Reader of the keys below prefix in a Pebble database or
// snapshot.
func NewReader(r pebble.Reader, prefix []byte) Reader {
	return &view{r: pebbleDB{r}, prefix: prefix}
}

func (v *view) key(k []byte) []byte {
	return append(append(make([]byte, 0, len(v.prefix)+len(k)), v.prefix...), k...)
}

func (v *view) Get(key []byte) ([]byte, bool, error) {
	val, c, err := v.r.Get(v.key(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	out := append(make([]byte, 0, len(val)), val...)
	return out, true, c.Close()
}

func (v *view) Scan(lower, upper []byte, fn func(key, value []byte) (bool, error)) (err error) {
	end := prefixEnd(v.prefix)
	if upper != nil {
		end = v.key(upper)
	}
	it, err := v.r.NewIter(&pebble.IterOptions{LowerBound: v.key(lower), UpperBound: end})
	if err != nil {
		return err
	}
	defer closeInto(&err, it)
	for ok := it.First(); ok; ok = it.Next() {
		more, err := fn(it.Key()[len(v.prefix):], it.Value())
		if err != nil || !more {
			return err
		}
	}
	return it.Error()
}

// prefixEnd returns the first key past every key that starts with p, nil when
// there is none.
func prefixEnd(p []byte) []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			end := append([]byte(nil), p[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}

// batchTx is a Tx over a batch. That of applyTx gets its index, which costs each
// write a place in a list and each read a look there, only when it is needed: for
// a scan, or a read of what was written unread.
type batchTx struct {
	view
	b      *pebble.Batch
	db     *pebble.DB          // while the batch has no index: what is read
	unread map[uint64]struct{} // likewise: hashes of the keys that the batch has and rows has not

	// rows holds what the batch was asked for, as it is now: every entry of a batch
	// asks for the same few rows first, and writes some of them again.
	rows map[string]*row
	// late lists rows that the batch has yet to be given by flush. With deferred, all
	// that were asked for are late: what a hundred entries write is written once.
	late     []*row
	deferred bool

	// writes sums a hash of each write, so that it does not depend on the
	// order in which a state machine writes different keys.
	writes uint64
}

// row is what a batchTx knows of a key.
type row struct {
	key   []byte // whole
	value []byte // its own
	there bool
	late  bool // the batch does not have it yet
}

// NewTx returns a Tx that reads and writes below prefix through an indexed
// batch. The caller commits the batch.
func NewTx(b *pebble.Batch, prefix []byte) Tx { return newTx(b, prefix) }

func newTx(b *pebble.Batch, prefix []byte) *batchTx {
	return &batchTx{view: view{r: pebbleBatch{b}, prefix: prefix}, b: b, rows: map[string]*row{}}
}

// applyTx returns a Tx for many entries, whose batch the caller commits after a
// flush, and closes.
func applyTx(db *pebble.DB, prefix []byte) *batchTx {
	return &batchTx{
		view: view{r: pebbleDB{db}, prefix: prefix}, b: db.NewBatch(), db: db,
		unread: map[uint64]struct{}{}, rows: map[string]*row{}, deferred: true,
	}
}

// index gives the batch its index.
func (t *batchTx) index() error {
	if t.db == nil {
		return nil
	}
	b := t.db.NewIndexedBatch()
	err := firstError(b.Apply(t.b, nil), t.b.Close())
	t.b, t.r = b, pebbleBatch{b}
	t.db, t.unread = nil, nil
	return err
}

// note remembers a key that is written unread.
func (t *batchTx) note(key []byte) {
	if t.db != nil {
		t.unread[xxhash.Sum64(key)] = struct{}{}
	}
}

func (t *batchTx) Get(key []byte) ([]byte, bool, error) {
	r := t.rows[string(key)]
	if r == nil {
		if len(t.unread) > 0 {
			if _, ok := t.unread[xxhash.Sum64(key)]; ok {
				if err := t.index(); err != nil {
					return nil, false, err
				}
			}
		}
		val, ok, err := t.view.Get(key)
		if err != nil {
			return nil, false, err
		}
		r = &row{key: t.key(key), value: val, there: ok}
		t.rows[string(key)] = r
	}
	if !r.there {
		return nil, false, nil
	}
	return append(make([]byte, 0, len(r.value)), r.value...), true, nil
}

func (t *batchTx) Scan(lower, upper []byte, fn func(key, value []byte) (bool, error)) error {
	if err := firstError(t.flush(), t.index()); err != nil {
		return err
	}
	return t.view.Scan(lower, upper, fn)
}

func (t *batchTx) Set(key, value []byte) error {
	t.writes += hashWrite(1, key, value)
	r := t.rows[string(key)]
	if r == nil {
		t.note(key)
		return t.b.Set(t.key(key), value, nil)
	}
	r.value, r.there = append(r.value[:0], value...), true
	return t.changed(r)
}

func (t *batchTx) Delete(key []byte) error {
	t.writes += hashWrite(2, key, nil)
	r := t.rows[string(key)]
	if r == nil {
		t.note(key)
		return t.b.Delete(t.key(key), nil)
	}
	r.there = false
	return t.changed(r)
}

// changed has the batch given a row, now or once.
func (t *batchTx) changed(r *row) error {
	if !t.deferred {
		return t.write(r)
	}
	if !r.late {
		r.late = true
		t.late = append(t.late, r)
	}
	return nil
}

func (t *batchTx) write(r *row) error {
	if r.there {
		return t.b.Set(r.key, r.value, nil)
	}
	return t.b.Delete(r.key, nil)
}

// flush gives the batch what is late.
func (t *batchTx) flush() error {
	for _, r := range t.late {
		if err := t.write(r); err != nil {
			return err
		}
		r.late = false
	}
	t.late = t.late[:0]
	return nil
}

func hashWrite(op byte, key, value []byte) uint64 {
	var head [1 + binary.MaxVarintLen64]byte
	head[0] = op
	n := 1 + binary.PutUvarint(head[1:], uint64(len(key)))
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(head[:n])
	_, _ = d.Write(key)
	_, _ = d.Write(value)
	return d.Sum64()
}
