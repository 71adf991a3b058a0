package client

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// RecoveryPlan is what an operator is shown before groups that have lost a majority of
// their voters for good are made to go on, and what is done then, no more and no less.
type RecoveryPlan struct {
	Generation uint64 // that the groups get: when this was planned, milliseconds since 1970
	Lost       []RecoveryNode
	Groups     []GroupRecovery // to be recovered, the control group first
	Whole      []dfs.GroupID   // that have their majority without the lost nodes, and are left alone
	Nodes      []RecoveryNode  // that answer

	// Done says that nothing is left to do: no group has lost its majority, the lost nodes
	// were given up before, and all groups have heard of it.
	Done bool
}

// RecoveryNode is a meta node of a plan.
type RecoveryNode struct {
	ID   dfs.NodeID
	Name string
	Addr string // "" when it is not known
}

func (n RecoveryNode) String() string { return fmt.Sprintf("%s (%v)", n.Name, n.ID) }

// GroupRecovery is how one group is to go on.
type GroupRecovery struct {
	Group     dfs.GroupID
	Voters    []dfs.NodeID     // that it has, of both halves of a change that is half done
	Survivors []*wire.Survivor // that answer, in the order of Nodes
	Nodes     []RecoveryNode   // the survivors' nodes
	Chosen    int              // of Survivors: what the group goes on from
	Losses    []string         // what may be lost, in words

	// Unreadable are replicas on nodes that answer and cannot read them. Those of voters
	// are in the way of a plan; any other is left as it is.
	Unreadable []UnreadableReplica
}

// UnreadableReplica is a replica that its node cannot describe.
type UnreadableReplica struct {
	Node  RecoveryNode
	Cause string
}

// PlanRecovery asks every meta node that is known what it has, and plans the recovery of
// groups; none given: of all that have lost their majority. Lost are names or numbers of the nodes that
// are gone for good. It changes nothing. Invalid says what is wrong with the wish, and
// what to do instead; Busy that a group has a leader.
func (c *Client) PlanRecovery(ctx context.Context, lost []string, groups []dfs.GroupID) (*RecoveryPlan, error) {
	return run(ctx, c, "plan recovery", "", func(ctx context.Context) (*RecoveryPlan, error) {
		for began := time.Now(); ; {
			in := recoveryInput{m: c.Map(), groups: groups, now: uint64(time.Now().UnixMilli())}
			in.answers = c.askSurvivors(ctx)
			var err error
			if in.lost, err = in.find(lost); err != nil {
				return nil, err
			}
			p, err := in.plan()
			if dfs.KindOf(err) != dfs.Busy || time.Since(began) > leaderWait || !c.pause(ctx, 10) {
				return p, err
			}
		}
	})
}

// leaderWait is how long a leader that is lost may be believed in by who followed it.
const leaderWait = 15 * time.Second

// survivorAnswer is what one address said.
type survivorAnswer struct {
	addr  string
	probe *wire.ProbeReply     // nil: nobody answers there
	reply *wire.SurvivorsReply // nil: it cannot say
	err   error
}

// askSurvivors asks every address side by side.
func (c *Client) askSurvivors(ctx context.Context) []survivorAnswer {
	addrs := slices.Clone(c.opts.Metas)
	for _, n := range c.Map().Nodes {
		if n.Roles.Has(dfs.RoleMeta) {
			addrs = append(addrs, n.Addr)
		}
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	out := make([]survivorAnswer, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
			defer cancel()
			m := wire.NewDRPCMetaClient(c.opts.Dial(addr))
			a := survivorAnswer{addr: addr}
			if a.probe, a.err = m.Probe(ctx, &wire.ProbeRequest{}); a.err == nil && len(a.probe.Cluster) > 0 {
				a.reply, a.err = m.Survivors(ctx, &wire.SurvivorsRequest{})
			}
			out[i] = a
		})
	}
	wg.Wait()
	return out
}

// recoveryInput is what a plan is made from.
type recoveryInput struct {
	m       *dfs.Map
	answers []survivorAnswer
	lost    []RecoveryNode
	groups  []dfs.GroupID // none: all
	now     uint64
}

func noRecovery(format string, args ...any) error {
	return dfs.Errorf(dfs.Invalid, "plan recovery", format, args...)
}

