package repair

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/placement"
)

// Settings are the planner's limits. Zero fields mean the defaults.
type Settings struct {
	// Grace is how long a store is down before it is out; default 10 min.
	Grace time.Duration

	// PGsPerClass is how many placement groups a class gets; default 256.
	PGsPerClass int

	// MaxProposals bounds the acting sets proposed in one plan, and so the size
	// of the entry that carries it; default 256.
	MaxProposals int

	// MaxActivations bounds the activations in one plan, likewise; default 1024.
	MaxActivations int

	// MaxRefills bounds the PGs that copy whole shares at the same time because
	// they lack copies, so that the users' requests are not swamped; default 64.
	// A member that returns and lacks only what it missed is not counted: the
	// longer it waits, the more it lacks.
	MaxRefills int

	// MaxMoves bounds the PGs that copy whole shares at the same time only to
	// move, with all copies there; default 16.
	MaxMoves int

	// Rules are for tests.
	Rules Rules
}

func (s Settings) withDefaults() Settings {
	s.Grace = cmp.Or(s.Grace, 10*time.Minute)
	s.PGsPerClass = cmp.Or(s.PGsPerClass, 256)
	s.MaxProposals = cmp.Or(s.MaxProposals, 256)
	s.MaxActivations = cmp.Or(s.MaxActivations, 1024)
	s.MaxRefills = cmp.Or(s.MaxRefills, 64)
	s.MaxMoves = cmp.Or(s.MaxMoves, 16)
	return s
}

// Input is what the planner decides from.
type Input struct {
	Map *dfs.Map

	// Persisted is the newest map epoch that each store's current incarnation
	// is known to have on disk.
	Persisted map[dfs.StoreID]dfs.Epoch

	Tally        Tally
	Now          time.Time
	NoDownBefore time.Time // see the function of this name

	// Classes are the storage classes that must have placement groups, besides
	// the map's default class.
	Classes []dfs.Class

	Settings Settings
}

// Output is a plan.
type Output struct {
	Decisions []Decision // in the order in which they should be applied
	Notes     []string   // in full sentences, what could not be had and why
}

// Plan compares the map with what should be and returns the next decisions.
// It is called again with the new map after they were applied, and whenever
// something else has changed; with nothing to do it returns none.
//
//   - A store that a majority suspects is declared down, and leaves its acting
//     sets in the same plan. After the grace period it is out, unless too many
//     are.
//   - Targets follow the stores that are not out (package placement).
//   - A PG acts on all its acting stores that are up, and its target's stores as
//     they come up. Stores that act and are not in the target leave when every
//     store of the target is complete, and no sooner.
//   - If too few would act, other stores that are up stand in at once.
//   - PGs with the fewest complete members come first.
//
// Erasure-coded PGs are neither created nor changed.
func Plan(in Input) Output {
	in.Settings = in.Settings.withDefaults()
	p := &planner{in: in, set: in.Settings, state: map[dfs.StoreID]dfs.StoreState{}, copying: map[dfs.PGID]bool{}}
	for _, s := range in.Map.Stores {
		p.state[s.ID] = s.State
	}
	p.pgs = slices.Clone(in.Map.PGs)
	p.declareDown()
	p.declareOut()
	p.create()
	p.retarget()
	p.step()
	return p.out
}

// planner is the making of one plan.
type planner struct {
	in  Input
	set Settings
	out Output

	state map[dfs.StoreID]dfs.StoreState // with this plan's decisions
	pgs   []*dfs.PG                      // with this plan's targets

	proposals, activations int
	copying                map[dfs.PGID]bool // PGs that copy whole shares, with this plan's
	refills, moves         int               // how many of them lack copies, and do not
}

func (p *planner) decide(d Decision) { p.out.Decisions = append(p.out.Decisions, d) }

