package engine

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestLateFailureOfARead: a read of a bad copy that ends after the copy was
// replaced has nothing to say of the good one. It would be listed as damaged for
// ever, since what is listed is not read by the scrub, and nothing replaces it.
func TestLateFailureOfARead(t *testing.T) {
	for _, c := range []struct {
		name    string
		replace func(t *testing.T, s *Store)
		want    dfs.Kind // of the late read; Other: it has the bytes
	}{
		{"repaired", func(t *testing.T, s *Store) { mustPut(t, s, 1, 3000, 1) }, dfs.Other},
		{"deleted", func(t *testing.T, s *Store) { mustDelete(t, s, 1, 1) }, dfs.NotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var bad atomic.Int64 // reads of segments that are still to fail
				held := make(chan struct{})
				o := testOptions(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
					if op.Kind != errorfs.OpFileReadAt || !strings.HasSuffix(op.Path, segmentSuffix) {
						return nil
					}
					switch n := bad.Add(-1); {
					case n == 1: // the first is slow
						<-held
						return errFault
					case n == 0:
						return errFault
					}
					return nil
				})))
				s := openPGs(t, o, 1)
				mustPut(t, s, 1, 3000, 1)
				time.Sleep(time.Minute) // the scrub has read it
				bad.Store(2)
				late := make(chan error)
				go func() {
					_, err := read(t, s, 1)
					late <- err
				}()
				synctest.Wait()
				_, err := read(t, s, 1)
				wantKind(t, err, dfs.Corrupt)
				c.replace(t, s)
				if list := s.Damage(); len(list) != 0 {
					t.Fatalf("%+v", list)
				}
				close(held)
				if err := <-late; dfs.KindOf(err) != c.want {
					t.Errorf("the late read: %v", err)
				}
				if list := s.Damage(); len(list) != 0 {
					t.Errorf("what was replaced is listed: %+v", list)
				}
				mustClose(t, s)
			})
		})
	}
}

// TestDamageBeyondTheList: more may be damaged than the list has room for. What
// the index alone knows of is replaced too, and not only said to be stored.
func TestDamageBeyondTheList(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		mustPut(t, s, 1, 3000, 1)
		time.Sleep(time.Minute)
		w, err := s.index.get(blockKey(blockID(1), 0))
		if err != nil {
			t.Fatal(err)
		}
		flip(t, fs, dir+segmentsName+"/"+segmentName(w.segment), w.payloadAt()+17)
		_, err = read(t, s, 1)
		wantKind(t, err, dfs.Corrupt)
		time.Sleep(time.Second) // the index knows
		closeSpoiled(t, s)

		s = openPGs(t, o, 1)
		s.damage.mu.Lock()
		clear(s.damage.named) // as if maxDamage others had been loaded before it
		s.damage.mu.Unlock()
		r := putRequest(1, 3000, 1)
		r.Refill = true
		if err := s.Put(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		wantBlock(t, s, 1, 3000)
		mustClose(t, s)
	})
}

// TestRefillOfAMissingSegment: blocks whose segment file is gone are lost, though
// the index knows them: good bytes that come for them are stored.
func TestRefillOfAMissingSegment(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := numberedOptions(fs)
		s := openPGs(t, o, 1)
		const n = 30
		for i := range uint64(n) {
			mustPut(t, s, i, 30_000, 1)
		}
		mustDelete(t, s, 0, 1)
		mustClose(t, s)
		if err := fs.Remove(dir + segmentsName + "/" + segmentName(1)); err != nil {
			t.Fatal(err)
		}
		s = openPGs(t, o, 1)
		if !s.DamagedUnnamed() {
			t.Error("the store takes itself for complete")
		}
		lost := 0
		for i := uint64(1); i < n; i++ {
			e, err := s.Stat(blockID(i), 0)
			if err != nil {
				t.Fatal(err)
			}
			r := putRequest(i, 30_000, 1)
			r.Refill = true
			if err := s.Put(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if e.Lost {
				lost++
			}
			wantBlock(t, s, i, 30_000)
		}
		if blocks := s.Stats().Blocks; lost < 5 || lost > 10 || blocks != n-1 {
			t.Errorf("%d blocks were lost, and there are %d", lost, blocks)
		}
		if e, err := s.Stat(blockID(0), 0); err != nil || !e.Tombstone || e.Lost {
			t.Errorf("%+v, %v", e, err)
		}
		if err := s.AcknowledgeDamage(); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		s = openPGs(t, o, 1)
		if s.DamagedUnnamed() {
			t.Error("it was filled again, and is incomplete")
		}
		mustClose(t, s)
	})
}

// TestMoreNamedDamageThanTheList: blocks that are known to be lost are named, however
// many they are: the store is complete but for these, after each start, and the
// scrub brings those to the list that found no place on it.
func TestMoreNamedDamageThanTheList(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := scrubOptions(vfs.NewMem())
		s := openPGs(t, o, 1)
		mustPut(t, s, 1, 3000, 1)
		err := s.index.update(func(c *change) error {
			for n := uint64(2); n < maxDamage+12; n++ {
				id := blockID(n)
				w := &row{kind: kindPut, flags: rowLost | rowUndecided, seq: n, epoch: 1, segment: 1, offset: int64(n) << 20}
				if err := c.apply(id, 0, w, false); err != nil {
					return err
				}
				if err := c.noteDamage(Damage{ID: id, Named: true, Segment: 1, Offset: w.offset, Reason: "lost"}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		closeSpoiled(t, s)
		s = openPGs(t, o, 1)
		if s.DamagedUnnamed() {
			t.Error("all of it is named")
		}
		if n := len(s.Damage()); n != maxDamage {
			t.Fatalf("%d are listed", n)
		}
		for _, d := range s.Damage()[:100] {
			if err := s.Delete(t.Context(), DeleteRequest{ID: d.ID, Epoch: 1}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Hour)
		if n := len(s.Damage()); n != maxDamage+10-100 {
			t.Errorf("%d are listed", n)
		}
		closeSpoiled(t, s)
	})
}
