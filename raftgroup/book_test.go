package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
	"dfsd/sim/rot"
)

// book is a cluster that a script leads from one quiet moment to the next.
// Clocks stand still but for the commands tick and expire, so nobody campaigns
// unasked, and no two messages arrive at the same moment.
type book struct {
	*cluster
	keep int

	trace   bool
	traced  []string
	held    map[[2]dfs.NodeID][]heldBatch // by link; there while the link is held
	started map[dfs.NodeID]*applies
	arms    map[dfs.NodeID]Failpoint
	waits   map[string]chan string
}

type heldBatch struct {
	from, to dfs.NodeID
	msg      []byte
}

// bookElection is an election time-out in ticks: so long that the jitter of one
// more makes nobody campaign who was asked to wait for just that.
const bookElection = 1000

// bookPause is the time in which everything that follows from a command happens.
const bookPause = 300 * time.Millisecond

func TestLogBook(t *testing.T) {
	paths, err := filepath.Glob("testdata/book/*")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, 1)
			inBubble(t, func(t *testing.T) {
				b := &book{
					held: map[[2]dfs.NodeID][]heldBatch{}, started: map[dfs.NodeID]*applies{},
					arms: map[dfs.NodeID]Failpoint{}, waits: map[string]chan string{}, keep: 1000,
				}
				defer func() {
					if b.cluster != nil {
						b.stop()
					}
				}()
				datadriven.RunTest(t, path, b.run)
			})
		})
	}
}

func (b *book) tune(o *Options) {
	id := o.Node
	log := &applies{node: id, indexes: map[dfs.GroupID][]uint64{}}
	b.started[id] = log
	o.StateMachine = func(g dfs.GroupID) StateMachine { return recorder{g: g, log: log} }
	o.Tick, o.ElectionTicks, o.HeartbeatTicks, o.Workers = time.Hour, bookElection, bookElection/10, 1
	o.KeepEntries, o.LogBytes = b.keep, 1<<20
	n := b.nodes[id]
	o.Send = func(to dfs.NodeID, _ Lane, msg []byte) bool { return b.sendTraced(n, to, msg) }
	o.Hooks.Failpoint = func(_ dfs.GroupID, at Failpoint) { b.reached(n, at) }
}

// reached takes the power from an armed node at its failpoint.
func (b *book) reached(n *node, at Failpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if want, ok := b.arms[n.id]; !ok || at != want || n.dead.Load() {
		return
	}
	delete(b.arms, n.id)
	n.dead.Store(true)
	n.fs = n.fs.CrashClone(vfs.CrashCloneCfg{})
}

// sendTraced is the network: each link has a delay of its own.
func (b *book) sendTraced(n *node, to dfs.NodeID, msg []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped || n.dead.Load() {
		return true
	}
	link := [2]dfs.NodeID{n.id, to}
	lost := ""
	if b.cut[link] {
		lost = "  lost"
	}
	list, isHeld := b.held[link]
	if isHeld {
		lost = "  held"
		b.held[link] = append(list, heldBatch{n.id, to, msg})
	}
	if b.trace {
		frames, err := parseBatch(msg, n.id, to)
		if err != nil {
			b.unexpected = errors.Join(b.unexpected, err)
		}
		for i := range frames {
			b.traced = append(b.traced, fmt.Sprintf("%020d %v→%v %s%s", time.Now().UnixNano(), n.id, to, describeFrame(&frames[i]), lost))
		}
	}
	if lost == "" {
		b.carryLocked(n.id, to, msg)
	}
	return true
}

func (b *book) carryLocked(from, to dfs.NodeID, msg []byte) {
	b.timers.Add(1)
	time.AfterFunc(time.Millisecond+time.Duration(from*10+to)*10*time.Microsecond, func() {
		defer b.timers.Done()
		b.deliver(from, to, msg)
	})
}

