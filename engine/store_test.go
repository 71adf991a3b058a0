package engine

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestPutGetDeleteReopen(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 3)
	for n := range uint64(40) {
		mustPut(t, s, n, int(n)*977+1, 3)
	}
	mustDelete(t, s, 5, 3)
	check := func() {
		t.Helper()
		for n := range uint64(40) {
			if n == 5 {
				_, err := read(t, s, n)
				wantKind(t, err, dfs.NotExist)
				continue
			}
			wantBlock(t, s, n, int(n)*977+1)
		}
	}
	check()
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	check()
	if st := s.Stats(); st.Blocks != 39 || st.Tombstones != 1 || st.State != StateOK {
		t.Errorf("%d blocks, %d tombstones, %s", st.Blocks, st.Tombstones, st.State)
	}
	if err := checkStore(s); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	mustClose(t, s)
	wantKind(t, s.Put(t.Context(), putRequest(1, 1, 3)), dfs.Unavailable)
	_, err := read(t, s, 1)
	wantKind(t, err, dfs.Unavailable)
}

func TestReadRanges(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 1)
	defer mustClose(t, s)
	const size = 2*dfs.ChunkSize + 100
	mustPut(t, s, 1, size, 1)
	whole := content(1, size)
	for _, c := range []struct {
		off, n     uint32
		first, end int
	}{
		{0, 1, 0, dfs.ChunkSize}, {dfs.ChunkSize, 1, 1, 2 * dfs.ChunkSize}, {2*dfs.ChunkSize + 99, 50, 2, size},
		{dfs.ChunkSize - 1, 2, 0, 2 * dfs.ChunkSize}, {0, 1 << 31, 0, size}, {size, 10, 0, 0}, {5, 0, 0, 0},
	} {
		r, err := s.Get(t.Context(), blockID(1), 0, c.off, c.n)
		if err != nil {
			t.Fatal(err)
		}
		if want := whole[min(c.end, c.first*dfs.ChunkSize):c.end]; r.First != c.first || !bytes.Equal(r.Data, want) {
			t.Errorf("%d+%d: chunk %d, %d bytes, want %d", c.off, c.n, r.First, len(r.Data), len(want))
		}
		if r.Epoch != 1 || r.Info.Length != size {
			t.Errorf("epoch %d, length %d", r.Epoch, r.Info.Length)
		}
		r.Release()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, blockID(1), 0, 0, 1)
	wantKind(t, err, dfs.Deadline)
}

