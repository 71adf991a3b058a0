//go:build e2e

package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// cutSeeds file systems lose their power cutsEach times, one after the other.
const (
	cutSeeds = 18
	cutsEach = 2
)

// The roles of a process of TestPowerCut, in cutRole; more is in cutArgs.
const (
	cutRole   = "DFSD_TEST_POWERCUT"
	cutArgs   = "DFSD_TEST_POWERCUT_ARGS"
	roleHost  = "host"  // has a mount namespace of its own; mounts, cuts and compares
	roleStore = "store" // runs a store until it is killed
)

// TestPowerCut cuts the power of a real file system while a store on it works:
// an ext4 on a loop device, stopped by FS_IOC_SHUTDOWN and mounted again. What
// was acknowledged is there, byte for byte; what was deleted stays deleted.
//
// The process with the store is killed afterwards. What it was told lies in a
// ledger outside of that file system: a pipe to the process that compares.
func TestPowerCut(t *testing.T) {
	switch os.Getenv(cutRole) {
	case roleHost:
		cutHost(t)
	case roleStore:
		cutStore(t)
	default:
		if os.Geteuid() != 0 {
			if os.Getenv("CI") != "" {
				t.Fatal("only root can mount: run it as root, or without CI set")
			}
			t.Skip("NOT RUN: only root can mount a file system and cut its power")
		}
		if _, err := exec.LookPath("mkfs.ext4"); err != nil && os.Getenv("CI") == "" {
			t.Skip("NOT RUN: mkfs.ext4 is missing (Debian: e2fsprogs)")
		}
		// The kernel sends Pdeathsig when the thread ends that started a process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := cutProcess(t.Context(), roleHost, t.TempDir())
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
	}
}

// cutProcess is this test again, in a role.
func cutProcess(ctx context.Context, role, args string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestPowerCut$")
	if testing.Verbose() {
		cmd.Args = append(cmd.Args, "-test.v")
	}
	cmd.Env = append(os.Environ(), cutRole+"="+role, cutArgs+"="+args)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// cutPlan is what a seed says about one file system and the life on it.
type cutPlan struct {
	Seed    uint64
	Dir     string // where the store is mounted
	First   uint64 // number of the first new block
	Epoch   dfs.Epoch
	Writers int
	MaxSize int
	Deletes int // of a hundred operations
	Hooks   Hooks

	Segment, Checkpoint int64
	Age                 time.Duration // of what is compacted
	Dead                int           // percent, from which on it is

	tiny    bool
	disk    int64
	options string
	awaits  byte          // the kind of lines that moment counts; 0: any
	moment  int           // lines of the ledger until the cut
	phase   time.Duration // and so much later
	linger  time.Duration // from the cut to the end of the process
}

func planCut(seed uint64) cutPlan {
	rng := rand.New(rand.NewPCG(seed, 4))
	p := cutPlan{
		Seed: seed, Writers: []int{1, 4, 16, 48}[rng.IntN(4)], MaxSize: []int{4 << 10, 20 << 10, 150 << 10}[rng.IntN(3)],
		Deletes: []int{25, 40, 49}[rng.IntN(3)], Segment: []int64{256 << 10, 512 << 10, 1 << 20}[rng.IntN(3)],
		Age: []time.Duration{time.Millisecond, 500 * time.Millisecond}[rng.IntN(2)], Dead: []int{5, 30}[rng.IntN(2)],
		disk: 192 << 20, options: []string{"", "data=writeback", "commit=1"}[rng.IntN(3)],
	}
	p.Checkpoint = p.Segment * int64(1+rng.IntN(4))
	if p.tiny = seed%4 == 3; p.tiny { // and soon full
		p.disk, p.Segment, p.Deletes, p.MaxSize = 20<<20, 256<<10, 20, 20<<10
	}
	return p
}

// nextCut draws what differs from cut to cut: every second one comes while a
// segment is compacted, given up or used again.
func (p *cutPlan) nextCut(rng *rand.Rand) {
	p.awaits, p.moment = 0, 1+rng.IntN(1<<(6+rng.IntN(8)))
	if p.tiny {
		p.moment = 3000 + rng.IntN(5000)
	}
	if rng.IntN(2) == 0 {
		p.awaits, p.moment = []byte{copying, givingUp, recycling}[rng.IntN(3)], 1+rng.IntN(4)
	}
	p.phase = time.Duration(rng.IntN(3000)) * time.Microsecond
	p.linger = []time.Duration{0, 2 * time.Millisecond, 100 * time.Millisecond}[rng.IntN(3)]
}

func (p *cutPlan) open(fs vfs.FS) (*Store, error) {
	return Open(Options{
		FS: fs, Dir: filepath.Join(p.Dir, "store"), NewMark: rand.Uint64, PID: os.Getpid(), SegmentSize: p.Segment,
		CheckpointBytes: p.Checkpoint, CacheSize: 1 << 20, MemTableSize: 128 << 10, MaxQueueBytes: 8 << 20,
		CompactAge: p.Age, DeadPercent: p.Dead, Hooks: p.Hooks,
	})
}

// size of block n under this plan.
func (p *cutPlan) size(n uint64) int {
	return 1 + rand.New(rand.NewPCG(p.Seed, n)).IntN(p.MaxSize)
}

// The lines of the ledger: a letter and a number. What is begun is written
// before the call, what it answered after it.
const (
	lineReady   = 'r' // the store is open
	putBegun    = 'p'
	putDone     = 'P'
	deleteBegun = 'd'
	deleteDone  = 'D'
	refused     = 'n' // for want of space: nothing was done
	epochDone   = 'E'
	copying     = 'c' // a batch of copies
	givingUp    = 'g' // segments, by a line in the store's own ledger
	recycling   = 'R' // a segment
)

// cutFS says what the store is about to do by itself.
type cutFS struct {
	vfs.FS
	note func(what byte, n uint64)
}

func (fs cutFS) Rename(from, to string) error {
	if n, ok := parseSegmentName(fs.PathBase(to)); ok {
		fs.note(recycling, n)
	}
	return fs.FS.Rename(from, to)
}

func (fs cutFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, o...)
	n, ok := parseSegmentName(fs.PathBase(name))
	if err != nil || !ok && fs.PathBase(name) != ledgerName {
		return f, err
	}
	return cutFile{f, fs, n}, nil
}

