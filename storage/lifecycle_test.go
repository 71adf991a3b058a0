package storage

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

// TestStartsAreDurableBeforeTheyAreSent takes the power, in thought, while each
// registration arrives: the stores' disks hold the starts that are in it.
func TestStartsAreDurableBeforeTheyAreSent(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.newNode("a", 2)
		seen := 0
		c.plane.onRegs = func(req *wire.RegisterRequest) {
			for _, st := range req.Stores {
				known := false
				for _, fs := range a.fs {
					e, err := engine.Open(engine.Options{
						FS: fs.CrashClone(vfs.CrashCloneCfg{}), Dir: "store", SegmentSize: 512 << 10, CacheSize: 1 << 20, MemTableSize: 128 << 10,
						Capacity: 1 << 30, ReserveBytes: 4 << 20, NewMark: func() uint64 { return 1 },
					})
					if err != nil {
						t.Error(err)
						continue
					}
					known = known || e.Identity().Incarnation.Mark == st.Incarnation.Mark && e.Lineage().Holds(st.Incarnation.Start)
					if err := e.Close(); err != nil {
						t.Error(err)
					}
				}
				if !known {
					t.Errorf("start %x was sent and is on no disk", st.Incarnation.Start)
				}
				seen++
			}
		}
		a.run()
		a.ready()
		for range 3 {
			c.plane.setRefuse(dfs.Errorf(dfs.Unavailable, "register", "not now"))
			a.crash()
			a.run()
			time.Sleep(10 * time.Second)
			c.plane.setRefuse(nil)
			a.ready()
		}
		if seen < 2*7 {
			t.Errorf("%d stores were registered", seen)
		}
	})
}

func TestAnUnregisteredStoreReadsAndDeniesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0))
		id, data := c.block(1, 100_000)
		if err := c.putAll(id, data); err != nil {
			t.Fatal(err)
		}
		unknown, more := c.block(1, 100)
		_, _, err := c.get(a.store(0), unknown, 0, 0)
		wantKind(t, "an unknown block while complete", err, dfs.NotExist)

		a.crash()
		c.plane.setRefuse(dfs.Errorf(dfs.Unavailable, "register", "not now"))
		a.run()
		time.Sleep(10 * time.Second)
		c.holds(a.store(0), id, data)
		_, _, err = c.get(a.store(0), unknown, 0, 0)
		wantKind(t, "an unknown block before registration", err, dfs.Unknowable)
		wantKind(t, "a put before registration", c.put(a.store(0), unknown, e, more), dfs.Unavailable)
		wantKind(t, "a delete before registration", c.delete(a.store(0), id, e), dfs.Unavailable)
		_, err = c.conn(c.peer, a.store(0)).Scan(t.Context(), &wire.ScanRequest{Store: uint32(a.store(0)), Pg: 1, Before: uint64(e), Limit: 10})
		wantKind(t, "a scan before registration", err, dfs.Unavailable)
		if a.service.Ready() {
			t.Error("ready before registration")
		}
		c.plane.setRefuse(nil)
		a.ready()
		_, _, err = c.get(a.store(0), unknown, 0, 0)
		wantKind(t, "an unknown block after registration", err, dfs.NotExist)
		if err := c.put(a.store(0), unknown, e, more); err != nil {
			t.Error(err)
		}
	})
}

// After a restart the map that counts is one read linearizably: an epoch that
// was superseded meanwhile takes no write.
func TestARestartedStoreTakesNoWriteUnderAnOldMap(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 1)
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0), b.store(0))
		store := a.store(0)
		a.crash()
		e2 := c.plane.activate(t, 1, b.store(0))
		a.run()
		id, data := c.block(1, 1000)
		for range 200 { // from before the registration to after it
			if err := c.put(store, id, e, data); err == nil {
				t.Fatal("a put was acknowledged under a superseded epoch")
			}
			time.Sleep(5 * time.Millisecond)
		}
		a.ready()
		wantKind(t, "the old epoch", c.put(store, id, e, data), dfs.Stale)
		wantKind(t, "the new epoch, in which it does not act", c.put(store, id, e2, data), dfs.Stale)
	})
}

func TestRegistrationIsRefused(t *testing.T) {
	for _, kind := range []dfs.Kind{dfs.Stale, dfs.WrongCluster, dfs.Invalid} {
		t.Run(kind.Error(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				c.plane.setRefuse(dfs.Errorf(kind, "register", "no"))
				a := c.newNode("a", 1)
				a.run()
				eventually(t, "the service ends", func() bool { return a.service.Err() != nil })
				wantKind(t, "its error", a.service.Err(), kind)
				if n := c.plane.registrations(); n != 1 {
					t.Errorf("%d registrations", n)
				}
				if _, _, err := a.service.begin(t.Context()); dfs.KindOf(err) != dfs.Unavailable || !errors.Is(err, kind) {
					t.Errorf("requests are answered %v", err)
				}
			})
		})
	}
}