// name describes a node.
func (in *recoveryInput) name(id dfs.NodeID) RecoveryNode {
	out := RecoveryNode{ID: id, Name: id.String()}
	if n := in.m.Node(id); n != nil {
		out.Name, out.Addr = n.Name, n.Addr
	}
	for _, a := range in.answers {
		if a.reply != nil && dfs.NodeID(a.reply.Node) == id {
			out.Name, out.Addr = a.reply.Name, a.addr
		}
	}
	return out
}

// find finds the nodes that are called lost. A name is that of the node which has it now,
// or else of the last that had it: so a plan can be made again after the node was given up.
func (in *recoveryInput) find(names []string) (out []RecoveryNode, err error) {
	if len(names) == 0 {
		return nil, noRecovery("no lost node is named")
	}
	for _, name := range names {
		var best *dfs.Node
		for _, n := range in.m.Nodes {
			if n.ID.String() == name {
				best = n
				break
			}
			if n.Name == name && (best == nil || best.Replaced) {
				best = n
			}
		}
		if best == nil || !best.Roles.Has(dfs.RoleMeta) {
			return nil, noRecovery("%s is no meta node of this cluster, as far as any that answers knows", name)
		}
		if !slices.ContainsFunc(out, func(n RecoveryNode) bool { return n.ID == best.ID }) {
			out = append(out, in.name(best.ID))
		}
	}
	slices.SortFunc(out, func(a, b RecoveryNode) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

func (in *recoveryInput) isLost(id dfs.NodeID) bool {
	return slices.ContainsFunc(in.lost, func(n RecoveryNode) bool { return n.ID == id })
}

// plan checks the wish and makes the plan.
func (in *recoveryInput) plan() (*RecoveryPlan, error) {
	p := &RecoveryPlan{Generation: in.now, Lost: in.lost}
	rows := map[dfs.GroupID]*GroupRecovery{}
	row := func(g dfs.GroupID) *GroupRecovery {
		if rows[g] == nil {
			rows[g] = &GroupRecovery{Group: g}
		}
		return rows[g]
	}
	for _, a := range in.answers {
		if a.probe != nil && len(a.probe.Cluster) > 0 && in.isLost(dfs.NodeID(a.probe.Node)) {
			n := in.name(dfs.NodeID(a.probe.Node))
			if a.reply == nil {
				return nil, noRecovery("%v answers at %s, but does not say what it has (%v). If its log is damaged and nothing brings it back, stop it for good, and then call it lost", n, a.addr, a.err)
			}
			return nil, noRecovery("%v is not lost: it answers at %s. With its disks nothing is given up: let it run", n, a.addr)
		}
		if a.reply == nil {
			continue
		}
		node := in.name(dfs.NodeID(a.reply.Node))
		node.Addr = a.addr
		if slices.ContainsFunc(p.Nodes, func(n RecoveryNode) bool { return n.ID == node.ID }) {
			continue // two addresses of one node
		}
		p.Nodes = append(p.Nodes, node)
		for _, sv := range a.reply.Groups {
			rec := row(dfs.GroupID(sv.Group))
			if sv.Unreadable != "" {
				rec.Unreadable = append(rec.Unreadable, UnreadableReplica{node, sv.Unreadable})
				continue
			}
			rec.Survivors, rec.Nodes = append(rec.Survivors, sv), append(rec.Nodes, node)
			p.Generation = max(p.Generation, sv.Generation+1, sv.Aside+1)
		}
	}
	if len(p.Nodes) == 0 {
		return nil, noRecovery("no meta node answers")
	}
	given := !slices.ContainsFunc(p.Lost, func(n RecoveryNode) bool { x := in.m.Node(n.ID); return x == nil || !x.Replaced })
	wanted := in.groups
	if len(wanted) == 0 {
		for _, g := range in.m.Groups {
			row(g.ID)
		}
		wanted = slices.Sorted(maps.Keys(rows))
	}
	for _, g := range wanted {
		rec := row(g)
		whole, err := in.judge(rec)
		switch {
		case err != nil:
			return nil, err
		case !whole:
			p.Groups = append(p.Groups, *rec)
		case len(in.groups) > 0:
			return nil, noRecovery("%v has its majority without the lost nodes: nothing is lost. See dfsd group show %d; who is gone is replaced by itself when another meta node is there", g, g)
		default:
			p.Whole = append(p.Whole, g)
		}
	}
	p.Done = given && len(p.Groups) == 0 && !slices.ContainsFunc(in.answers, survivorAnswer.unfenced)
	return p, in.checkControl(row(dfs.ControlGroup))
}

// unfenced reports whether some group has not heard yet that it was recovered.
func (a survivorAnswer) unfenced() bool {
	return slices.ContainsFunc(a.reply.GetGroups(), func(sv *wire.Survivor) bool { return sv.Unfenced })
}

// checkControl refuses to leave the control group behind: without it no other goes far.
func (in *recoveryInput) checkControl(control *GroupRecovery) error {
	if len(in.groups) == 0 || slices.Contains(in.groups, dfs.ControlGroup) {
		return nil
	}
	if whole, err := in.judge(control); err != nil || !whole {
		return noRecovery("the control group has lost its majority too, and comes first: use --all, or name 0 as well")
	}
	return nil
}

// judge finds whether a group has its majority without the lost nodes, and else what it
// goes on from. Only replicas of the latest generation count.
func (in *recoveryInput) judge(rec *GroupRecovery) (whole bool, err error) {
	g := rec.Group
	latest := uint64(0)
	for _, sv := range rec.Survivors {
		if sv.Last > 0 {
			latest = max(latest, sv.Generation)
		}
	}
	rec.Chosen = -1
	end := -1 // the longest log, fit or not: it has the members
	for i, sv := range rec.Survivors {
		if sv.Generation != latest || sv.Last == 0 {
			continue
		}
		if end < 0 || longer(sv, rec.Survivors[end]) {
			end = i
		}
		if sv.Unfit == "" && (rec.Chosen < 0 || longer(sv, rec.Survivors[rec.Chosen])) {
			rec.Chosen = i
		}
	}
	if end < 0 {
		if len(rec.Unreadable) > 0 {
			return false, noRecovery("%v has no replica with a log that can be read: %s. Without it: --group with the others", g, rec.unreadable())
		}
		return false, noRecovery("%v has no replica with a log on any meta node that answers: nothing of it is left to recover. Without it: --group with the others", g)
	}
	last := rec.Survivors[end]
	voters, outgoing := wire.IDs[dfs.NodeID](last.Voters), wire.IDs[dfs.NodeID](last.Outgoing)
	whole = in.majority(voters, in.kept) && (len(outgoing) == 0 || in.majority(outgoing, in.kept))
	answers := func(v dfs.NodeID) bool {
		return slices.ContainsFunc(rec.Nodes, func(n RecoveryNode) bool { return n.ID == v })
	}
	if whole && in.majority(voters, answers) && (len(outgoing) == 0 || in.majority(outgoing, answers)) {
		return true, nil
	}
	rec.Voters = slices.Compact(slices.Sorted(slices.Values(append(voters, outgoing...))))
	for _, u := range rec.Unreadable {
		if slices.Contains(rec.Voters, u.Node.ID) {
			return false, noRecovery("%v votes in %v and cannot read what it has of it (%s): it may have more than the others. Restart it; if that does not help, stop it for good, and then call it lost. Without %v: --group with the others",
				u.Node, g, u.Cause, g)
		}
	}
	for _, v := range rec.Voters {
		if in.kept(v) && !answers(v) {
			return false, noRecovery("%v votes in %v, %s, and is not called lost: start it, or name it with --lost if it is gone for good", in.name(v), g, in.silence(v))
		}
	}
	if rec.Chosen < 0 {
		var why []string
		for i, sv := range rec.Survivors {
			if sv.Unfit != "" {
				why = append(why, fmt.Sprintf("%v: %s", rec.Nodes[i], sv.Unfit))
			}
		}
		return whole, noRecovery("%v: no survivor has log and state: %s", g, strings.Join(why, "; "))
	}
	for i, sv := range rec.Survivors {
		if sv.Leader != 0 && sv.Generation == latest {
			return false, dfs.Errorf(dfs.Busy, "plan recovery", "%v follows %v as its leader in %v: so a majority is there, though it may not be reached from here", rec.Nodes[i], in.name(dfs.NodeID(sv.Leader)), g)
		}
	}
	rec.Losses = in.losses(rec)
	return whole, nil
}

// unreadable says which replicas of a group cannot be read, and why.
func (rec *GroupRecovery) unreadable() string {
	var out []string
	for _, u := range rec.Unreadable {
		out = append(out, fmt.Sprintf("%v: %s", u.Node, u.Cause))
	}
	return strings.Join(out, "; ")
}

// silence says what kind of no answer a node gives.
func (in *recoveryInput) silence(id dfs.NodeID) string {
	for _, a := range in.answers {
		if a.probe != nil && dfs.NodeID(a.probe.Node) == id {
			return fmt.Sprintf("answers at %s without saying what it has (%v)", a.addr, a.err)
		}
	}
	return "does not answer"
}

func longer(a, b *wire.Survivor) bool {
	return cmp.Or(cmp.Compare(a.LastTerm, b.LastTerm), cmp.Compare(a.Last, b.Last)) > 0
}

// majority reports whether the voters for which ok holds are one.
func (in *recoveryInput) majority(voters []dfs.NodeID, ok func(dfs.NodeID) bool) bool {
	left := 0
	for _, v := range voters {
		if ok(v) {
			left++
		}
	}
	return left > len(voters)/2
}

func (in *recoveryInput) kept(id dfs.NodeID) bool { return !in.isLost(id) }

// losses says what may be lost of a group.
func (in *recoveryInput) losses(rec *GroupRecovery) []string {
	chosen, node := rec.Survivors[rec.Chosen], rec.Nodes[rec.Chosen]
	out := []string{fmt.Sprintf("what the lost nodes acknowledged and %s never received: how much cannot be known; it has the log through entry %d, and knew of commits through %d",
		node.Name, chosen.Last, chosen.Commit)}
	for i, sv := range rec.Survivors {
		if sv.Commit > chosen.Last && sv.Generation == chosen.Generation {
			out = append(out, fmt.Sprintf("entries %d to %d, which %s knows to have been committed and cannot give back", chosen.Last+1, sv.Commit, rec.Nodes[i].Name))
		}
	}
	if rec.Group == dfs.ControlGroup {
		return append(out,
			"registrations, placement decisions and settings among them; blocks that were stored under placements it does not know may not be found, though stores keep them",
			"every session: clients open new ones, and what they had not closed is lost to them")
	}
	return append(out, "so files that were made or changed last may be missing or as they were, and files that were removed may be back without their content")
}

// Recover takes the steps of a plan; progress is told of each. It may be repeated with a
// new plan after any error: what is done is found done. Where nothing is left nothing is
// asked for, which would hold deletes once more.
func (c *Client) Recover(ctx context.Context, p *RecoveryPlan, progress func(string)) error {
	if p.Done {
		return nil
	}
	_, err := run(ctx, c, "recover", "", func(ctx context.Context) (struct{}, error) { return struct{}{}, c.recover(ctx, p, progress) })
	return err
}

// recoverTimeout bounds one step: an install that is under way ends before.
const recoverTimeout = 5 * time.Minute

func (c *Client) recover(ctx context.Context, p *RecoveryPlan, progress func(string)) error {
	var lost []uint32
	for _, n := range p.Lost {
		lost = append(lost, uint32(n.ID))
	}
	step := func(n RecoveryNode, req *wire.RecoverRequest) error {
		ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
		defer cancel()
		req.Node, req.Generation, req.Lost = uint32(n.ID), p.Generation, lost
		_, err := wire.NewDRPCMetaClient(c.opts.Dial(n.Addr)).Recover(ctx, req)
		return dfs.Wrap("recover", fmt.Sprintf("%v on %v", dfs.GroupID(req.Group), n), err)
	}
	for i := range p.Groups {
		rec := &p.Groups[i]
		term := uint64(0)
		shown := func(sv *wire.Survivor) *wire.RecoverRequest {
			return &wire.RecoverRequest{Group: uint32(rec.Group), Was: sv.Generation, Aside: sv.Aside, Last: sv.Last, LastTerm: sv.LastTerm}
		}
		for j, sv := range rec.Survivors {
			term = max(term, sv.Term)
			if j == rec.Chosen {
				continue
			}
			req := shown(sv)
			req.Step = wire.RecoverRequest_SET_ASIDE
			if err := step(rec.Nodes[j], req); err != nil {
				return err
			}
			progress(fmt.Sprintf("%v: the replica on %v is set aside", rec.Group, rec.Nodes[j]))
		}
		req := shown(rec.Survivors[rec.Chosen])
		req.Step, req.Term = wire.RecoverRequest_BEGIN, term
		if rec.Group == dfs.ControlGroup {
			req.Found = c.found(ctx)
		}
		if err := step(rec.Nodes[rec.Chosen], req); err != nil {
			return err
		}
		progress(fmt.Sprintf("%v: %v is its only voter", rec.Group, rec.Nodes[rec.Chosen]))
	}
	for i := range p.Groups {
		if err := c.awaitLeader(ctx, &p.Groups[i]); err != nil {
			return err
		}
	}
	err := c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		_, err := m.GiveUp(ctx, &wire.GiveUpRequest{Generation: p.Generation, Lost: lost})
		return err
	})
	if err == nil {
		progress("the lost nodes are given up: their directories are refused from now on")
	}
	return dfs.Wrap("give nodes up", "", err)
}