// cutFile is a segment's, or, with number 0, the ledger.
type cutFile struct {
	vfs.File
	fs     cutFS
	number uint64
}

func (f cutFile) WriteAt(p []byte, off int64) (int, error) {
	if f.number == 0 {
		f.fs.note(givingUp, 0)
	} else if len(p) >= batchHeaderLen && binary.BigEndian.Uint32(p) == batchMagic && stream(p[5]) == movedStream {
		f.fs.note(copying, f.number)
	}
	return f.File.WriteAt(p, off)
}

// cutStore is the process that is killed: many writers that put blocks and
// delete them again, until the store fails. It ends when it is killed.
func cutStore(t *testing.T) {
	var plan cutPlan
	if err := json.Unmarshal([]byte(os.Getenv(cutArgs)), &plan); err != nil {
		t.Fatal(err)
	}
	ledger := os.NewFile(3, "ledger")
	// One write a line, so that no two are mixed.
	note := func(what byte, n uint64) {
		if _, err := fmt.Fprintf(ledger, "%c%d\n", what, n); err != nil {
			t.Fatal(err)
		}
	}
	s, err := plan.open(cutFS{vfs.Default, note})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetEpochs(plan.Epoch, fences(plan.Epoch)); err != nil {
		t.Fatal(err)
	}
	note(lineReady, 0)
	var epoch atomic.Uint64
	epoch.Store(uint64(plan.Epoch))
	for i := range plan.Writers {
		go cutWriter(s, &plan, i, &epoch, note)
	}
	for e := plan.Epoch + 1; ; e++ {
		time.Sleep(20 * time.Millisecond)
		epoch.Store(uint64(e))
		if s.SetEpochs(e, fences(e)) != nil {
			select {} // the store has failed
		}
		note(epochDone, uint64(e))
	}
}

func cutWriter(s *Store, plan *cutPlan, i int, epoch *atomic.Uint64, note func(byte, uint64)) {
	rng := rand.New(rand.NewPCG(plan.Seed+plan.First, uint64(i)))
	var mine []uint64
	for n := plan.First + uint64(i); s.failure() == nil; {
		remove, at, b := len(mine) > 0 && rng.IntN(100) < plan.Deletes, 0, n
		var err error
		if remove {
			at = rng.IntN(len(mine))
			b = mine[at]
			note(deleteBegun, b)
			err = s.Delete(context.Background(), DeleteRequest{ID: blockID(b), Epoch: dfs.Epoch(epoch.Load())})
		} else {
			note(putBegun, b)
			err = s.Put(context.Background(), putRequest(b, plan.size(b), dfs.Epoch(epoch.Load())))
			n += uint64(plan.Writers)
		}
		switch {
		case err == nil && remove:
			note(deleteDone, b)
			mine = append(mine[:at], mine[at+1:]...)
		case err == nil:
			note(putDone, b)
			mine = append(mine, b)
		case dfs.KindOf(err) == dfs.NoSpace:
			note(refused, b)
			time.Sleep(time.Millisecond)
		}
	}
}