// A store that the cluster refuses, a copy of another one, has its own fate.
func TestARefusedStoreKeepsNoOtherOut(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.plane.refuses = func(st *wire.RegisterStore) error {
			if st.Incarnation.Mark%100 == 1 {
				return dfs.Errorf(dfs.Stale, "register store", "the data directory is a copy")
			}
			return nil
		}
		a := c.newNode("a", 3)
		a.run()
		copied := a.engines[1].Identity().Incarnation.Mark
		if err := a.engines[1].SetIdentity(c.plane.cluster, 2, 3); err != nil { // the number of the first
			t.Fatal(err)
		}
		a.service.stores[1].id.Store(3)
		a.ready()
		if err := a.service.Refused(); dfs.KindOf(err) != dfs.Stale || !strings.Contains(err.Error(), "is a copy") {
			t.Errorf("refused: %v", err)
		}
		if a.store(0) != 3 || len(c.plane.current().Stores) != 2 {
			t.Fatalf("the first store is %v, of %d", a.store(0), len(c.plane.current().Stores))
		}
		for i, store := range []dfs.StoreID{a.store(0), a.store(2)} {
			pg := dfs.PGID(i + 1)
			c.plane.create(pg, dfs.Replicated(1))
			c.plane.activate(t, pg, store)
			id, data := c.block(pg, 1000)
			if err := c.putAll(id, data); err != nil {
				t.Error(err)
			}
		}
		if got := a.engines[1].Stats().Blocks; got != 0 {
			t.Errorf("the refused store has %d blocks", got)
		}
		if b := c.plane.beat(3); b.Incarnation.Mark == copied {
			t.Error("heartbeats speak for the refused store")
		}
		n := c.plane.registrations()
		time.Sleep(time.Minute)
		if got := c.plane.registrations(); got != n {
			t.Errorf("%d more registrations", got-n)
		}
		a.stop()
		c.plane.refuses = func(*wire.RegisterStore) error { return dfs.Errorf(dfs.Stale, "register store", "all are copies") }
		a.run()
		eventually(t, "a node without a store ends", func() bool { return a.service.Err() != nil })
		wantKind(t, "its error", a.service.Err(), dfs.Stale)
	})
}

func TestRegistrationWaitsForTheHolderOfItsName(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.plane.setRefuse(dfs.Errorf(dfs.Exist, "register", "a node of this name is up"))
		a := c.newNode("a", 1)
		a.run()
		time.Sleep(20 * time.Second)
		if err := a.service.Err(); err != nil || a.service.Ready() {
			t.Fatalf("ready %v, %v", a.service.Ready(), err)
		}
		c.plane.setRefuse(nil)
		a.ready()
		if id := a.engines[0].Identity(); id.Cluster != c.plane.cluster || id.Node != a.id || id.Store == 0 {
			t.Errorf("identity %+v", id)
		}
	})
}

func TestANodeThatIsForgottenRegistersAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		n := c.plane.registrations()
		c.plane.forget(a.id)
		eventually(t, "it registers again", func() bool { return c.plane.current().Node(a.id) != nil })
		time.Sleep(10 * time.Second)
		if got := c.plane.registrations(); got > n+2 {
			t.Errorf("%d registrations", got-n)
		}
	})
}

func TestARolledBackStoreRegistersAsIncomplete(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 1)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, 3, 1000)
		old := a.fs[0].CrashClone(vfs.CrashCloneCfg{})
		all.fill(1, 20, 1000)
		c.plane.activate(t, 1, a.store(0), b.store(0)) // records the last sequence number
		// Everything but the small files goes back to where it was.
		a.crash()
		fs := a.fs[0]
		for _, dir := range []string{"store/segments", "store/index"} {
			if err := fs.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := vfs.Clone(old, fs, dir, dir, vfs.CloneSync); err != nil {
				t.Fatal(err)
			}
		}
		a.run()
		if !a.engines[0].DamagedUnnamed() {
			t.Fatal("the engine does not see it")
		}
		a.ready()
		if c.plane.complete(1, a.store(0)) {
			t.Error("it counts as complete")
		}
		unknown, _ := c.block(1, 1)
		_, _, err := c.get(a.store(0), unknown, 0, 0)
		wantKind(t, "an unknown block", err, dfs.Unknowable)
		c.plane.activate(t, 1, a.store(0), b.store(0))
		eventually(t, "it is refilled", func() bool { return c.plane.complete(1, a.store(0)) })
		all.check(a.store(0))
		a.crash()
		a.run()
		if a.engines[0].DamagedUnnamed() {
			t.Error("the damage that was told is told again")
		}
		a.ready()
		if !c.plane.complete(1, a.store(0)) {
			t.Error("another start made it incomplete")
		}
	})
}

