package client

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

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