// cutBlock is what the ledger says of a block: what it was, and what an
// operation may have made of it that was begun and not answered.
type cutBlock struct {
	is, running fate // running: absent when nothing runs
}

// cutWorld is one file system, and what must be on it.
type cutWorld struct {
	plan   cutPlan
	disk   *loopDisk
	blocks map[uint64]cutBlock
	counts map[string]int
}

// cutLines are the names of what a store does by itself.
var cutLines = map[byte]string{copying: "batch of copies", givingUp: "given up", recycling: "used again"}

// read takes over one line of the ledger.
func (w *cutWorld) read(line string) error {
	var what byte
	var n uint64
	if _, err := fmt.Sscanf(line, "%c%d", &what, &n); err != nil {
		return fmt.Errorf("the store said %q", line)
	}
	b := w.blocks[n]
	switch what {
	case lineReady:
		return nil
	case copying, givingUp, recycling:
		w.counts[cutLines[what]]++
		return nil
	case epochDone:
		w.plan.Epoch = dfs.Epoch(n)
		w.counts["epoch"]++
		return nil
	case putBegun:
		b.running = present
	case deleteBegun:
		b.running = deleted
	case putDone:
		b = cutBlock{is: present}
		w.counts["put"]++
	case deleteDone:
		b = cutBlock{is: deleted}
		w.counts["delete"]++
	case refused:
		b.running = absent
		w.counts["refused"]++
	}
	w.blocks[n] = b
	return nil
}

// life runs a store until the power is cut.
func (w *cutWorld) life(t *testing.T) (err error) {
	args, err := json.Marshal(w.plan)
	if err != nil {
		return err
	}
	r, wr, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := cutProcess(t.Context(), roleStore, string(args))
	cmd.ExtraFiles = []*os.File{wr}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Start()
	_ = wr.Close()
	if err != nil {
		return errors.Join(err, r.Close())
	}
	var lines []string // complete when ended is closed
	reached, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		left := w.plan.moment
		for sc := bufio.NewScanner(r); sc.Scan(); {
			lines = append(lines, sc.Text())
			if w.plan.awaits != 0 && lines[len(lines)-1][0] != w.plan.awaits {
				continue
			}
			if left--; left == 0 {
				close(reached)
			}
		}
	}()
	patience := 2 * time.Minute
	if w.plan.awaits != 0 { // there may be nothing to compact
		patience = 5 * time.Second
	}
	select {
	case <-reached:
		if w.plan.awaits != 0 {
			w.counts["cut at: "+cutLines[w.plan.awaits]]++
		}
	case <-ended:
		err = errors.New("the store ended by itself")
	case <-time.After(patience):
		if w.plan.awaits == 0 {
			err = errors.New("the store hangs")
		}
	}
	if err == nil {
		time.Sleep(w.plan.phase)
		err = w.disk.cutPower()
		time.Sleep(w.plan.linger)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	<-ended
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("%w; it said: %s", err, &said)
	}
	for _, line := range lines {
		if err := w.read(line); err != nil {
			return err
		}
	}
	return nil
}