// sickFS makes syncs slow, and from a moment on fail, or hang.
type sickFS struct {
	vfs.FS
	delay time.Duration
	fail  atomic.Bool
	hang  atomic.Pointer[chan struct{}]
}

func (f *sickFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	if err != nil {
		return nil, err
	}
	return &sickFile{file, f}, nil
}

func (f *sickFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return &sickFile{file, f}, nil
}

type sickFile struct {
	vfs.File
	fs *sickFS
}

func (f *sickFile) check() error {
	time.Sleep(f.fs.delay)
	if c := f.fs.hang.Load(); c != nil {
		<-*c
	}
	if f.fs.fail.Load() {
		return errors.New("input/output error")
	}
	return nil
}

func (f *sickFile) Sync() error {
	if err := f.check(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *sickFile) SyncData() error {
	if err := f.check(); err != nil {
		return err
	}
	return f.File.SyncData()
}

// The beats name the disk that a store is on.
func TestBeatsNameTheDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 2, func(o *Options) { o.Disks = []string{"8:1"} })
		for i, want := range []string{"8:1", ""} {
			eventually(t, "a beat", func() bool { return c.plane.beat(a.store(i)) != nil })
			if got := c.plane.beat(a.store(i)).Device; got != want {
				t.Errorf("store %d is on disk %q, want %q", i, got, want)
			}
		}
	})
}

// twoDisks starts a node whose first disk can be made sick.
func twoDisks(t *testing.T, c *cluster) (*node, *sickFS) {
	sick := &sickFS{}
	a := c.newNode("a", 2)
	a.tuneEng = func(i int, o *engine.Options) {
		if i == 0 {
			sick.FS = o.FS
			o.FS = sick
		}
	}
	a.run()
	a.ready()
	for i := range 2 {
		c.plane.create(dfs.PGID(i+1), dfs.Replicated(1))
		c.plane.activate(t, dfs.PGID(i+1), a.store(i))
	}
	return a, sick
}

func TestAFailedDiskStopsItsOwnStoreOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, sick := twoDisks(t, c)
		before, data := c.block(1, 1000)
		if err := c.putAll(before, data); err != nil {
			t.Fatal(err)
		}
		sick.fail.Store(true)
		id, _ := c.block(1, 1000)
		wantKind(t, "a put on the failing disk", c.putAll(id, data), dfs.Unavailable)
		eventually(t, "the beat tells of it", func() bool { return c.plane.beat(a.store(0)).State == uint32(engine.StateFailed) })
		c.holds(a.store(0), before, data)
		registrations := c.plane.registrations()
		c.plane.setState(a.store(0), dfs.StoreDown)
		time.Sleep(10 * time.Second)
		if got := c.plane.registrations() - registrations; got > 0 {
			t.Errorf("the failed store had the node register %d times", got)
		}
		// The other store follows maps and serves.
		c.plane.activate(t, 2, a.store(1))
		ok, data := c.block(2, 1000)
		if err := c.putAll(ok, data); err != nil {
			t.Error(err)
		}
		// When that one is declared down by mistake, it alone registers again.
		c.plane.setState(a.store(1), dfs.StoreDown)
		eventually(t, "the healthy store is up", func() bool { return c.plane.current().Store(a.store(1)).State == dfs.StoreUp })
		if got := c.plane.current().Store(a.store(0)).State; got != dfs.StoreDown {
			t.Errorf("the failed store is %v again", got)
		}
	})
}

