package raftgroup

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// logBook drives one group's log through the log writer's own steps.
type logBook struct {
	t     *testing.T
	opts  Options
	cache int
	h     *Host
	r     *replica
}

func TestGroupLog(t *testing.T) {
	datadriven.Walk(t, "testdata/grouplog", func(t *testing.T, path string) {
		b := &logBook{t: t, opts: Options{FS: vfs.NewMem(), Dir: "data", Node: 1}}
		b.opts.setDefaults()
		defer b.close()
		datadriven.RunTest(t, path, b.run)
	})
}

func (b *logBook) close() {
	if b.h == nil {
		return
	}
	if err := b.h.store.close(); err != nil {
		b.t.Error(err)
	}
}

func (b *logBook) open() {
	store, err := openLogStore(&b.opts, func(err error) { b.t.Error(err) })
	if err != nil {
		b.t.Fatal(err)
	}
	b.h = &Host{opts: b.opts, store: store}
}

// begin makes a store with an empty log.
func (b *logBook) begin(tr truncated) {
	b.open()
	batch := b.h.store.db.NewBatch()
	if err := batch.Set(groupKey(3, logTruncated), tr.encode(), nil); err != nil {
		b.t.Fatal(err)
	}
	if err := b.h.store.commit(batch, true); err != nil {
		b.t.Fatal(err)
	}
	b.load()
}

func (b *logBook) load() {
	l, err := loadGroupLog(b.h.store, 3, b.cache)
	if err != nil {
		b.t.Fatal(err)
	}
	b.r = &replica{h: b.h, id: 3, l: l}
}

func (b *logBook) write(lw *logWrite) error {
	lw.r = b.r
	rd := &logRound{entries: map[*replica][]*pb.Entry{}, sync: true}
	rd.add(lw)
	return newLogWriter(b.h).write(rd)
}

// logEntries makes n entries of a size from an index on.
func logEntries(from, n, term uint64, size int) (es []*pb.Entry) {
	for i := range n {
		es = append(es, &pb.Entry{Index: proto.Uint64(from + i), Term: proto.Uint64(term), Data: []byte(strings.Repeat("x", size))})
	}
	return es
}

func (b *logBook) run(t *testing.T, d *datadriven.TestData) string {
	var at, from, lo, hi, index, term, n, size uint64
	limit := uint64(1 << 20)
	for name, v := range map[string]*uint64{"at": &at, "from": &from, "lo": &lo, "hi": &hi, "index": &index, "term": &term, "n": &n, "size": &size, "max": &limit} {
		d.MaybeScanArgs(t, name, v)
	}
	switch d.Cmd {
	case "open":
		b.cache = 1 << 20
		d.MaybeScanArgs(t, "cache", &b.cache)
		b.begin(truncated{index: index, term: term, conf: confState([]uint64{1})})
		return b.state()
	case "reopen":
		b.close()
		b.open()
		b.load()
		return b.state()
	case "append":
		if err := b.write(&logWrite{entries: logEntries(from, n, term, int(size))}); err != nil {
			return err.Error() + "\n"
		}
		return b.state()
	case "cut":
		cut := truncated{index: at, conf: confState(nil)}
		cut.term, _ = b.r.l.Term(at)
		cut.bytes, _ = b.r.l.bytesThrough(at)
		if err := b.write(&logWrite{cut: &cut}); err != nil {
			return err.Error() + "\n"
		}
		return b.state()
	case "reset":
		in := intent{to: applied{index: at, term: term, conf: confState(nil)}, hard: hardState(term, 0, at)}
		batch := b.h.store.db.NewBatch()
		if err := in.stageEnd(batch, 3); err != nil {
			t.Fatal(err)
		}
		if err := b.h.store.commit(batch, true); err != nil {
			t.Fatal(err)
		}
		b.r.l.reset(in.truncated())
		return b.state()
	case "entries":
		es, err := b.r.l.Entries(lo, hi, limit)
		return describe(es, err)
	case "term":
		got, err := b.r.l.Term(at)
		if err != nil {
			return err.Error() + "\n"
		}
		return fmt.Sprintf("%d\n", got)
	case "cached":
		var es []*pb.Entry
		for _, c := range b.r.l.cache {
			es = append(es, c.e)
		}
		return describe(es, nil) + fmt.Sprintf("%d bytes\n", b.r.l.held)
	}
	t.Fatalf("unknown command %q", d.Cmd)
	return ""
}

func (b *logBook) state() string {
	first, last := b.r.l.bounds()
	return fmt.Sprintf("entries %d to %d, %d bytes\n", first, last, b.r.l.size())
}

// describe lists entries as index/term.
func describe(es []*pb.Entry, err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	var parts []string
	for _, e := range es {
		parts = append(parts, fmt.Sprintf("%d/%d", e.GetIndex(), e.GetTerm()))
	}
	return strings.Join(parts, " ") + "\n"
}
