package namespace

import (
	"testing"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// judge asks a group about some blocks. What was garbage once stays garbage, and
// what was committed while it was garbage is found by play.
func (l *life) judge(g dfs.GroupID, ids []dfs.BlockID) {
	verdicts, err := Verdicts(l.w.reader(g), ids, l.w.opts)
	if err != nil {
		l.t.Fatal(err)
	}
	for i, id := range ids {
		switch v := verdicts[i]; {
		case v == dfs.Garbage:
			l.garbage[id] = true
		case l.garbage[id]:
			l.fatalf("block %v was garbage and is %v", id, v)
		}
		l.did["judge "+verdicts[i].String()]++
	}
}

// judgeSome asks a group about blocks that were ever made up, committed or not.
func (l *life) judgeSome() {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	var ids []dfs.BlockID
	for range min(20, len(l.made)) {
		if id := pick(l, l.made); id.Ino.Group() == g {
			ids = append(ids, id)
		}
	}
	l.judge(g, ids)
}

// raise tells a group that all blocks a session has made up so far, or some, are
// committed or never will be; nothing is under way between two steps.
func (l *life) raise(s *mortal) {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	below := l.counter + 1 - min(l.counter, uint64(l.rng.IntN(5)))
	op := &wire.MarksOp{Marks: []*wire.SessionMark{{Session: s.id, Below: below}}}
	l.expect(l.w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Marks{Marks: op}}), "marks", done)
	if !l.fencedAt[g][s.id] {
		l.marks[g][s.id] = max(l.marks[g][s.id], below)
	}
}

// late has a command arrive that its session has given up: it names a block that
// was never committed.
func (l *life) late(s *mortal) {
	n := l.node()
	g := n.group()
	if n.typ != wire.FileType_FILE || n.dead || l.fencedAt[g][s.id] {
		return
	}
	id := blockID(n.ino, dfs.SessionID(s.id), l.marks[g][s.id]-1)
	if id.Counter == 0 || id.Counter > l.counter || l.blocks[id] {
		return
	}
	l.made = append(l.made, id)
	res, _ := l.send(s, g, &wire.Command{Op: &wire.Command_Write{Write: &wire.WriteOp{
		Ino: uint64(n.ino), Extents: []*wire.Extent{{Length: 1, Block: id.Bytes(), BlockLength: 1}},
	}}})
	l.expect(res, "late write", dfs.Invalid)
	l.did["late"]++
}

// judgeAll asks about every block when all sessions are fenced: what was never
// committed is garbage.
func (l *life) judgeAll() {
	for g := dfs.GroupID(1); g <= lifeGroups; g++ {
		var ids []dfs.BlockID
		for _, id := range l.made {
			if id.Ino.Group() == g {
				ids = append(ids, id)
			}
		}
		l.judge(g, ids)
	}
	for _, id := range l.made {
		if !l.blocks[id] && !l.garbage[id] {
			l.fatalf("block %v was never committed, its session is fenced, and it is no garbage", id)
		}
	}
}

// TestLivesNoticeGuesses proves that the lives would notice a group that calls a
// block garbage which its session may still commit.
func TestLivesNoticeGuesses(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		l := newLife(t, seed)
		l.w.opts.GuessGarbage, l.hinder = true, true
		for range 400 {
			l.step()
			if l.noticed {
				return
			}
		}
	}
	t.Fatal("no block was committed that was called garbage in 5 lives of 400 steps")
}