// TestReadHint: a read from the start of a block carries its hint, and one that
// finds the record's header damaged says so and serves the bytes.
func TestReadHint(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	defer mustClose(t, s)
	const size = 3*dfs.ChunkSize - 100
	req := putRequest(1, size, 1)
	if err := s.Put(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	get := func(offset, length uint32) *Read {
		t.Helper()
		r, err := s.Get(t.Context(), req.ID, 0, offset, length)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Release()
		if !bytes.Equal(r.Data, req.Payload[r.First*dfs.ChunkSize:][:len(r.Data)]) {
			t.Fatalf("wrong bytes from %d", offset)
		}
		return &Read{Hint: r.Hint, HeaderLost: r.HeaderLost, First: r.First}
	}
	for _, c := range []struct {
		offset, length uint32
		hint           dfs.Hint
	}{
		{0, 1, req.Hint}, {0, size, req.Hint}, {dfs.ChunkSize - 1, 2, req.Hint}, {dfs.ChunkSize, 1, dfs.Hint{}}, {size, 1, dfs.Hint{}},
	} {
		if r := get(c.offset, c.length); r.Hint != c.hint || r.HeaderLost {
			t.Errorf("read %d from %d: %+v", c.length, c.offset, r)
		}
	}
	p := fileBytes(t, fs, "segments/"+segmentName(1))
	p[pageSize+batchHeaderLen+90] ^= 1 // in the hint
	if r := get(0, size); r.Hint != (dfs.Hint{}) || !r.HeaderLost {
		t.Errorf("with a damaged header: %+v", r)
	}
	if list := s.Damage(); len(list) != 1 || list[0].ID != req.ID {
		t.Errorf("%+v", list)
	}
	if err := s.Put(t.Context(), req); err != nil { // the same bytes mend it
		t.Fatal(err)
	}
	if r := get(0, size); r.Hint != req.Hint || len(s.Damage()) != 0 {
		t.Errorf("mended: %+v, %+v", r, s.Damage())
	}
}

func TestPutRefusesBadRequests(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 1)
	defer mustClose(t, s)
	for _, c := range []struct {
		name   string
		change func(*PutRequest)
		kind   dfs.Kind
	}{
		{"no PG", func(r *PutRequest) { r.ID.PG = 0 }, dfs.Invalid},
		{"unknown PG", func(r *PutRequest) { r.ID.PG = 77; r.Info = describe(r.ID, 0, r.Payload) }, dfs.Stale},
		{"counter", func(r *PutRequest) { r.ID.Counter = 1 << 48 }, dfs.Invalid},
		{"shard", func(r *PutRequest) { r.Shard = dfs.MaxShards }, dfs.Invalid},
		{"length", func(r *PutRequest) { r.Info.Length++ }, dfs.Invalid},
		{"short payload", func(r *PutRequest) { r.Payload = r.Payload[1:] }, dfs.Invalid},
		{"checksum", func(r *PutRequest) { r.Payload[7]++ }, dfs.Corrupt},
		{"another block's bytes", func(r *PutRequest) { r.ID.Counter++ }, dfs.Corrupt},
		{"too big", func(r *PutRequest) {
			r.Payload = make([]byte, 250<<10)
			r.Info = describe(r.ID, 0, r.Payload)
		}, dfs.TooLarge},
	} {
		req := putRequest(1, 5000, 1)
		c.change(&req)
		if err := s.Put(t.Context(), req); dfs.KindOf(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if st := s.Stats(); st.Blocks != 0 || st.QueueDepth != 0 || st.QueueBytes != 0 {
		t.Errorf("%+v", st)
	}
}

func TestShardsAreDifferentBlocks(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 1)
	defer mustClose(t, s)
	for shard := range uint8(3) {
		p := content(uint64(shard), 100)
		req := PutRequest{ID: blockID(1), Shard: shard, Epoch: 1, Info: describe(blockID(1), shard, p), Payload: p}
		if err := s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), DeleteRequest{ID: blockID(1), Shard: 1, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	for shard := range uint8(3) {
		e, err := s.Stat(blockID(1), shard)
		if err != nil || e.Tombstone != (shard == 1) {
			t.Errorf("shard %d: %+v, %v", shard, e, err)
		}
	}
}

func TestPutTwiceAndConflict(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	mustPut(t, s, 1, 5000, 1)
	before := s.Stats().Puts
	mustPut(t, s, 1, 5000, 1)
	wantKind(t, s.Put(t.Context(), putRequest(1, 5001, 1)), dfs.Exist)
	if st := s.Stats(); st.Puts != before || st.Conflicts != 1 {
		t.Errorf("%d puts, %d conflicts", st.Puts-before, st.Conflicts)
	}
	mustClose(t, s)
	s = openPGs(t, testOptions(fs), 2)
	defer mustClose(t, s)
	mustPut(t, s, 1, 5000, 2)
	if e, err := s.Stat(blockID(1), 0); err != nil || e.Epoch != 1 {
		t.Errorf("epoch %d, %v: a repeated put must keep the first epoch", e.Epoch, err)
	}
}

// blockingFS holds back data syncs of segments until it is told to go on.
type blockingFS struct {
	vfs.FS
	hold chan struct{} // each sync takes a token; closed: all go on
}

type blockingFile struct {
	vfs.File
	fs *blockingFS
}

func (f *blockingFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	if _, ok := parseSegmentName(f.PathBase(name)); !ok || err != nil {
		return file, err
	}
	return blockingFile{file, f}, nil
}

func (f blockingFile) SyncData() error {
	<-f.fs.hold
	return f.File.SyncData()
}

// TestRepeatedPutWaitsForTheFirst: equal bytes are acknowledged only once the
// earlier record is durable.
func TestRepeatedPutWaitsForTheFirst(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &blockingFS{vfs.NewMem(), make(chan struct{})}
		s := openPGs(t, testOptions(fs), 1)
		var wg sync.WaitGroup
		done := make([]bool, 4)
		for i := range done {
			wg.Go(func() {
				if i < 3 {
					if err := s.Put(t.Context(), putRequest(1, 5000, 1)); err != nil {
						t.Error(err)
					}
				} else if err := s.Put(t.Context(), putRequest(1, 5001, 1)); err == nil {
					t.Error("both contents were accepted")
				}
				done[i] = true
			})
			synctest.Wait()
		}
		if done[0] || done[1] || done[2] || !done[3] {
			t.Errorf("answered before the sync: %v", done)
		}
		// The deadline of a caller does not end a put that was admitted.
		raised := false
		wg.Go(func() {
			if err := s.SetEpochs(5, fences(5)); err != nil {
				t.Error(err)
			}
			raised = true
		})
		synctest.Wait()
		if raised {
			t.Error("SetEpochs did not wait for an append under an older epoch")
		}
		if err := s.Put(t.Context(), putRequest(2, 100, 4)); dfs.KindOf(err) != dfs.Stale {
			t.Errorf("a put under an old epoch while SetEpochs waits: %v", err)
		}
		close(fs.hold)
		wg.Wait()
		if st := s.Stats(); st.Puts != 1 || s.MapEpoch() != 5 {
			t.Errorf("%d puts, epoch %d", st.Puts, s.MapEpoch())
		}
		mustClose(t, s)
	})
}

