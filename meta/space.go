package meta

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	// spaceTick is how often a node looks at its disk. What a disk writes in that
	// time is a small part of any sensible reserve.
	spaceTick = 500 * time.Millisecond

	// defaultReserve takes the last entries of every group at their largest, and
	// the compactions that give space back.
	defaultReserve = 512 << 20
)

// space knows whose disk is full: one that has had less free than the reserve, and
// not a quarter more than that since.
//
//   - A node whose disk is full leads nothing that another voter with space can
//     lead, and keeps as little of the logs as it may.
//   - A group takes what grows only while a majority of its voters is there and
//     has space, so that the reserve of the others stays for what frees space.
//     That is taken always.
type space struct {
	s *Service

	mu     sync.Mutex
	blind  bool                          // the last look failed
	own    *wire.MetaDisk                // of the last look; nil: the file system does not tell
	others map[dfs.NodeID]*wire.MetaDisk // the nodes whose disk is full, as the control leader says
}

func newSpace(s *Service) *space { return &space{s: s} }

// look asks the file system, and notes and tells what has changed.
func (sp *space) look() {
	o := &sp.s.opts
	usage, err := o.FS.GetDiskUsage(o.Dir)
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err != nil {
		if !sp.blind && !errors.Is(err, vfs.ErrUnsupported) {
			sp.s.log.Warn("the free space of the disk is not known", "dir", o.Dir, "cause", err)
		}
		sp.blind = true
		return // what was known last holds
	}
	sp.blind = false
	was := sp.own.GetFull()
	sp.own = &wire.MetaDisk{
		Node: uint32(o.Identity.Membership().Node), Full: fullAt(was, usage.AvailBytes, o.Reserve),
		Free: usage.AvailBytes, Capacity: usage.TotalBytes, Reserve: o.Reserve, Dir: wire.Text(o.Dir),
	}
	switch {
	case sp.own.Full && !was:
		sp.s.log.Error("the disk is full to its reserve: only what frees space is taken here", "dir", o.Dir, "free", sp.own.Free, "reserve", o.Reserve)
	case was && !sp.own.Full:
		sp.s.log.Info("the disk has space again", "dir", o.Dir, "free", sp.own.Free)
	}
}

// fullAt reports whether a disk with so much free is full, given what it was.
func fullAt(was bool, free, reserve uint64) bool {
	if was {
		reserve += reserve / 4
	}
	return free < reserve
}

// disk returns this node's last look, nil when there is none.
func (sp *space) disk() *wire.MetaDisk {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return sp.own
}

// Disk returns what this node last saw of its disk, nil when that is not known.
func (s *Service) Disk() *wire.MetaDisk { return s.space.disk() }

// learn notes the nodes that are full, as the control leader says.
func (sp *space) learn(full []*wire.MetaDisk) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.others = map[dfs.NodeID]*wire.MetaDisk{}
	for _, d := range full {
		sp.others[dfs.NodeID(d.Node)] = d
	}
}

// full returns the nodes whose disk is full; of this one it knows best.
func (sp *space) full() map[dfs.NodeID]*wire.MetaDisk {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	out := maps.Clone(sp.others)
	if out == nil {
		out = map[dfs.NodeID]*wire.MetaDisk{}
	}
	if sp.own != nil {
		delete(out, dfs.NodeID(sp.own.Node))
		if sp.own.Full {
			out[dfs.NodeID(sp.own.Node)] = sp.own
		}
	}
	return out
}

// spaceLoop looks at the disk, and hands over what is led here if it is full.
func (s *Service) spaceLoop() {
	for {
		h := s.host.Load() // another one after damage
		s.space.look()
		full := s.space.disk().GetFull()
		h.Spare(full)
		if full {
			s.leave(h)
		}
		if !s.sleep(spaceTick) {
			return
		}
	}
}

// leave hands over every group that a voter with space can lead.
func (s *Service) leave(h *raftgroup.Host) {
	me, full := s.opts.Identity.Membership().Node, s.space.full()
	led := map[dfs.NodeID]int{}
	for _, n := range s.leaders(h) {
		led[n]++
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, st := range h.Statuses() {
		to := refuge(me, &st, full, led)
		if to == 0 {
			continue
		}
		led[to]++
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
			defer cancel()
			if err := h.TransferLeader(ctx, st.Group, to); err != nil { // again after the next look
				s.log.Info("leadership not handed over", "group", uint16(st.Group), "to", uint32(to), "why", "the disk is full", "cause", err)
				return
			}
			s.log.Info("leadership handed over", "group", uint16(st.Group), "to", uint32(to), "why", "the disk is full")
		})
	}
}

// room is what full disks leave of a group.
type room uint8

const (
	roomy room = iota // a majority of the voters is there and has space, or nobody's disk is full
	away              // a majority has space, and not all of it is there
	none              // a majority is full
)

// roomOf judges a group by its leader's status. Of a group none of whose voters
// is full it says nothing: who is away is no question of space then.
func roomOf(me dfs.NodeID, st *raftgroup.Status, full map[dfs.NodeID]*wire.MetaDisk) room {
	spacious, there := 0, 0
	for _, v := range st.Voters {
		if full[v] != nil {
			continue
		}
		spacious++
		if v == me || slices.ContainsFunc(st.Peers, func(p raftgroup.Progress) bool { return p.Node == v && p.Active }) {
			there++
		}
	}
	half := len(st.Voters) / 2
	switch {
	case spacious == len(st.Voters) || there > half:
		return roomy
	case spacious > half:
		return away
	}
	return none
}