func describeFrame(f *frame) string {
	switch f.kind {
	case frameRemoved:
		return fmt.Sprintf("removed at %d", f.removed)
	case frameNeedState:
		return "need state"
	}
	m := f.msg
	s := fmt.Sprintf("%s term %d", strings.TrimPrefix(m.GetType().String(), "Msg"), m.GetTerm())
	switch m.GetType() {
	case pb.MsgApp:
		s += fmt.Sprintf(" after %d/%d: %s commit %d", m.GetIndex(), m.GetLogTerm(), strings.TrimSpace(describe(m.GetEntries(), nil)), m.GetCommit())
	case pb.MsgAppResp, pb.MsgVote, pb.MsgPreVote:
		s += fmt.Sprintf(" index %d", m.GetIndex())
	case pb.MsgHeartbeat:
		s += fmt.Sprintf(" commit %d", m.GetCommit())
	}
	if m.GetReject() {
		s += " rejected"
	}
	return s
}

// nodesArg reads a list of nodes, all by default.
func (b *book) nodesArg(t *testing.T, d *datadriven.TestData, name string) []dfs.NodeID {
	var s []uint64
	if !d.HasArg(name) {
		return b.all()
	}
	for _, a := range d.CmdArgs {
		if a.Key != name {
			continue
		}
		for i := range a.Vals {
			var n uint64
			a.Scan(t, i, &n)
			s = append(s, n)
		}
	}
	out := make([]dfs.NodeID, len(s))
	for i, n := range s {
		out[i] = dfs.NodeID(n)
	}
	return out
}

func (b *book) run(t *testing.T, d *datadriven.TestData) string {
	out := b.command(t, d)
	if b.cluster == nil {
		return out
	}
	time.Sleep(bookPause)
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.traced)
	for _, line := range b.traced {
		out += line[21:] + "\n"
	}
	b.traced = nil
	if out == "" {
		return "ok\n"
	}
	return out
}