// found lists the namespace groups that nodes have, for the control group that may have
// lost the entry that made one.
func (c *Client) found(ctx context.Context) []*wire.MapGroup {
	by := map[uint32]*wire.MapGroup{}
	for _, a := range c.askSurvivors(ctx) {
		for _, sv := range a.reply.GetGroups() {
			if !sv.Begun {
				continue
			}
			if by[sv.Group] == nil {
				by[sv.Group] = &wire.MapGroup{Id: sv.Group}
			}
			by[sv.Group].Replicas = append(by[sv.Group].Replicas, a.reply.Node)
		}
	}
	var out []*wire.MapGroup
	for _, g := range slices.Sorted(maps.Keys(by)) {
		slices.Sort(by[g].Replicas)
		by[g].Replicas = slices.Compact(by[g].Replicas)
		out = append(out, by[g])
	}
	return out
}

// awaitLeader waits until a recovered group has a leader.
func (c *Client) awaitLeader(ctx context.Context, rec *GroupRecovery) error {
	node := rec.Nodes[rec.Chosen]
	for attempt := 1; ; attempt++ {
		actx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
		reply, err := wire.NewDRPCMetaClient(c.opts.Dial(node.Addr)).Replica(actx, &wire.ReplicaRequest{Group: uint32(rec.Group)})
		cancel()
		if err == nil && reply.Leader != 0 {
			return nil
		}
		if !c.pause(ctx, attempt) {
			return dfs.Wrap("wait for a leader", rec.Group.String(), cmp.Or(err, ended(ctx)))
		}
	}
}

