package namespace

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestAccountScript plays the log book of accounts. Beside the commands of TestScripts:
//
//	level g=G                    the group reaches the newest feature level
//	t-<operation> s=SESSION …    carried out over several groups; t-mkdir place=G
//	tally g=G limit=N
//	report g=G [lost]            what G tells others, which take it in unless it is lost
//	below inos=(…)               what lies below directories
//	ledger g=G                   all rows of accounts
func TestAccountScript(t *testing.T) {
	s := &accountScript{script: script{t: t}}
	datadriven.RunTest(t, "testdata/accounts", func(t *testing.T, d *datadriven.TestData) string {
		s.t, s.d = t, d
		if s.w != nil {
			s.w.t = t
		}
		return s.run()
	})
}

type accountScript struct {
	script
	seq uint64 // of commands over several groups
}

func (s *accountScript) run() string {
	if op, ok := strings.CutPrefix(s.d.Cmd, "t-"); ok {
		s.d.Cmd = op
		cmd := s.command()
		s.seq++
		cmd.Session, cmd.Seq, cmd.Cred = 9, s.seq, &wire.Cred{}
		d := newDriver(s.w)
		d.place = dfs.GroupID(s.num("place", 0))
		res, err := d.do(cmd)
		if err != nil || res.Kind != 0 {
			return fmt.Sprintf("%v, %v", res, err)
		}
		return fmt.Sprintf("ok %v", dfs.Ino(res.GetAttr().GetIno()))
	}
	switch s.d.Cmd {
	case "level":
		return s.done(&wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}})
	case "tally":
		return s.done(&wire.LogEntry{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: uint32(s.num("limit", 100))}}})
	case "report":
		return s.report()
	case "below":
		return s.below()
	case "ledger":
		return s.ledger()
	}
	return s.script.run()
}

func (s *accountScript) done(le *wire.LogEntry) string {
	res := s.w.apply(s.g(), le)
	if err := res.ToError("", ""); err != nil {
		return err.Error()
	}
	return "ok"
}

func (s *accountScript) report() string {
	u, err := ReadUntold(s.w.reader(s.g()), 0, 10)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, a := range u.Reports {
		fmt.Fprintf(&b, "%v in %v since %s counts for %s", dfs.Ino(a.Ino), dfs.Ino(a.Dir), version(a.Since), sumsText(sumsOf(a)))
		if s.has("lost") {
			b.WriteString(": lost\n")
			continue
		}
		res := s.w.apply(dfs.Ino(a.Dir).Group(), &wire.LogEntry{Entry: &wire.LogEntry_Absorb{Absorb: &wire.AbsorbOp{Of: []*wire.Absorption{a}}}})
		if len(res.Absorbed) == 0 {
			fmt.Fprintf(&b, ": not taken in %s\n", res.Text)
			continue
		}
		a.Sums = nil
		fmt.Fprintf(&b, ": %s\n", s.done(&wire.LogEntry{Entry: &wire.LogEntry_Reported{Reported: &wire.ReportedOp{Of: []*wire.Absorption{a}}}}))
	}
	return b.String() + fmt.Sprintf("tally=%v", u.Tally)
}

func sumsText(s sums) string {
	return fmt.Sprintf("%d bytes %d files %d dirs", s.bytes, s.files, s.dirs)
}

func (s *accountScript) below() string {
	var b strings.Builder
	for _, a := range s.d.CmdArgs {
		for _, v := range a.Vals {
			ino := dfs.Ino(s.parse(v))
			res, err := s.w.query(ino.Group(), &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{uint64(ino)}, Below: true}}})
			if err != nil {
				fmt.Fprintf(&b, "%v: %v\n", ino, err)
				continue
			}
			below := res.GetAttr().Attrs[0].Below
			if below == nil {
				fmt.Fprintf(&b, "%v: no account\n", ino)
				continue
			}
			fmt.Fprintf(&b, "%v: %s settled=%v\n", ino, sumsText(sums{below.Bytes, below.Files, below.Directories}), below.Settled)
		}
	}
	return b.String()
}

func (s *accountScript) ledger() string {
	var b strings.Builder
	for _, row := range s.w.rows(s.g(), "bcdefhiklmnopqrstw") {
		key, value := row[0], row[1]
		var err error
		switch key[0] {
		case tagAccount:
			var a *account
			if a, err = decodeAccount(key, value); err == nil {
				fmt.Fprintf(&b, "account of %v: %s", a.dir, sumsText(a.below))
				if a.queued && !a.elsewhere {
					fmt.Fprintf(&b, ", told %s", sumsText(a.told))
				}
				b.WriteString("\n")
			}
		case tagCount:
			var r countRow
			if r, err = decodeCount(key, value); err == nil {
				fmt.Fprintf(&b, "counting: from %q\n", r.next)
			}
		case tagUntold, tagReport:
			fmt.Fprintf(&b, "%v waits in queue %c\n", keyIno(key), key[0])
		case tagTaken:
			var r *absorbedRow
			if r, err = decodeAbsorbed(key, value); err == nil {
				fmt.Fprintf(&b, "%v has taken in of %v, named %d times since %s: %s\n", keyDir(key), keyIno(key), r.count, version(uint64(r.since)), sumsText(r.sums))
			}
		case tagNames:
			var r nameRow
			if r, err = decodeName(key, value); err == nil {
				fmt.Fprintf(&b, "%v has %d names in %v since %s\n", keyIno(key), r.count, keyDir(key), version(uint64(r.since)))
			}
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return b.String()
}