func (b *book) command(t *testing.T, d *datadriven.TestData) string {
	var node, to, from uint64
	var n, as, at, key string
	for name, v := range map[string]any{"node": &node, "to": &to, "from": &from, "n": &n, "as": &as, "at": &at, "key": &key} {
		if d.HasArg(name) {
			d.ScanArgs(t, name, v)
		}
	}
	id := dfs.NodeID(node)
	switch d.Cmd {
	case "boot":
		voters := 3
		nodes := 3
		d.MaybeScanArgs(t, "voters", &voters)
		d.MaybeScanArgs(t, "nodes", &nodes)
		d.MaybeScanArgs(t, "keep", &b.keep)
		b.cluster = newCluster(t, 1, nodes, 0)
		b.cluster.tune = b.tune
		b.bootFirst(voters)
		return ""
	case "trace":
		b.trace = d.HasArg("on")
		return ""
	case "status":
		return b.status()
	case "elect":
		r := b.h(id).replica(0)
		r.mu.Lock()
		r.guardLocked(func() { _ = r.raw.Campaign() })
		r.mu.Unlock()
		r.h.workers.schedule(r)
		time.Sleep(bookPause)
		st, _ := b.h(id).Status(0)
		return fmt.Sprintf("node %v is %v of term %d\n", id, st.Role, st.Term)
	case "expire":
		for _, id := range b.nodesArg(t, d, "nodes") {
			b.tick(id, bookElection)
		}
		return ""
	case "tick":
		count := 1
		d.MaybeScanArgs(t, "n", &count)
		for _, id := range b.nodesArg(t, d, "nodes") {
			b.tick(id, count)
		}
		return ""
	case "propose":
		return b.call(id, as, func(ctx context.Context) (string, error) {
			out, err := b.h(id).Propose(ctx, 0, []byte(d.Input))
			return fmt.Sprintf("replied %q", out), err
		})
	case "read":
		return b.call(id, as, func(ctx context.Context) (string, error) {
			var v []byte
			err := b.h(id).Read(ctx, 0, func(r Reader) (err error) {
				v, _, err = r.Get([]byte(key))
				return err
			})
			return fmt.Sprintf("%s is %q", key, v), err
		})
	case "transfer":
		return b.call(id, as, func(ctx context.Context) (string, error) {
			return fmt.Sprintf("node %d leads", to), b.h(id).TransferLeader(ctx, 0, dfs.NodeID(to))
		})
	case "change":
		var changes []Change
		for name, m := range map[string]Membership{"learner": Learner, "voter": Voter, "remove": None} {
			if d.HasArg(name) {
				changes = append(changes, Change{b.nodesArg(t, d, name)[0], m})
			}
		}
		slices.SortFunc(changes, func(a, b Change) int { return int(a.To) - int(b.To) })
		return b.call(id, as, func(ctx context.Context) (string, error) {
			return "changed", b.h(id).ChangeMembers(ctx, 0, changes...)
		})
	case "wait":
		return <-b.waits[as]
	case "crash":
		b.down(id)
		return ""
	case "arm":
		b.mu.Lock()
		defer b.mu.Unlock()
		for p := range NumFailpoints {
			if p.String() == at {
				b.arms[id] = p
				return ""
			}
		}
		t.Fatalf("no failpoint %q", at)
	case "start":
		return b.begin(id)
	case "cut", "hold":
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, link := range b.links(dfs.NodeID(from), dfs.NodeID(to), id) {
			if d.Cmd == "cut" {
				b.cut[link] = true
			} else {
				b.held[link] = []heldBatch{}
			}
		}
		return ""
	case "release", "drop":
		return b.release(d)
	case "heal":
		b.heal()
		return ""
	case "tidy":
		for _, id := range b.nodesArg(t, d, "nodes") {
			if err := b.tidy(id); err != nil {
				return err.Error() + "\n"
			}
		}
		return ""
	case "spoil":
		fs := b.nodes[id].fs
		switch {
		case d.HasArg("log"):
			rot.Truncate(t, fs, rot.NewestLog(t, fs, "data/raft-log"), func(size int) int { return size / 2 })
		case d.HasArg("state"):
			if err := fs.RemoveAll("data/raft-state"); err != nil {
				t.Fatal(err)
			}
		}
		return ""
	}
	t.Fatalf("unknown command %q", d.Cmd)
	return ""
}

// links are from one node to another, or all of one node.
func (b *book) links(from, to, of dfs.NodeID) (out [][2]dfs.NodeID) {
	if of == 0 {
		return [][2]dfs.NodeID{{from, to}}
	}
	for other := range b.nodes {
		if other != of {
			out = append(out, [2]dfs.NodeID{of, other}, [2]dfs.NodeID{other, of})
		}
	}
	return out
}

// release delivers what was held, in an order of the script's choice.
func (b *book) release(d *datadriven.TestData) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	links := make([][2]dfs.NodeID, 0, len(b.held))
	for link := range b.held {
		links = append(links, link)
	}
	slices.SortFunc(links, func(a, b [2]dfs.NodeID) int { return int(a[0]*100+a[1]) - int(b[0]*100+b[1]) })
	for _, link := range links {
		list := b.held[link]
		if d.HasArg("backwards") {
			slices.Reverse(list)
		}
		if d.HasArg("twice") {
			list = slices.Concat(list, list)
		}
		for _, h := range list {
			if d.Cmd == "drop" {
				n++
				continue
			}
			n++
			time.AfterFunc(time.Duration(n)*5*time.Millisecond, func() { b.deliver(h.from, h.to, h.msg) })
		}
	}
	clear(b.held)
	return fmt.Sprintf("%d batches\n", n)
}