// refusal returns why a group that this node leads takes only what frees space,
// nil when it takes all: NoSpace, or Unavailable when waiting may help.
func (s *Service) refusal(h *raftgroup.Host, g dfs.GroupID) error {
	full := s.space.full()
	if len(full) == 0 {
		return nil
	}
	me := s.opts.Identity.Membership().Node
	st, _ := h.Status(g)
	e := &dfs.Error{Op: "change", Object: g.String()}
	switch roomOf(me, &st, full) {
	case none:
		e.Kind, e.Text = dfs.NoSpace, s.fullText(full, st.Voters)
	case away:
		e.Kind, e.Text = dfs.Unavailable, s.fullText(full, st.Voters)+"; or start the meta nodes that are down"
	default:
		if full[me] == nil {
			return nil
		}
		e.Kind, e.Text = dfs.Unavailable, s.fullText(full, []dfs.NodeID{me})+"; another node is about to lead the group"
	}
	return e
}

// refuge returns the voter to hand a group to that a node with a full disk
// leads, 0 for none: of those that have space and the log, the one that leads
// the fewest.
func refuge(me dfs.NodeID, st *raftgroup.Status, full map[dfs.NodeID]*wire.MetaDisk, led map[dfs.NodeID]int) dfs.NodeID {
	if full[me] == nil || st.Role != raftgroup.RoleLeader || st.Joint {
		return 0
	}
	to := dfs.NodeID(0)
	for _, p := range st.Peers {
		if p.Node == me || p.Learner || full[p.Node] != nil || !p.Active || p.Snapshot || p.Match+handoverSlack < st.Last {
			continue
		}
		if to == 0 || led[p.Node] < led[to] {
			to = p.Node
		}
	}
	return to
}

// fullText says whose disks are full, and what helps.
func (s *Service) fullText(full map[dfs.NodeID]*wire.MetaDisk, voters []dfs.NodeID) string {
	m := s.maps.current()
	var who []string
	for _, v := range voters {
		if d := full[v]; d != nil {
			who = append(who, diskText("meta node "+nodeName(m, v), d))
		}
	}
	return strings.Join(who, "; ") + ": remove files, or free space on these disks; until then only what frees space is taken"
}

func diskText(who string, d *wire.MetaDisk) string {
	return fmt.Sprintf("the disk of %s is full: %d MiB free at %s, the reserve is %d MiB", who, d.Free>>20, d.Dir, d.Reserve>>20)
}

// nodeName is a node's name for people, also of one that the map does not have.
func nodeName(m *dfs.Map, id dfs.NodeID) string {
	if m != nil {
		if n := m.Node(id); n != nil {
			return n.Name
		}
	}
	return id.String()
}

// grows reports whether a command may make the state of its group larger for
// good. What ends an intent has to pass: the other half is done.
func grows(cmd *wire.Command) bool {
	switch op := cmd.Op.(type) {
	case *wire.Command_Unlink, *wire.Command_Rmdir, *wire.Command_RmdirFreeze, *wire.Command_RmdirCommit, *wire.Command_Resolve:
		return false
	case *wire.Command_SetAttr:
		return op.SetAttr.Size == nil // a truncation frees
	}
	return true
}

// admit refuses a command that grows where there is no space for it. One that
// has been carried out and is asked again gets its answer.
func (s *Service) admit(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, cmd *wire.Command) error {
	refusal := s.refusal(h, g)
	if refusal == nil || !grows(cmd) {
		return nil
	}
	answered := false
	err := h.Read(ctx, g, func(r raftgroup.Reader) (err error) {
		answered, err = namespace.Answered(r, dfs.SessionID(cmd.Session), cmd.Seq)
		return err
	})
	if err != nil || !answered {
		return cmp.Or(err, refusal)
	}
	return nil
}

// disks returns what the meta nodes that were heard of lately say of their
// disks, by node.
func (r *registry) disks() []*wire.MetaDisk {
	var out []*wire.MetaDisk
	for _, v := range r.freshVotes() {
		if v.disk != nil {
			out = append(out, v.disk)
		}
	}
	slices.SortFunc(out, func(a, b *wire.MetaDisk) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// fullDisks returns those that are full.
func (r *registry) fullDisks() []*wire.MetaDisk {
	return slices.DeleteFunc(r.disks(), func(d *wire.MetaDisk) bool { return !d.Full })
}

// statusSpace adds to a status what the disks of the meta nodes mean for it: a
// problem when groups take only what frees space, else a note.
func (s *Service) statusSpace(reply *wire.StatusReply) {
	reply.Disks = s.beats.disks()
	full := map[dfs.NodeID]*wire.MetaDisk{}
	for _, d := range reply.Disks {
		if d.Full {
			full[dfs.NodeID(d.Node)] = d
		}
	}
	if len(full) == 0 {
		return
	}
	worst := roomy
	for _, g := range reply.Groups {
		st := &raftgroup.Status{Voters: wire.IDs[dfs.NodeID](g.Voters)}
		for _, n := range reply.MetaUp {
			st.Peers = append(st.Peers, raftgroup.Progress{Node: dfs.NodeID(n), Active: true})
		}
		if g.Group != 0 {
			worst = max(worst, roomOf(0, st, full))
		}
	}
	switch text := s.fullText(full, slices.Sorted(maps.Keys(full))); worst {
	case none:
		reply.Problems = append(reply.Problems, text)
		return
	case away:
		reply.Problems = append(reply.Problems, text+"; or start the meta nodes that are down")
		return
	}
	m := s.maps.current()
	for _, n := range slices.Sorted(maps.Keys(full)) {
		reply.Notes = append(reply.Notes, diskText("meta node "+nodeName(m, n), full[n])+
			"; it leads no groups; free space on it, before a majority of the meta nodes is full and only what frees space is taken")
	}
}