// compare opens the store and checks every block, and takes over what became
// of operations that were cut short.
func (w *cutWorld) compare() (err error) {
	s, err := w.plan.open(vfs.Default)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	<-s.verifyDone
	if s.MapEpoch() < w.plan.Epoch {
		return fmt.Errorf("map epoch %d: %d was persisted", s.MapEpoch(), w.plan.Epoch)
	}
	w.plan.Epoch = s.MapEpoch() + 1
	if s.DamagedUnnamed() || len(s.Damage()) > 0 || s.failure() != nil {
		return fmt.Errorf("rolled back %v, damage %+v, failure %v", s.Identity().RolledBack, s.Damage(), s.failure())
	}
	if err := checkStore(s); err != nil {
		return err
	}
	listed := map[uint64]Entry{}
	for pg := range dfs.PGID(4) {
		var cursor []byte
		for {
			page, next, err := s.Inventory(pg+1, cursor, maxPage)
			if err != nil {
				return err
			}
			for _, e := range page {
				listed[e.ID.Counter] = e
			}
			if cursor = next; next == nil {
				break
			}
		}
	}
	for n := range listed {
		if _, ok := w.blocks[n]; !ok {
			return fmt.Errorf("block %d was never put", n)
		}
	}
	for n, b := range w.blocks {
		got := absent
		if e, ok := listed[n]; ok {
			if got = present; e.Tombstone {
				got = deleted
			}
		}
		if got != b.is && (b.running == absent || got != b.running) {
			return fmt.Errorf("block %d is %d, want %d (or %d)", n, got, b.is, b.running)
		}
		if b.running != absent {
			w.counts[map[bool]string{true: "cut short, done", false: "cut short, not done"}[got == b.running]]++
		}
		w.blocks[n] = cutBlock{is: got}
		w.plan.First = max(w.plan.First, n+1)
		r, err := s.Get(context.Background(), blockID(n), 0, 0, dfs.MaxBlockSize)
		if got != present {
			if dfs.KindOf(err) != dfs.NotExist {
				return fmt.Errorf("block %d is not there, and a read says %v", n, err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("block %d: %w", n, err)
		}
		same := bytes.Equal(r.Data, content(n, w.plan.size(n)))
		if r.Release(); !same {
			return fmt.Errorf("block %d has wrong bytes", n)
		}
		w.counts["compared"]++
	}
	return nil
}

// run is the life of one file system.
func (w *cutWorld) run(t *testing.T, cuts int) (err error) {
	if w.disk, err = newLoopDisk(w.plan.Dir, w.plan.disk, w.plan.options); err != nil {
		return err
	}
	w.plan.Dir = w.disk.point
	if err := w.disk.mount(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.disk.unmount(), os.Remove(w.disk.image)) }()
	rng := rand.New(rand.NewPCG(w.plan.Seed, 5))
	for i := range cuts {
		w.plan.nextCut(rng)
		if err := w.life(t); err != nil {
			return fmt.Errorf("cut %d: %w", i, err)
		}
		if err := errors.Join(w.disk.unmount(), w.disk.mount()); err != nil {
			return err
		}
		if err := w.compare(); err != nil {
			return fmt.Errorf("cut %d, %s after line %d: %w", i, w.plan.phase, w.plan.moment, err)
		}
		w.counts["cut"]++
	}
	return nil
}

func newCutWorld(t *testing.T, plan cutPlan) *cutWorld {
	dir, err := os.MkdirTemp(os.Getenv(cutArgs), fmt.Sprintf("%d-", plan.Seed))
	if err != nil {
		t.Fatal(err)
	}
	plan.Dir, plan.Epoch = dir, 1
	return &cutWorld{plan: plan, blocks: map[uint64]cutBlock{}, counts: map[string]int{}}
}

// cutHost is the process that mounts and compares.
func cutHost(t *testing.T) {
	total := map[string]int{}
	for seed := range uint64(cutSeeds) {
		w := newCutWorld(t, planCut(seed))
		if err := w.run(t, cutsEach); err != nil {
			t.Errorf("seed %d, %+v: %v", seed, w.plan, err)
		}
		for k, n := range w.counts {
			total[k] += n
		}
	}
	t.Logf("%d file systems: %v", cutSeeds, total)
	for _, k := range []string{
		"cut", "put", "delete", "epoch", "refused", "compared", "cut short, not done", "batch of copies", "given up", "used again",
		"cut at: batch of copies", "cut at: given up", "cut at: used again",
	} {
		if total[k] == 0 {
			t.Errorf("no %s", k)
		}
	}
	if total["cut"] < 20 {
		t.Errorf("the power was cut %d times only", total["cut"])
	}
	// A store that acknowledges before its sync is found out: by a put, a delete
	// or a persisted epoch that is gone, or by the store itself.
	plan := planCut(0)
	plan.Hooks.AckBeforeSync = true
	w := newCutWorld(t, plan)
	err := w.run(t, 60) // to the first that shows it: on a busy machine the system may write all in time
	if err == nil || !regexp.MustCompile(`block \d+ is \d, want|map epoch \d+: \d+ was persisted|rolled back true`).MatchString(err.Error()) {
		t.Errorf("the power was cut while blocks were acknowledged and not synced, and it says: %v", err)
	}
}
