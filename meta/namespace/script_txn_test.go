package namespace

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

func txnText(id *wire.TxnID) string {
	return fmt.Sprintf("of g%d at %s for session %d command %d", id.GetGroup(), version(id.GetBegun()), id.GetSession(), id.GetSeq())
}

// theTxn returns the transaction that a line is about.
func (s *script) theTxn() *scriptTxn {
	n := int(s.num("t", uint64(len(s.txns))))
	if n < 1 || n > len(s.txns) {
		s.d.Fatalf(s.t, "there is no transaction %d", n)
	}
	return s.txns[n-1]
}

// txn runs a line about transactions.
func (s *script) txn() (out string, ok bool) {
	switch s.d.Cmd {
	case "level":
		return s.propose(s.g(), &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: uint32(s.num("level", 0))}}}), true
	case "begin":
		return s.begin(), true
	case "prepare":
		x := s.theTxn()
		for _, p := range x.parts {
			if dfs.GroupID(p.Group) == s.g() {
				op := &wire.TxnPrepareOp{Txn: x.id, Cred: &wire.Cred{Uid: 1, Gid: 2}, Share: p.Share}
				out := s.propose(s.g(), &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: op}})
				if res := s.answer(); res.Kind == 0 {
					x.prepared[p.Group] = &wire.TxnPrepared{Group: p.Group, Floor: res.Version, Attr: res.Attr}
				}
				return out, true
			}
		}
		return fmt.Sprintf("group %v has no part", s.g()), true
	case "commit":
		x := s.theTxn()
		op := &wire.TxnCommitOp{Txn: x.id}
		for _, p := range x.parts {
			if a := x.prepared[p.Group]; a != nil {
				op.Prepared = append(op.Prepared, a)
			}
		}
		return s.propose(dfs.GroupID(x.id.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnCommit{TxnCommit: op}}), true
	case "abort":
		x := s.theTxn()
		op := &wire.TxnAbortOp{Txn: x.id, Kind: uint32(s.num("kind", uint64(dfs.Unavailable))), Text: s.text("text", "why not")}
		return s.propose(dfs.GroupID(x.id.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnAbort{TxnAbort: op}}), true
	case "finish":
		x := s.theTxn()
		op := &wire.TxnFinishOp{Txn: x.id, Floor: s.floorOf(x), Commit: s.decision(x).State == wire.TxnResult_COMMITTED}
		op.Version = s.decision(x).Version
		return s.propose(s.g(), &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: op}}), true
	case "drop":
		x := s.theTxn()
		return s.propose(dfs.GroupID(x.id.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: []*wire.TxnID{x.id}}}}), true
	case "decision":
		x := s.theTxn()
		res, err := s.w.query(dfs.GroupID(x.id.Group), &wire.Query{Query: &wire.Query_Txn{Txn: s.question(x)}})
		if err != nil {
			return fmt.Sprintf("%v: %s", dfs.KindOf(err), err), true
		}
		return answerText(res), true
	case "parts":
		list, err := Parts(s.w.reader(s.g()), nil, 10)
		var b strings.Builder
		for _, p := range list {
			fmt.Fprintf(&b, "%s, prepared at %s\n", txnText(p.Txn), version(uint64(p.Floor)))
		}
		return b.String() + errText(err), true
	case "transactions":
		list, err := Transactions(s.w.reader(s.g()), nil, 10)
		var b strings.Builder
		for _, x := range list {
			fmt.Fprintf(&b, "%s, until %s, committed at %s", txnText(x.ID), version(uint64(x.Deadline)), version(uint64(x.Commit)))
			for _, p := range x.Parts {
				fmt.Fprintf(&b, ", g%d at %s", p.Group, version(p.Floor))
			}
			fmt.Fprintln(&b)
		}
		return b.String() + errText(err), true
	}
	return "", false
}

// propose applies an entry, which retry repeats.
func (s *script) propose(g dfs.GroupID, le *wire.LogEntry) string {
	le.Version = uint64(s.w.clock)
	var err error
	if s.last, err = proto.Marshal(le); err != nil {
		s.t.Fatal(err)
	}
	s.lastG, s.reply = g, s.w.applyBytes(g, s.last)
	return s.result(s.reply)
}

// answer is that of the last entry.
func (s *script) answer() *wire.Result {
	res := &wire.Result{}
	if err := proto.Unmarshal(s.reply, res); err != nil {
		s.t.Fatal(err)
	}
	return res
}