func (p *planner) note(format string, args ...any) {
	p.out.Notes = append(p.out.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) up(s dfs.StoreID) bool { return s != 0 && p.state[s] == dfs.StoreUp }

// steady reports whether a store is up and no majority suspects it: only such
// stores join a set, which waits for all its members. One voter's suspicion does
// not keep a store out: it may be that voter's link that is broken.
func (p *planner) steady(s dfs.StoreID) bool { return p.up(s) && !p.in.Tally.Majority(s) }

// stateOf is state for the checks.
func (p *planner) stateOf(s dfs.StoreID) dfs.StoreState { return p.state[s] }

// declareDown declares down whom a majority suspects.
func (p *planner) declareDown() {
	var held []dfs.StoreID
	for _, s := range p.in.Map.Stores {
		if s.State != dfs.StoreUp || !p.in.Tally.Majority(s.ID) {
			continue
		}
		if p.in.Now.Before(p.in.NoDownBefore) {
			held = append(held, s.ID)
			continue
		}
		p.state[s.ID] = dfs.StoreDown
		p.decide(MarkDown{Store: s.ID, Incarnation: s.Incarnation, Voters: slices.Clone(p.in.Tally.By[s.ID])})
	}
	if len(held) > 0 {
		p.note("the suspect stores %v are not declared down before %s: the cluster has just started", held, p.in.NoDownBefore.UTC().Format(time.RFC3339))
	}
}

// declareOut declares out who has been down for the grace period, unless what
// is missing exceeds the larger of one node and 20 % of all stores: then it is
// likelier that a switch failed than that all those disks did.
func (p *planner) declareOut() {
	var due []*dfs.Store
	missing, all := 0, 0
	nodes := map[dfs.NodeID]bool{}
	for _, s := range p.in.Map.Stores {
		unfinished := p.state[s.ID] == dfs.StoreOut && p.refilling(s.ID)
		if p.state[s.ID] == dfs.StoreDown || unfinished {
			missing++
			nodes[s.Node] = true
		}
		if p.state[s.ID] != dfs.StoreOut || unfinished {
			all++
		}
		if s.State == dfs.StoreDown && p.in.Now.UnixMilli()-s.StateSince >= p.set.Grace.Milliseconds() {
			due = append(due, s)
		}
	}
	if len(due) == 0 {
		return
	}
	if len(nodes) > 1 && 5*missing > all {
		p.note("no store is declared out: %d of %d stores, on %d nodes, are down or out and not refilled yet, more than one node and 20 %% of all", missing, all, len(nodes))
		return
	}
	for _, s := range due {
		p.state[s.ID] = dfs.StoreOut
		p.decide(MarkOut{Store: s.ID, Incarnation: s.Incarnation})
	}
}

// refilling reports whether the share of a store that is out is still being
// copied: a PG that remembers it has living copies, and a store of its target
// that is up and not complete. What waits for others does not count.
func (p *planner) refilling(gone dfs.StoreID) bool {
	for _, pg := range p.in.Map.PGs {
		if pg.Member(gone) == nil || len(p.living(pg)) < pg.Class.NeedComplete() {
			continue
		}
		for _, s := range pg.Target {
			if p.up(s) && !pg.IsComplete(s) {
				return true
			}
		}
	}
	return false
}

// living returns the complete members that are up.
func (p *planner) living(pg *dfs.PG) []dfs.StoreID {
	return slices.DeleteFunc(pg.Complete(), func(s dfs.StoreID) bool { return !p.up(s) })
}

// create asks for the placement groups of classes that have none, once there
// are stores enough to write to them.
func (p *planner) create() {
	up := 0
	for _, s := range p.in.Map.Stores {
		if p.up(s.ID) {
			up++
		}
	}
	var done []dfs.Class
	for _, c := range append([]dfs.Class{p.in.Map.DefaultClass}, p.in.Classes...) {
		if c.IsZero() || slices.Contains(done, c) || slices.ContainsFunc(p.pgs, func(pg *dfs.PG) bool { return pg.Class == c }) {
			continue
		}
		done = append(done, c)
		switch {
		case c.Erasure():
			p.note("class %v gets no placement groups: erasure codes are not supported", c)
		case up < c.MinActing():
			p.note("class %v gets no placement groups yet: %d stores are up, it needs %d", c, up, c.MinActing())
		default:
			p.decide(CreatePGs{Class: c, Count: p.set.PGsPerClass})
		}
	}
}

// retarget gives every PG its place among the stores that are not out.
func (p *planner) retarget() {
	stores := placementStores(p.in.Map, func(s dfs.StoreID) bool { return p.state[s] != dfs.StoreOut })
	if len(stores) == 0 {
		return
	}
	byClass := map[dfs.Class][]int{}
	var classes []dfs.Class
	for i, pg := range p.pgs {
		if pg.Class.Erasure() {
			continue
		}
		if byClass[pg.Class] == nil {
			classes = append(classes, pg.Class)
		}
		byClass[pg.Class] = append(byClass[pg.Class], i)
	}
	for _, c := range classes {
		var groups []placement.Group
		for _, i := range byClass[c] {
			g := placement.Group{ID: p.pgs[i].ID, Current: p.pgs[i].Target}
			for _, m := range p.pgs[i].Members {
				if m.Complete > 0 {
					g.Near = append(g.Near, m.Store)
				}
			}
			groups = append(groups, g)
		}
		res := placement.Assign(stores, c.Width(), groups)
		for _, n := range res.Notes {
			p.note("class %v: %s", c, n)
		}
		for j, i := range byClass[c] {
			if slices.Equal(res.Targets[j], p.pgs[i].Target) {
				continue
			}
			next, err := Retarget(p.pgs[i], res.Targets[j], p.stateOf)
			if err != nil {
				continue // the checks at apply would say the same
			}
			p.pgs[i] = next
			p.decide(SetTarget{PG: next.ID, Target: next.Target})
		}
	}
}

// placementStores are the stores for which use holds, as placement sees them.
func placementStores(m *dfs.Map, use func(dfs.StoreID) bool) []placement.Store {
	var out []placement.Store
	for _, s := range m.Stores {
		if !use(s.ID) {
			continue
		}
		ps := placement.Store{ID: s.ID, Weight: max(s.Capacity, 1), Domains: []string{s.Node.String(), "", ""}}
		if n := m.Node(s.Node); n != nil {
			ps.Domains = []string{cmp.Or(n.Labels["host"], n.Name), n.Labels["rack"], n.Labels["zone"]}
		}
		out = append(out, ps)
	}
	return out
}