func TestConcurrentPutsShareSyncs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		counting := &countingFS{FS: vfs.NewMem()}
		fs := &blockingFS{counting, make(chan struct{})}
		s := openPGs(t, testOptions(fs), 1)
		var wg sync.WaitGroup
		for n := range uint64(16) {
			wg.Go(func() { mustPut(t, s, n, 1000, 1) })
			synctest.Wait() // the first is in its sync, the others wait
		}
		if st := s.Stats(); st.QueueDepth != 16 || st.SyncAge == 0 && st.WriteAge == 0 {
			t.Errorf("%+v", st)
		}
		before := counting.syncs.Load()
		close(fs.hold)
		wg.Wait()
		if n := counting.syncs.Load() - before; n > 2 {
			t.Errorf("16 puts took %d syncs", n)
		}
		if st := s.Stats(); st.Batches != 2 || st.Puts != 16 {
			t.Errorf("%d batches, %d puts", st.Batches, st.Puts)
		}
		mustClose(t, s)
	})
}

// TestFirstMemTables: Pebble's first memtables are small, and many of them are
// no reason to wait for a flush that it does not begin yet.
func TestFirstMemTables(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := testOptions(vfs.NewMem())
		o.MemTableSize, o.SegmentSize, o.Capacity = 8<<20, 8<<20, 1<<30
		o.CheckpointBytes = 1 << 30
		s := openPGs(t, o, 1)
		var work sync.WaitGroup
		for w := range uint64(32) {
			work.Go(func() {
				for n := range uint64(400) {
					mustDelete(t, s, w<<32|n, 1)
				}
			})
		}
		work.Wait()
		mustClose(t, s)
	})
}

func TestFullQueueHoldsBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &blockingFS{vfs.NewMem(), make(chan struct{})}
		o := testOptions(fs)
		o.MaxQueueBytes = 3 * minQueueCost
		s := openPGs(t, o, 1)
		var wg sync.WaitGroup
		for n := range uint64(3) {
			wg.Go(func() { mustPut(t, s, n, 10, 1) })
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantKind(t, s.Put(ctx, putRequest(9, 10, 1)), dfs.Deadline)
		wg.Go(func() { mustPut(t, s, 10, 100<<10, 1) }) // bigger than the whole queue: it waits to be alone
		synctest.Wait()
		close(fs.hold)
		wg.Wait()
		if st := s.Stats(); st.Puts != 4 || st.QueueBytes != 0 {
			t.Errorf("%+v", st)
		}
		mustClose(t, s)
	})
}

func TestEpochRule(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	wantKind(t, s.Put(t.Context(), putRequest(1, 10, 9)), dfs.Stale) // before the map was read
	for _, c := range []struct {
		mapEpoch dfs.Epoch
		newest   dfs.Epoch
		kind     dfs.Kind // of SetEpochs; Other: none
	}{{5, 4, dfs.Other}, {4, 4, dfs.Stale}, {6, 7, dfs.Invalid}, {5, 5, dfs.Other}, {8, 3, dfs.Other}} {
		if err := s.SetEpochs(c.mapEpoch, fences(c.newest)); dfs.KindOf(err) != c.kind {
			t.Errorf("map %d, PG %d: %v", c.mapEpoch, c.newest, err)
		}
	}
	wantKind(t, s.Put(t.Context(), putRequest(1, 10, 4)), dfs.Stale) // a fence never goes back
	wantKind(t, s.Delete(t.Context(), DeleteRequest{ID: blockID(1), Epoch: 4}), dfs.Stale)
	mustPut(t, s, 1, 10, 5)
	refill := putRequest(2, 10, 2)
	refill.Refill = true
	if err := s.Put(t.Context(), refill); err != nil {
		t.Fatal(err)
	}
	if e, _ := s.Stat(blockID(2), 0); e.Epoch != 2 {
		t.Errorf("a refill's epoch became %d", e.Epoch)
	}
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	defer mustClose(t, s)
	if s.MapEpoch() != 8 {
		t.Errorf("map epoch %d after a restart", s.MapEpoch())
	}
	wantKind(t, s.Put(t.Context(), putRequest(3, 10, 8)), dfs.Stale)
}

func TestTombstonesAndRefill(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 5)
	defer mustClose(t, s)
	refill := func(n uint64, e dfs.Epoch) error {
		r := putRequest(n, 100, e)
		r.Refill = true
		return s.Put(t.Context(), r)
	}
	mustDelete(t, s, 1, 5) // of an unknown block
	wantKind(t, s.Put(t.Context(), putRequest(1, 100, 5)), dfs.Stale)
	if err := refill(1, 3); err != nil {
		t.Error(err)
	}
	if e, err := s.Stat(blockID(1), 0); err != nil || !e.Tombstone || e.Epoch != 5 {
		t.Errorf("%+v, %v: a refill brought a deleted block back", e, err)
	}
	if err := s.SetEpochs(6, fences(6)); err != nil {
		t.Fatal(err)
	}
	mustDelete(t, s, 1, 6) // stamped anew
	writes := s.Stats().Deletes
	mustDelete(t, s, 1, 6)
	if err := s.Delete(t.Context(), DeleteRequest{ID: blockID(1), Epoch: 4, Refill: true}); err != nil {
		t.Error(err)
	}
	if e, _ := s.Stat(blockID(1), 0); e.Epoch != 6 || s.Stats().Deletes != writes {
		t.Errorf("epoch %d, %d more writes", e.Epoch, s.Stats().Deletes-writes)
	}
	if list, _, err := s.ScanEpochs(blockID(1).PG, 5, 7, nil, 10); err != nil || len(list) != 1 || !list[0].Tombstone {
		t.Errorf("%+v, %v", list, err)
	}
	if list, _, err := s.ScanEpochs(blockID(1).PG, 6, 7, nil, 10); err != nil || len(list) != 0 {
		t.Errorf("bounds are exclusive: %+v, %v", list, err)
	}
}

