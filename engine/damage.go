package engine

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// Damage is stored bytes that are lost or wrong.
type Damage struct {
	Named   bool // ID and Shard say which block it is
	ID      dfs.BlockID
	Shard   uint8
	Segment uint64
	Offset  int64 // in the segment
	Length  int64 // bytes
	Reason  string
}

// damageAcked marks an unnamed damage that the control group has been told of.
const (
	damageNamed = 1
	damageAcked = 2
)

func (d *Damage) encode() []byte {
	var flags byte
	if d.Named {
		flags = damageNamed
	}
	p := binary.BigEndian.AppendUint64([]byte{flags, d.Shard}, uint64(d.Length))
	return append(d.ID.Append(p), d.Reason...)
}

func decodeDamage(k, v []byte) (d Damage, acked bool, err error) {
	if len(k) != 17 || len(v) < 10+dfs.BlockIDLen {
		return d, false, dfs.Errorf(dfs.Corrupt, "read index", "damage row of %d and %d bytes", len(k), len(v))
	}
	b := binary.BigEndian
	d = Damage{
		Named: v[0]&damageNamed != 0, Shard: v[1], Segment: b.Uint64(k[1:]), Offset: int64(b.Uint64(k[9:])),
		Length: int64(b.Uint64(v[2:])), Reason: string(v[10+dfs.BlockIDLen:]),
	}
	d.ID, err = dfs.ParseBlockID(v[10 : 10+dfs.BlockIDLen])
	return d, v[0]&damageAcked != 0, err
}

// noteDamage keeps what a scan found, unless the same is noted already.
func (c *change) noteDamage(d Damage) error {
	key := damageKey(d.Segment, d.Offset)
	if _, closer, err := c.ix.db.Get(key); err == nil {
		return closer.Close()
	} else if err != pebble.ErrNotFound {
		return err
	}
	return c.b.Set(key, d.encode(), nil)
}

// damageList is what is known to be damaged now.
type damageList struct {
	// mu guards what follows. Maps have at most maxDamage entries each.
	mu       sync.Mutex
	named    map[string]Damage // by blockKey
	unnamed  []Damage
	fresh    []string // keys of named that the index does not know of yet
	overflow bool     // more was found than fits: some of it has no name here
}

// load reads what scans have found.
func (l *damageList) load(ix *index) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.named = map[string]Damage{}
	return ix.scan([]byte{damagePrefix}, []byte{damagePrefix + 1}, func(k, v []byte) error {
		d, acked, err := decodeDamage(k, v)
		switch {
		case err != nil:
			return err
		case d.Named && len(l.named) < maxDamage:
			l.named[string(blockKey(d.ID, d.Shard))] = d
		case d.Named: // its row says so too, and the scrub comes to it
		case !acked && len(l.unnamed) < maxDamage:
			l.unnamed = append(l.unnamed, d)
		case !acked:
			l.overflow = true
		}
		return nil
	})
}

// add notes a block that a read found damaged. When the list is full it is
// left out: the next read finds it again.
func (l *damageList) add(d Damage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(blockKey(d.ID, d.Shard))
	if _, ok := l.named[key]; !ok && len(l.named) < maxDamage {
		l.named[key] = d
		l.fresh = append(l.fresh, key)
	}
}

// takeFresh returns the damage that is to be kept over a restart.
func (l *damageList) takeFresh() []Damage {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Damage
	for _, key := range l.fresh {
		if d, ok := l.named[key]; ok {
			list = append(list, d)
		}
	}
	l.fresh = nil
	return list
}

// keepDamage has the index remember what reads have found, so that it is
// repaired even if nobody reads it again.
func (s *Store) keepDamage() error {
	if err := s.index.room(); err != nil {
		return err
	}
	list := s.damage.takeFresh()
	if len(list) == 0 {
		return nil
	}
	return s.index.update(func(c *change) error {
		for _, d := range list {
			if err := c.damaged(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// damaged notes in a block's row that its record is damaged, unless another
// has taken its place.
func (c *change) damaged(d Damage) error {
	key := blockKey(d.ID, d.Shard)
	w, err := c.row(key)
	if err != nil || w == nil || w.kind != kindPut || w.segment != d.Segment || w.offset != d.Offset || w.flags&rowLost != 0 {
		return err
	}
	next := *w
	next.flags |= rowDamaged
	c.rows[string(key)] = &next
	return cmp.Or(c.b.Set(key, next.encode(), nil), c.noteDamage(d))
}

func (l *damageList) has(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.named[key]
	return ok
}

// mended forgets a block that was stored anew or deleted, and reports whether
// it was on the list.
func (l *damageList) mended(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.named[key]
	delete(l.named, key)
	return ok
}

// forget takes back what add has noted.
func (l *damageList) forget(d Damage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(blockKey(d.ID, d.Shard))
	if have, ok := l.named[key]; ok && have.Segment == d.Segment && have.Offset == d.Offset {
		delete(l.named, key)
	}
}

func (l *damageList) all() (list []Damage, unnamed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list = slices.Clone(l.unnamed)
	for _, d := range l.named {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Damage) int {
		if a.Segment != b.Segment {
			return int(int64(a.Segment) - int64(b.Segment))
		}
		return int(a.Offset - b.Offset)
	})
	return list, l.overflow || len(l.unnamed) > 0
}

// Damage lists what is known to be damaged, at most 4,096 entries, in the
// order of its place.
func (s *Store) Damage() []Damage {
	list, _ := s.damage.all()
	return list
}

// DamageFound holds a token when a read or scrub has found damage since the
// token was taken.
func (s *Store) DamageFound() <-chan struct{} { return s.damageFound }

// DamagedUnnamed reports that records are lost and nobody can say which, or
// that the directory was rolled back: the store is complete through nothing.
// It stays so, over restarts too, until AcknowledgeDamage.
func (s *Store) DamagedUnnamed() bool {
	_, unnamed := s.damage.all()
	return unnamed || s.Identity().RolledBack
}

// AcknowledgeDamage forgets damage that has no name. It is called after the
// control group has recorded that the store is complete through nothing.
func (s *Store) AcknowledgeDamage() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	if err := s.ackRows(); err != nil {
		return err
	}
	s.identTurn.Lock()
	defer s.identTurn.Unlock()
	next := s.identity()
	if !next.rolledBack {
		return nil
	}
	next.rolledBack = false
	return s.writeIdent(next)
}

// ackRows marks the rows of unnamed damage, durably.
func (s *Store) ackRows() error {
	if err := s.failure(); err != nil {
		return err
	}
	s.index.turn <- struct{}{}
	defer func() { <-s.index.turn }()
	b := s.index.db.NewBatch()
	err := s.index.scan([]byte{damagePrefix}, []byte{damagePrefix + 1}, func(k, v []byte) error {
		if v[0]&(damageNamed|damageAcked) != 0 {
			return nil
		}
		v = slices.Clone(v)
		v[0] |= damageAcked
		return b.Set(k, v, nil)
	})
	if err != nil || b.Empty() {
		return err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return err
	}
	if err := s.index.checkpoint(); err != nil {
		return err
	}
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	s.damage.unnamed, s.damage.overflow = nil, false
	return nil
}
