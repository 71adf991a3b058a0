package engine

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func scrubOptions(fs vfs.FS) Options {
	o := testOptions(fs)
	o.ScrubPeriod = time.Hour
	return o
}

// TestScrub: rot that nobody reads is found within a period, also what was in
// the cursor's way before a restart; a bad tombstone is written again.
func TestScrub(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := scrubOptions(fs)
		s := openPGs(t, o, 1)
		for n := range uint64(50) {
			mustPut(t, s, n, 30_000, 1)
		}
		mustDelete(t, s, 49, 1)
		place := func(n uint64) (string, *row) {
			w, err := s.index.get(blockKey(blockID(n), 0))
			if err != nil || w == nil {
				t.Fatal(err)
			}
			return dir + segmentsName + "/" + segmentName(w.segment), w
		}
		time.Sleep(2 * time.Hour)
		first := s.Scrub()
		if first.Pass < 2 || s.Stats().ScrubFound != 0 {
			t.Fatalf("%+v", first)
		}
		name, payload := place(10)
		flip(t, fs, name, payload.payloadAt()+17)
		name, header := place(20)
		flip(t, fs, name, header.offset+50)
		name, tombstone := place(49)
		flip(t, fs, name, tombstone.offset+50)
		time.Sleep(2 * time.Hour)
		if st := s.Stats(); st.ScrubFound != 3 {
			t.Errorf("%+v", st)
		}
		select {
		case <-s.DamageFound():
		default:
			t.Error("nobody was told")
		}
		if again := s.Scrub(); again.Pass <= first.Pass {
			t.Errorf("%+v, before %+v", again, first)
		}
		wantDamage := func() {
			t.Helper()
			list := s.Damage()
			if len(list) != 2 || !list[0].Named || !list[1].Named || list[0].ID == list[1].ID {
				t.Fatalf("%+v", list)
			}
			for _, d := range list {
				if d.ID != blockID(10) && d.ID != blockID(20) {
					t.Errorf("%+v", d)
				}
			}
		}
		wantDamage()
		if _, now := place(49); now.offset == tombstone.offset && now.segment == tombstone.segment || now.kind != kindTombstone || now.epoch != 1 {
			t.Errorf("the tombstone: %+v", now)
		}
		_, err := read(t, s, 10)
		wantKind(t, err, dfs.Corrupt)
		wantBlock(t, s, 20, 30_000) // its bytes are sound
		mustClose(t, s)

		// It is known after a restart, and not found anew.
		pass := s.Scrub()
		s = openPGs(t, o, 1)
		wantDamage()
		time.Sleep(time.Second)
		if now := s.Scrub(); now.Pass < pass.Pass {
			t.Errorf("%+v, before the restart %+v", now, pass)
		}
		for _, n := range []uint64{10, 20} {
			r := putRequest(n, 30_000, 1)
			r.Refill = true
			if err := s.Put(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if list := s.Damage(); len(list) != 0 {
			t.Errorf("%+v", list)
		}
		for n := range uint64(49) {
			wantBlock(t, s, n, 30_000)
		}
		if err := checkStore(s); err != nil {
			t.Error(err)
		}
		mustClose(t, s)
		if err := fs.RemoveAll(dir + indexName); err != nil {
			t.Fatal(err)
		}
		s = openPGs(t, o, 1)
		if _, err := read(t, s, 49); dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("the deleted block: %v", err)
		}
		for n := range uint64(49) {
			wantBlock(t, s, n, 30_000)
		}
		mustClose(t, s)
	})
}

// TestScrubGoesOn: a pass that was interrupted goes on where it was.
func TestScrubGoesOn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := scrubOptions(fs)
		o.ScrubRate = scrubLeast
		o.Capacity, o.SegmentSize = 256<<20, 4<<20
		s := openPGs(t, o, 1)
		for n := range uint64(200) {
			mustPut(t, s, n, 100_000, 1)
		}
		time.Sleep(time.Hour + 30*time.Minute) // the second pass has begun
		var before Scrub
		for before = s.Scrub(); before.Began.IsZero() || before.Read == 0; before = s.Scrub() {
			time.Sleep(time.Second)
		}
		mustClose(t, s)
		s = mustOpen(t, o)
		time.Sleep(time.Second)
		after := s.Scrub()
		if after.Pass != before.Pass || !after.Began.Equal(before.Began) || after.Read < before.Read {
			t.Errorf("%+v, before the restart %+v", after, before)
		}
		time.Sleep(time.Minute)
		if done := s.Scrub(); done.Pass != before.Pass+1 {
			t.Errorf("%+v: the pass does not end", done)
		}
		mustClose(t, s)
	})
}

// TestScrubWithoutFiles: a process that can open no more files learns nothing of
// the records in segments that are closed. The scrub goes on when it can.
func TestScrubWithoutFiles(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var armed atomic.Bool
		var hits atomic.Int64
		o := scrubOptions(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && op.Kind == errorfs.OpOpen && strings.HasSuffix(op.Path, segmentName(1)) {
				hits.Add(1)
				return syscall.EMFILE
			}
			return nil
		})))
		s := openPGs(t, o, 1)
		for n := range uint64(20) {
			mustPut(t, s, n, 30_000, 1)
		}
		mustDelete(t, s, 0, 1)
		armed.Store(true)
		for closed := false; !closed; time.Sleep(time.Millisecond) { // the scrub may be reading it
			var err error
			if closed, err = s.segs.get(1).closeFile(); err != nil {
				t.Fatal(err)
			}
		}
		pass := s.Scrub().Pass
		time.Sleep(2 * time.Hour)
		if n := hits.Load(); n == 0 || n > 200 {
			t.Errorf("it was opened %d times", n)
		}
		if list := s.Damage(); len(list) != 0 || s.Stats().ScrubFound != 0 {
			t.Errorf("sound blocks are listed: %+v", list)
		}
		armed.Store(false)
		time.Sleep(2 * time.Hour)
		if now := s.Scrub(); now.Pass <= pass || now.Found != 0 {
			t.Errorf("%+v, before it was pass %d", now, pass)
		}
		mustClose(t, s)
	})
}