func TestListsRefuseBadCursors(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 1)
	defer mustClose(t, s)
	_, _, err := s.Inventory(1, []byte("zzz"), 10)
	wantKind(t, err, dfs.Invalid)
	_, _, err = s.ScanEpochs(1, 0, 9, nil, 0)
	wantKind(t, err, dfs.Invalid)
	if list, next, err := s.ScanEpochs(1, 9, 3, nil, 10); list != nil || next != nil || err != nil {
		t.Error(list, next, err)
	}
}

func TestIdentity(t *testing.T) {
	fs := vfs.NewMem()
	o := numberedOptions(fs)
	s := mustOpen(t, o)
	a, b := dfs.ClusterID{1}, dfs.ClusterID{2}
	if err := errors.Join(s.SetIdentity(a, 3, 4), s.SetIdentity(a, 3, 4)); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.SetIdentity(b, 3, 4), dfs.WrongCluster)
	wantKind(t, s.SetIdentity(a, 3, 5), dfs.Invalid)
	wantKind(t, s.SetIdentity(a, 0, 4), dfs.Invalid)
	mustClose(t, s)
	for start := range uint64(3) {
		s = mustOpen(t, o)
		want := Identity{Cluster: a, Node: 3, Store: 4, Incarnation: dfs.Incarnation{Mark: testMark, Start: testMark + 2 + start}}
		if s.Identity() != want {
			t.Errorf("%+v, want %+v", s.Identity(), want)
		}
		mustClose(t, s)
	}
}

// TestLineage: an offer is on the disk when OfferStart returns, whatever happens
// then; starts that offer nothing leave no trace; an accepted one ends them all.
func TestLineage(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := numberedOptions(fs)
	var offered []uint64
	s := mustOpen(t, o)
	crash := func() {
		t.Helper()
		o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
		fs = o.FS.(*vfs.MemFS)
		mustClose(t, s) // on the old one
		s = mustOpen(t, o)
		if got := s.Lineage(); !slices.Equal(got.Offered, offered) {
			t.Errorf("the directory knows %x, offered were %x", got, offered)
		}
	}
	for range 8 {
		if err := errors.Join(s.OfferStart(), s.OfferStart()); err != nil {
			t.Fatal(err)
		}
		offered = dfs.Lineage{Offered: offered}.Offer(s.Identity().Incarnation.Start).Offered
		crash()
		if len(offered) < 3 {
			crash()
		}
	}
	start := s.Identity().Incarnation.Start
	if err := errors.Join(s.OfferStart(), s.SetIdentity(dfs.ClusterID{1}, 3, 4), s.OfferStart()); err != nil {
		t.Fatal(err)
	}
	offered = nil
	crash()
	if got := s.Lineage().Accepted; got != start {
		t.Errorf("accepted %x, want %x", got, start)
	}
	mustClose(t, s)
}