// TakeBack undoes the first half of a recovery that is called off, at every meta node
// that answers: replicas that were set aside take part again, but for those of groups that
// were recovered all the same. It returns where there were any.
func (c *Client) TakeBack(ctx context.Context) ([]string, error) {
	return run(ctx, c, "take back", "", func(ctx context.Context) (out []string, err error) {
		for _, s := range asideOf(c.askSurvivors(ctx)) {
			ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			_, err := wire.NewDRPCMetaClient(c.opts.Dial(s.addr)).Recover(ctx, s.req)
			cancel()
			if err != nil {
				return out, err
			}
			out = append(out, fmt.Sprintf("%v on %s", dfs.GroupID(s.req.Group), s.name))
		}
		return out, nil
	})
}

// asideStep takes back one replica.
type asideStep struct {
	name, addr string
	req        *wire.RecoverRequest
}

// asideOf lists the replicas that are set aside. One whose group was recovered meanwhile
// stays so: with the lost ones it would be a majority of the old group. It gets everything
// anew from the recovered one.
func asideOf(answers []survivorAnswer) (out []asideStep) {
	recovered := map[uint32]uint64{} // generation
	for _, a := range answers {
		for _, sv := range a.reply.GetGroups() {
			recovered[sv.Group] = max(recovered[sv.Group], sv.Generation)
		}
	}
	for _, a := range answers {
		for _, sv := range a.reply.GetGroups() {
			if sv.Aside != 0 && sv.Aside > recovered[sv.Group] {
				out = append(out, asideStep{a.reply.Name, a.addr, &wire.RecoverRequest{
					Node: a.reply.Node, Step: wire.RecoverRequest_TAKE_BACK, Group: sv.Group,
				}})
			}
		}
	}
	return out
}

// Acknowledge ends what a recovery holds back, in every group. It reports whether anything
// was held back; with look it does no more.
func (c *Client) Acknowledge(ctx context.Context, look bool) (held bool, err error) {
	return run(ctx, c, "acknowledge recovery", "", func(ctx context.Context) (held bool, err error) {
		m, err := c.getMap(ctx, &wire.GetMapRequest{Linearizable: true})
		if err != nil {
			return false, err
		}
		for _, g := range append(m.Namespace(), dfs.ControlGroup) { // the control group last: it says so until all is done
			err := c.book.Call(ctx, g, true, func(ctx context.Context, s wire.DRPCMetaClient) error {
				reply, err := s.Acknowledge(ctx, &wire.AcknowledgeRequest{Group: uint32(g), Look: look})
				held = held || reply.GetHeld()
				return err
			})
			if err != nil {
				return false, dfs.Wrap("acknowledge recovery", g.String(), err)
			}
		}
		return held, nil
	})
}