func TestAHangingDiskDelaysItsOwnStoreOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, sick := twoDisks(t, c)
		release := make(chan struct{})
		sick.hang.Store(&release)
		heal := sync.OnceFunc(func() {
			sick.hang.Store(nil)
			close(release)
		})
		defer heal()
		id, data := c.block(1, 1000)
		result := make(chan error, 1)
		go func() { result <- c.putAll(id, data) }()
		eventually(t, "the beat tells of its age", func() bool {
			b := c.plane.beat(a.store(0))
			return max(b.SyncAge, b.WriteAge) > 5000
		})
		if b := c.plane.beat(a.store(1)); b.SyncAge != 0 || b.WriteAge != 0 {
			t.Errorf("the other store has the ages %d and %d", b.WriteAge, b.SyncAge)
		}
		// A new map hangs at the one and not at the other.
		c.plane.activate(t, 2, a.store(1))
		ok, more := c.block(2, 1000)
		if err := c.putAll(ok, more); err != nil {
			t.Error(err)
		}
		registrations := c.plane.registrations()
		c.plane.setState(a.store(0), dfs.StoreDown)
		time.Sleep(10 * time.Second)
		if got := c.plane.current().Store(a.store(0)).State; got != dfs.StoreDown || c.plane.registrations() != registrations {
			t.Errorf("the hanging store is %v, after %d registrations", got, c.plane.registrations()-registrations)
		}
		heal()
		if err := <-result; err != nil {
			t.Error(err)
		}
		eventually(t, "it is up again", func() bool { return c.plane.current().Store(a.store(0)).State == dfs.StoreUp })
	})
}

// A disk that does not say how big it is keeps the others waiting for a while
// only, and joins when it does.
func TestAStoreThatIsMeasuredLateJoinsLater(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		release := make(chan struct{})
		heal := sync.OnceFunc(func() { close(release) })
		defer heal()
		a := c.newNode("a", 2)
		a.tune = func(o *Options) {
			slow := o.Engines[0]
			o.Capacity = func(e *engine.Store) (uint64, uint64) {
				if e == slow {
					<-release
				}
				return 1000, 500
			}
		}
		a.run()
		eventually(t, "the other store is registered", func() bool { return len(c.plane.current().Stores) == 1 })
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(1))
		id, data := c.block(1, 1000)
		if err := c.putAll(id, data); err != nil {
			t.Error(err)
		}
		time.Sleep(20 * time.Second)
		heal()
		a.ready()
		c.plane.activate(t, 1, a.store(1), a.store(0)) // numbered in the order of registration
		eventually(t, "it is refilled", func() bool { return c.plane.complete(1, a.store(0)) })
		c.holds(a.store(0), id, data)
		b := c.plane.beat(a.store(0))
		if got := c.plane.current().Store(a.store(0)).Capacity; got != 1000 || b.Capacity != 1000 || b.Used != 500 {
			t.Errorf("registered with %d bytes, the beat says %d of %d", got, b.Used, b.Capacity)
		}
	})
}

// A meta node that does not answer delays no heartbeat to another.
func TestHeartbeatsGoToEveryMetaNode(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.change(func(m *dfs.Map, _ dfs.Epoch) {
			m.Nodes = append([]*dfs.Node{m.Nodes[0]}, m.Nodes[1:]...)
			m.Nodes = append(m.Nodes, &dfs.Node{ID: 900, Name: "dead", Addr: "dead:1", Roles: dfs.RoleMeta})
		})
		lis, err := c.net.Host("dead").Listen("dead:1")
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close()
		time.Sleep(time.Second)
		c.net.Isolate("dead")
		var beats atomic.Int64
		c.plane.mu.Lock()
		c.plane.onBeat = func(*wire.StoreBeat) { beats.Add(1) }
		c.plane.mu.Unlock()
		time.Sleep(10 * time.Second)
		if n := beats.Load(); n < 18 || n > 22 {
			t.Errorf("%d beats in 10 s", n)
		}
		_ = a
		c.net.Heal()
	})
}

// Persisting a newer map is reported at once, not at the next tick.
func TestAPersistedEpochIsReportedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1, func(o *Options) { o.Heartbeat = time.Minute })
		c.plane.create(1, dfs.Replicated(1))
		start := time.Now()
		c.plane.activate(t, 1, a.store(0))
		if d := time.Since(start); d > time.Second {
			t.Errorf("activation took %v", d)
		}
	})
}

// Polls that hang are noticed by what heartbeats are told.
func TestAMapThatDoesNotArriveIsFetched(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.mu.Lock()
		c.plane.mute = true
		c.plane.mu.Unlock()
		c.plane.create(1, dfs.Replicated(1))
		start := time.Now()
		c.plane.activate(t, 1, a.store(0))
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("activation took %v", d)
		}
	})
}

func TestNewListsEveryFault(t *testing.T) {
	_, err := New(Options{Heartbeat: -1, RefillRate: -1, RefillParallel: -1, PutMemory: 1})
	wantKind(t, "no options", err, dfs.Invalid)
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 7 {
		t.Errorf("faults: %v", err)
	}
}