// begin plans an operation and begins it.
func (s *script) begin() string {
	s.d.Cmd = s.text("op", "")
	cmd := s.command()
	if cmd == nil {
		s.d.Fatalf(s.t, "no operation")
	}
	d := newDriver(s.w)
	d.place = dfs.GroupID(s.num("place", 0))
	facts, err := d.facts(cmd)
	if err != nil {
		return fmt.Sprintf("%v: %s", dfs.KindOf(err), err)
	}
	plan := MakePlan(cmd, facts)
	if plan == nil {
		return "alone"
	}
	var b strings.Builder
	for _, p := range plan.Parts {
		fmt.Fprintf(&b, "g%d:", p.Group)
		for _, step := range p.Share.Steps {
			fmt.Fprintf(&b, " %s", stepText(step))
		}
		fmt.Fprintln(&b)
	}
	who := &wire.Command{Session: s.num("s", 1), Floor: s.num("floor", 0), Cred: &wire.Cred{Uid: uint32(s.num("uid", 0)), Gid: uint32(s.num("gid", 0))}}
	s.seqs[who.Session]++
	if s.has("seq") {
		s.seqs[who.Session] = s.num("seq", 0)
	}
	who.Seq = s.seqs[who.Session]
	op := &wire.TxnBeginOp{Command: who, Parts: plan.Parts, Lifetime: uint32(s.num("life", 10_000))}
	b.WriteString(s.propose(Coordinator(cmd), &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: op}}))
	if res := s.answer(); res.Txn != nil {
		txn, err := FindTransaction(s.w.reader(dfs.GroupID(res.Txn.Group)), dfs.SessionID(who.Session), who.Seq)
		if err != nil {
			s.t.Fatal(err)
		}
		s.txns = append(s.txns, &scriptTxn{id: res.Txn, parts: txn.Parts, prepared: map[uint32]*wire.TxnPrepared{}})
	}
	return b.String()
}

func stepText(step *wire.TxnStep) string {
	switch x := step.Step.(type) {
	case *wire.TxnStep_Leave:
		return fmt.Sprintf("leave(%v/%s %v)", dfs.Ino(x.Leave.Parent), x.Leave.Name, dfs.Ino(x.Leave.Ino))
	case *wire.TxnStep_Enter:
		out := fmt.Sprintf("enter(%v/%s %v", dfs.Ino(x.Enter.Parent), x.Enter.Name, dfs.Ino(x.Enter.Ino))
		if x.Enter.Old != 0 {
			out += fmt.Sprintf(" for %v", dfs.Ino(x.Enter.Old))
		}
		return out + ")"
	case *wire.TxnStep_Keep:
		return fmt.Sprintf("keep(%v/%s %v)", dfs.Ino(x.Keep.Parent), x.Keep.Name, dfs.Ino(x.Keep.Ino))
	case *wire.TxnStep_Links:
		if x.Links.Less {
			return fmt.Sprintf("unlink(%v)", dfs.Ino(x.Links.Ino))
		}
		return fmt.Sprintf("link(%v)", dfs.Ino(x.Links.Ino))
	case *wire.TxnStep_Moved:
		return fmt.Sprintf("moved(%v to %v)", dfs.Ino(x.Moved.Ino), dfs.Ino(x.Moved.Parent))
	case *wire.TxnStep_RemoveDir:
		return fmt.Sprintf("remove(%v)", dfs.Ino(x.RemoveDir.Ino))
	case *wire.TxnStep_MakeDir:
		return fmt.Sprintf("make(in %v)", dfs.Ino(x.MakeDir.Parent))
	case *wire.TxnStep_Create:
		return fmt.Sprintf("create(%v/%s for %v)", dfs.Ino(x.Create.Op.Parent), x.Create.Op.Name, dfs.Ino(x.Create.Old))
	}
	return "tree"
}

func (s *script) floorOf(x *scriptTxn) uint64 { return x.prepared[uint32(s.g())].GetFloor() }

func (s *script) question(x *scriptTxn) *wire.TxnQuery {
	return &wire.TxnQuery{Txn: x.id, Group: uint32(s.g()), Floor: s.floorOf(x)}
}

// decision is what the coordinator says.
func (s *script) decision(x *scriptTxn) *wire.TxnResult {
	res, err := s.w.query(dfs.GroupID(x.id.Group), &wire.Query{Query: &wire.Query_Txn{Txn: s.question(x)}})
	if err != nil {
		s.t.Fatal(err)
	}
	return res.GetTxn()
}