// call carries out what may take long, for a moment, or in the background.
func (b *book) call(id dfs.NodeID, as string, what func(context.Context) (string, error)) string {
	n := b.nodes[id]
	do := func() string {
		ctx, cancel := context.WithTimeout(context.Background(), bookPause)
		defer cancel()
		out, err := what(ctx)
		if n.dead.Load() {
			return "no answer\n"
		}
		var e *dfs.Error
		if errors.As(err, &e) {
			out = err.Error()
			if e.LeaderHint != 0 {
				out += fmt.Sprintf(", node %v is", e.LeaderHint)
			}
		}
		return out + "\n"
	}
	if as == "" {
		return do()
	}
	ch := make(chan string, 1)
	b.waits[as] = ch
	b.timers.Go(func() { ch <- do() })
	return ""
}

// tick advances a node's clock.
func (b *book) tick(id dfs.NodeID, n int) {
	h := b.h(id)
	r := h.replica(0)
	var rd round
	r.mu.Lock()
	for range n {
		r.guardLocked(func() { r.tickLocked(&rd) })
	}
	r.mu.Unlock()
	out := newOutbox(h)
	h.finishRound(r, &rd, out)
	out.flush()
	h.workers.schedule(r)
}

// tidy does what a host does every so often.
func (b *book) tidy(id dfs.NodeID) error {
	h := b.h(id)
	if err := h.state.Flush(); err != nil {
		return err
	}
	_, err := h.replica(0).trim()
	return firstError(err, h.store.mark.sync())
}

// down takes the power from a node, unless a failpoint has.
func (b *book) down(id dfs.NodeID) {
	old := b.nodes[id]
	if !old.dead.Load() {
		old.fs = b.crashed(old)
	}
	if err := old.host.Close(); err != nil {
		b.t.Errorf("close node %v: %v", id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes[id] = &node{c: b.cluster, id: id, fs: old.fs}
}

func (b *book) crashed(n *node) *vfs.MemFS {
	b.mu.Lock()
	defer b.mu.Unlock()
	n.dead.Store(true)
	return n.fs.CrashClone(vfs.CrashCloneCfg{})
}

// begin starts a node that is down and tells what it found and replayed.
func (b *book) begin(id dfs.NodeID) string {
	n := b.nodes[id]
	if n.host != nil {
		b.down(id)
		n = b.nodes[id]
	}
	found := map[dfs.GroupID]uint64{}
	if _, err := n.fs.Stat("data/raft-state"); err == nil {
		if found, err = appliedOn(n.fs.CrashClone(vfs.CrashCloneCfg{}), b.groups); err != nil {
			return err.Error() + "\n"
		}
	}
	if err := n.start(); err != nil {
		return "refused: " + err.Error() + "\n"
	}
	time.Sleep(bookPause)
	log := b.started[id]
	log.mu.Lock()
	defer log.mu.Unlock()
	return fmt.Sprintf("state of entry %d found, replayed %v\n", found[0], log.indexes[0])
}

// status draws what every node says.
func (b *book) status() string {
	var out strings.Builder
	for _, id := range b.all() {
		n := b.nodes[id]
		if n.host == nil || n.dead.Load() {
			fmt.Fprintf(&out, "%v: down\n", id)
			continue
		}
		st, _ := n.host.Status(0)
		if st.Fault != nil {
			fmt.Fprintf(&out, "%v: %v: %v\n", id, st.Role, st.Fault)
			continue
		}
		fmt.Fprintf(&out, "%v: %v, leader %v, term %d, voters %v", id, st.Role, st.Leader, st.Term, st.Voters)
		if len(st.Learners) > 0 {
			fmt.Fprintf(&out, " learners %v", st.Learners)
		}
		if st.Joint {
			out.WriteString(" joint")
		}
		fmt.Fprintf(&out, ", log %d to %d, commit %d, applied %d", st.First, st.Last, st.Commit, st.Applied)
		if st.NeedState {
			out.WriteString(", needs its state")
		}
		out.WriteString("\n")
	}
	return out.String()
}
