package control

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestScripts plays the log books of testdata. Every entry is applied to two
// replicas, see world. Lines of a script share one world:
//
//	world                              begin anew
//	at ms=N                            the proposer's clock
//	form · formed
//	register name= mark= start= …      its stores are lines of input
//	open · close · expire · expired · sessions
//	plan                               its decisions are lines of input
//	bar mark= start=
//	create-group replicas= · group-ready group= replicas= · change group= add= remove=
//	refill-done
//	recovered lost= · give-up lost= · acknowledge · counters
//	want class= · classes              the default class and what was asked for
//	set class= codec= · settings       what is set for classes
//	map                                what is stored
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{w: newWorld(t)}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.w.t = t
			out := s.run(t, d)
			s.w.check()
			return out
		})
	})
}

type script struct{ w *world }

// fields are the key=value words of a line.
type fields map[string]string

func wordsOf(line string) (verb string, f fields) {
	words := strings.Fields(line)
	f = fields{}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		f[k] = v
	}
	return words[0], f
}

func (f fields) num(name string) uint64 {
	n, _ := strconv.ParseUint(f[name], 0, 64)
	return n
}

func (f fields) list(name string) []uint32 {
	var out []uint32
	for s := range strings.SplitSeq(f[name], ",") {
		if n, err := strconv.ParseUint(s, 10, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

func (f fields) longs(name string) []uint64 {
	var out []uint64
	for _, n := range f.list(name) {
		out = append(out, uint64(n))
	}
	return out
}

func (f fields) incarnation() *wire.Incarnation {
	return &wire.Incarnation{Mark: f.num("mark"), Start: f.num("start")}
}

// lineage reads after=ACCEPTED,OFFERED,…; this start is offered, as all are that
// a data directory sends, unless alone=yes.
func (f fields) lineage() *wire.Lineage {
	l := dfs.Lineage{}
	if known := f.longs("after"); len(known) > 0 {
		l = dfs.Lineage{Accepted: known[0], Offered: known[1:]}
	}
	if f["alone"] == "" && f.num("start") != 0 {
		l = l.Offer(f.num("start"))
	}
	return wire.FromLineage(l)
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	line := d.Cmd
	for _, a := range d.CmdArgs {
		line += " " + a.Key + "=" + strings.Join(a.Vals, ",")
	}
	verb, f := wordsOf(line)
	ce := &wire.ControlEntry{}
	switch verb {
	case "world":
		s.w = newWorld(t)
		return "ok"
	case "at":
		s.w.now = int64(f.num("ms"))
		return "ok"
	case "map":
		return s.drawMap(t)
	case "sessions":
		ss, err := ReadSessions(s.w.reader())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("highest %d live %v expiring %v index %d", ss.Highest, ss.Live, ss.Expiring, ss.Index)
	case "form":
		op := &wire.FormOp{Cluster: []byte("0123456789abcdef"), Groups: 2, DefaultClass: "rep2", BlockSize: 1 << 20, PgsPerClass: 2, Grace: 1000}
		if f["pgs"] != "" {
			op.PgsPerClass = uint32(f.num("pgs"))
		}
		if f["metas"] != "" {
			op.Metas = strings.Split(f["metas"], ",")
		}
		ce.Entry = &wire.ControlEntry_Form{Form: op}
	case "bar":
		ce.Entry = &wire.ControlEntry_Bar{Bar: &wire.BarOp{Mark: f.num("mark"), Start: f.num("start")}}
	case "create-group":
		ce.Entry = &wire.ControlEntry_CreateGroup{CreateGroup: &wire.CreateGroupRequest{Replicas: f.list("replicas")}}
	case "group-ready":
		ce.Entry = &wire.ControlEntry_GroupReady{GroupReady: &wire.GroupReadyOp{Group: uint32(f.num("group")), Replicas: f.list("replicas"), SessionIndex: f.num("index")}}
	case "change":
		ce.Entry = &wire.ControlEntry_ChangeReplicas{ChangeReplicas: &wire.ChangeReplicasRequest{
			Group: uint32(f.num("group")), Add: uint32(f.num("add")), Remove: uint32(f.num("remove")),
		}}
	case "formed":
		ce.Entry = &wire.ControlEntry_Formed{Formed: &wire.FormedOp{}}
	case "register":
		ce.Entry = &wire.ControlEntry_Register{Register: registration(f, d.Input)}
	case "open":
		ce.Entry = &wire.ControlEntry_OpenSession{OpenSession: &wire.OpenSessionRequest{Mark: f.num("mark"), Holder: f["holder"]}}
	case "close":
		ce.Entry = &wire.ControlEntry_CloseSession{CloseSession: &wire.CloseSessionRequest{Session: f.num("session")}}
	case "expire":
		ce.Entry = &wire.ControlEntry_Expire{Expire: &wire.ExpireOp{Sessions: f.longs("sessions")}}
	case "expired":
		ce.Entry = &wire.ControlEntry_Expired{Expired: &wire.ExpiredOp{Sessions: f.longs("sessions")}}
	case "plan":
		op := &wire.PlanOp{}
		for line := range strings.SplitSeq(d.Input, "\n") {
			op.Decisions = append(op.Decisions, decision(line))
		}
		ce.Entry = &wire.ControlEntry_Plan{Plan: op}
	case "want":
		ce.Entry = &wire.ControlEntry_WantClass{WantClass: &wire.WantClassRequest{Class: f["class"]}}
	case "set":
		set := &wire.ClassSetting{Class: f["class"]}
		if _, ok := f["codec"]; ok {
			n := uint32(f.num("codec"))
			set.Codec = &n
		}
		ce.Entry = &wire.ControlEntry_SetClass{SetClass: &wire.SetClassRequest{Setting: set}}
	case "settings":
		m, err := ReadMap(s.w.reader())
		if err != nil {
			t.Fatal(err)
		}
		out := fmt.Sprintf("epoch %d", m.Epoch)
		for _, x := range m.Settings {
			out += fmt.Sprintf(" %v=%v", x.Class, x.Codec)
		}
		return out
	case "classes":
		st, err := ReadState(s.w.reader())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(st.GetForm().GetDefaultClass(), st.GetClasses())
	case "recovered":
		op := &wire.RecoveredOp{Generation: f.num("generation"), Lost: f.list("lost")}
		for line := range strings.SplitSeq(d.Input, "\n") {
			if line != "" {
				verb, f := wordsOf(line)
				if verb == "persisted" {
					op.Persisted = append(op.Persisted, &wire.PersistedMark{Store: uint32(f.num("store")), Mark: f.num("mark"), Epoch: f.num("epoch")})
					continue
				}
				op.Found = append(op.Found, &wire.MapGroup{Id: uint32(f.num("group")), Replicas: f.list("on")})
			}
		}
		ce.Entry = &wire.ControlEntry_Recovered{Recovered: op}
	case "give-up":
		ce.Entry = &wire.ControlEntry_GiveUp{GiveUp: &wire.GiveUpOp{Generation: f.num("generation"), Lost: f.list("lost")}}
	case "acknowledge":
		ce.Entry = &wire.ControlEntry_Acknowledge{Acknowledge: &wire.AcknowledgeOp{}}
	case "counters":
		st, err := ReadState(s.w.reader())
		if err != nil {
			t.Fatal(err)
		}
		out := fmt.Sprintf("nodes %d stores %d placement groups %d groups %d sessions %d index %d", st.LastNode, st.LastStore, st.LastPg, st.LastGroup, st.LastSession, st.SessionIndex)
		for _, r := range st.UnknownGroups {
			out += fmt.Sprintf(" unknown %d-%d", r.First, r.Last)
		}
		for g := dfs.GroupID(2); g <= 5; g++ {
			out += fmt.Sprintf(" %v:%v", g, MayDissolve(st, g))
		}
		if r := st.Recovery; r != nil {
			out += fmt.Sprintf(" recovered as %d without %v", r.Generation, r.Lost)
		}
		return out
	case "refill-done":
		ce.Entry = &wire.ControlEntry_RefillDone{RefillDone: &wire.RefillDoneRequest{Store: uint32(f.num("store")), Done: []*wire.RefillDone{
			{Pg: uint32(f.num("pg")), Mark: f.num("mark"), Joined: f.num("joined")},
		}}}
	default:
		d.Fatalf(t, "unknown command")
	}
	return answer(s.w.apply(ce))
}

func registration(f fields, input string) *wire.RegisterRequest {
	op := &wire.RegisterRequest{
		Name: f["name"], Addr: f["name"] + ":7400", Roles: uint32(dfs.RoleStorage), Incarnation: f.incarnation(), Lineage: f.lineage(),
		Node: uint32(f.num("node")), Cluster: []byte(f["cluster"]),
		Replaces: f.num("replaces"),
	}
	if a, ok := f["addr"]; ok {
		op.Addr = a
	}
	if strings.HasPrefix(op.Name, "meta") {
		op.Roles = uint32(dfs.RoleMeta)
	}
	if input == "" {
		return op
	}
	for line := range strings.SplitSeq(input, "\n") {
		_, f := wordsOf(line)
		op.Stores = append(op.Stores, &wire.RegisterStore{
			Store: uint32(f.num("id")), Incarnation: f.incarnation(), Lineage: f.lineage(), Capacity: f.num("capacity"), Incomplete: f["incomplete"] != "",
		})
	}
	return op
}

func decision(line string) *wire.Decision {
	verb, f := wordsOf(line)
	pg := uint32(f.num("pg"))
	switch verb {
	case "down", "out":
		state := dfs.StoreDown
		if verb == "out" {
			state = dfs.StoreOut
		}
		return &wire.Decision{Decision: &wire.Decision_State{State: &wire.StateDecision{
			Store: uint32(f.num("store")), State: uint32(state), Incarnation: f.incarnation(), Voters: f.list("voters"),
			Electorate: f.list("of"), Grace: int64(f.num("grace")),
		}}}
	case "target":
		return &wire.Decision{Decision: &wire.Decision_Target{Target: &wire.TargetDecision{Pg: pg, Stores: f.list("stores")}}}
	case "propose":
		return &wire.Decision{Decision: &wire.Decision_Propose{Propose: &wire.ProposeDecision{Pg: pg, Newest: f.num("newest"), Stores: f.list("stores")}}}
	case "activate":
		op := &wire.ActivateDecision{Pg: pg, Epoch: f.num("epoch")}
		for p := range strings.SplitSeq(f["persisted"], ",") {
			var m wire.PersistedMark
			if n, _ := fmt.Sscanf(p, "%d:%d:%d", &m.Store, &m.Mark, &m.Epoch); n == 3 {
				op.Persisted = append(op.Persisted, &wire.PersistedMark{Store: m.Store, Mark: m.Mark, Epoch: m.Epoch})
			}
		}
		return &wire.Decision{Decision: &wire.Decision_Activate{Activate: op}}
	case "replicas":
		return &wire.Decision{Decision: &wire.Decision_Replicas{Replicas: &wire.ReplicasDecision{
			Group: uint32(f.num("group")), Was: f.list("was"), Replicas: f.list("to"),
		}}}
	case "abandon":
		return &wire.Decision{Decision: &wire.Decision_Abandon{Abandon: &wire.AbandonDecision{
			Group: uint32(f.num("group")), Founder: uint32(f.num("founder")), Replicas: f.list("to"),
		}}}
	case "create":
		return &wire.Decision{Decision: &wire.Decision_Create{Create: &wire.CreatePGsDecision{Class: f["class"], Count: uint32(f.num("count"))}}}
	}
	return &wire.Decision{} // of a kind that this release does not know
}

func answer(r *wire.ControlReply) string {
	if r.Kind != 0 || r.Text != "" {
		return fmt.Sprintf("refused, %v: %s", dfs.Kind(r.Kind), r.Text)
	}
	if reg := r.GetRegister(); reg != nil {
		return fmt.Sprintf("node %d stores %v epoch %d", reg.Node, reg.Stores, reg.Epoch)
	}
	if g := r.GetCreateGroup(); g != nil {
		return fmt.Sprintf("group %d", g.Group)
	}
	if open := r.GetOpenSession(); open != nil {
		return fmt.Sprintf("session %d", open.Session)
	}
	return "ok"
}

func (s *script) drawMap(t *testing.T) string {
	m, err := ReadMap(s.w.reader())
	if err != nil {
		t.Fatal(err)
	}
	if m == nil {
		return "none"
	}
	st, _ := ReadState(s.w.reader())
	var b strings.Builder
	fmt.Fprintf(&b, "epoch %d formed %v time %d\n", m.Epoch, st.Formed, st.Now)
	for _, g := range m.Groups {
		fmt.Fprintf(&b, "%v replicas %v", g.ID, g.Replicas)
		if !g.Ready() {
			fmt.Fprintf(&b, " forming at %v", g.Founder)
		}
		b.WriteString("\n")
	}
	for _, n := range m.Nodes {
		fmt.Fprintf(&b, "%v %s at %s %v %v replaced=%v\n", n.ID, n.Name, n.Addr, n.Roles, n.Incarnation, n.Replaced)
	}
	for _, x := range m.Stores {
		fmt.Fprintf(&b, "%v on %v %v capacity %d %v since %d\n", x.ID, x.Node, x.Incarnation, x.Capacity, x.State, x.StateSince)
	}
	for _, p := range m.PGs {
		fmt.Fprintf(&b, "%v %v target %v active %d%v proposed %d%v", p.ID, p.Class, p.Target, p.Active.Epoch, p.Active.Stores, p.Proposed.Epoch, p.Proposed.Stores)
		for _, x := range p.Members {
			fmt.Fprintf(&b, " (%v mark %d complete %d joined %d)", x.Store, x.Mark, x.Complete, x.Joined)
		}
		b.WriteString("\n")
	}
	return b.String()
}