func TestOpenRefuses(t *testing.T) {
	write := func(fs vfs.FS, name string, p []byte) {
		t.Helper()
		f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(fs vfs.FS)
		o     func(*Options)
		kind  dfs.Kind
		text  string
	}{
		{"foreign files", func(fs vfs.FS) { _ = fs.Remove("/disk/store/STORE"); write(fs, "/disk/store/photo.jpg", []byte("x")) }, nil, dfs.Invalid, "holds no store"},
		{"STORE removed", func(fs vfs.FS) { _ = fs.Remove("/disk/store/STORE"); _ = fs.RemoveAll("/disk/store/index") }, nil, dfs.Corrupt, "it was a store"},
		{"STORE damaged", func(fs vfs.FS) { write(fs, "/disk/store/STORE", make([]byte, 2*slotLen)) }, nil, dfs.Corrupt, "both copies"},
		{"another store's segment", func(fs vfs.FS) {
			h := segmentHeader{mark: 99, segment: 1, size: 256 << 10}
			write(fs, "/disk/store/segments/"+segmentName(1), h.page())
		}, nil, dfs.Invalid, "0000000000000063"},
		{"no room", func(vfs.FS) {}, func(o *Options) { o.Capacity = 1 << 20 }, dfs.Invalid, "reserve"},
		{"capacity not known", func(vfs.FS) {}, func(o *Options) { o.Capacity = 0 }, dfs.Invalid, "must be given"},
		{"segment size", func(vfs.FS) {}, func(o *Options) { o.SegmentSize = 5000 }, dfs.Invalid, "5000"},
		{"no mark", func(vfs.FS) {}, func(o *Options) { o.NewMark = nil }, dfs.Invalid, "NewMark"},
	} {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		mustPut(t, s, 1, 100, 1)
		mustClose(t, s)
		c.spoil(fs)
		o := testOptions(fs)
		if c.o != nil {
			c.o(&o)
		}
		if _, err := Open(o); dfs.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestOpenRefusesUnknownVersions(t *testing.T) {
	resum := func(p []byte, n int) { // of a header of n bytes whose checksum is its end
		p[4] = formatVersion + 1
		sum := checksum(p[:n-4])
		p[n-4], p[n-3], p[n-2], p[n-1] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	}
	for _, c := range []struct {
		file  string
		spoil func(p []byte)
	}{
		{"segments/" + segmentName(1), func(p []byte) { resum(p, segmentHeaderLen) }},
		{"segments/" + segmentName(1), func(p []byte) { resum(p[pageSize:], batchHeaderLen) }},
		{"STORE", func(p []byte) {
			for _, q := range [][]byte{p[:slotLen], p[slotLen:]} {
				q[4]++
				sum := slotSum(q, int(q[6])<<8|int(q[7]))
				q[20], q[21], q[22], q[23] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
			}
		}},
	} {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		mustPut(t, s, 1, 100, 1)
		mustClose(t, s)
		if err := fs.RemoveAll("/disk/store/index"); err != nil {
			t.Fatal(err)
		}
		p, err := fs.UnsafeGetFileDataBuffer("/disk/store/" + c.file)
		if err != nil {
			t.Fatal(err)
		}
		c.spoil(p)
		_, err = Open(testOptions(fs))
		wantKind(t, err, dfs.Unsupported)
	}
}

func TestDoubleOpenNamesTheHolder(t *testing.T) {
	for _, o := range []Options{testOptions(vfs.NewMem()), testOptions(vfs.Default)} {
		if o.FS == vfs.Default {
			o.Dir = t.TempDir() + "/store"
		}
		s := mustOpen(t, o)
		_, err := Open(o)
		wantKind(t, err, dfs.Unavailable)
		if !strings.Contains(err.Error(), "4711") {
			t.Errorf("no PID in %q", err)
		}
		mustClose(t, s)
		mustClose(t, mustOpen(t, o))
	}
}

// TestRealDisk runs the whole way once on the operating system's files.
func TestRealDisk(t *testing.T) {
	o := testOptions(vfs.Default)
	o.Dir, o.ReserveBytes = t.TempDir()+"/a/store", 1<<20
	s := openPGs(t, o, 1)
	var wg sync.WaitGroup
	for w := range uint64(8) {
		wg.Go(func() {
			for n := range uint64(20) {
				mustPut(t, s, w*100+n, 9000, 1)
			}
		})
	}
	wg.Wait()
	mustClose(t, s)
	if err := vfs.Default.RemoveAll(o.Dir + "/index"); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	defer mustClose(t, s)
	for w := range uint64(8) {
		for n := range uint64(20) {
			wantBlock(t, s, w*100+n, 9000)
		}
	}
	if err := checkStore(s); err != nil {
		t.Error(err)
	}
	f, err := PrepareFile(vfs.Default, o.Dir+"/raw", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 1<<20 {
		t.Error(info, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
