package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"dfsd/config"
	"dfsd/dfs"
)

func TestErrorLine(t *testing.T) {
	plain := errors.New("no meta node answered")
	lost := &verbError{err: plain, code: exitUnreachable}
	for _, c := range []struct {
		err  error
		code exitCode
		line string
	}{
		{nil, exitDone, ""},
		{plain, exitFailed, "dfsd: no meta node answered"},
		{lost, exitUnreachable, "dfsd: no meta node answered"},
		{withHint(lost, "try --meta"), exitUnreachable, "dfsd: no meta node answered; try --meta"},
		{fmt.Errorf("ls /a: %w", withHint(lost, "try --meta")), exitUnreachable, "dfsd: ls /a: no meta node answered; try --meta"},
		{withHint(withHint(plain, "inner"), "outer"), exitFailed, "dfsd: no meta node answered; outer"},
		{withHint(usagef("bad %s", "flag"), "see --help"), exitUsage, "dfsd: bad flag; see --help"},
		{fmt.Errorf("start: %w", config.Faults{{Where: "a:1", Want: "x"}, {Where: "a:2", Want: "y"}}), exitUsage, "dfsd: start: configuration: 2 faults\n  a:1: x\n  a:2: y"},
		{errors.New("one\ntwo"), exitFailed, "dfsd: one"},
		{errors.New("\x1b[2Jgone\xff"), exitFailed, `dfsd: \033[2Jgone\377`},
	} {
		if got := exitCodeOf(c.err); got != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.code)
		}
		if c.err == nil {
			continue
		}
		if got := errorLine(c.err); got != c.line {
			t.Errorf("printed %q, want %q", got, c.line)
		}
	}
}

// TestFailed: the verb and the object stand once, in the user's words, whatever
// the layers below put around the cause.
func TestFailed(t *testing.T) {
	for _, c := range []struct {
		object string
		err    error
		line   string
		kind   dfs.Kind
	}{
		{"/a", dfs.Wrap("stat", "/a", dfs.NotExist), "dfsd: ls /a: does not exist", dfs.NotExist},
		{"/a", dfs.Wrap("stat", "/a", dfs.Wrap("walk", "1:2", dfs.Errorf(dfs.NotExist, "look up", "%q does not exist", "x"))), `dfsd: ls /a: "x" does not exist`, dfs.NotExist},
		{"/a b\n", dfs.Errorf(dfs.IsDir, "open", "no"), `dfsd: ls $'/a b\n': no`, dfs.IsDir},
		{"x", &fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, "dfsd: ls x: permission denied", dfs.Other},
		{"", dfs.Wrap("status", "", dfs.Errorf(dfs.Unavailable, "call", "nobody answers")), "dfsd: ls: nobody answers; see dfsd status", dfs.Unavailable},
		{"/a", withHint(dfs.IsDir, "use -r"), "dfsd: ls /a: is a directory; use -r", dfs.IsDir},
	} {
		err := failed("ls", c.object, c.err)
		if got := errorLine(err); got != c.line {
			t.Errorf("printed %q, want %q", got, c.line)
		}
		if got := dfs.KindOf(err); got != c.kind {
			t.Errorf("%v: kind %v, want %v", err, got, c.kind)
		}
	}
}

func TestUnreachable(t *testing.T) {
	text := "no meta node can be used: a:1: connect to a:1: dial tcp a:1: connect: connection refused; b:2: it belongs to no cluster yet"
	for _, c := range []struct {
		kind dfs.Kind
		code exitCode
		want string
	}{
		{dfs.Unavailable, exitUnreachable, "dfsd: reach the cluster: no meta node can be used: a:1: connection refused; b:2: it belongs to no cluster yet; a cluster is made once every meta node that the configuration lists is up"},
		{dfs.WrongCluster, exitUnreachable, "it belongs to no cluster yet; see cluster_id"},
		{dfs.Permission, exitUnreachable, "see tls.ca"},
	} {
		err := unreachable(dfs.Wrap("reach the cluster", "", dfs.Errorf(c.kind, "", "%s", text)), []string{"a:1", "b:2"})
		if line := errorLine(err); !strings.Contains(line, c.want) || exitCodeOf(err) != c.code {
			t.Errorf("%v: exit code %d, printed %q", c.kind, exitCodeOf(err), line)
		}
	}
	if line := errorLine(unreachable(dfs.Errorf(dfs.Unavailable, "", "nobody is there"), nil)); !strings.HasSuffix(line, "start one here with dfsd dev") {
		t.Errorf("printed %q", line)
	}
}

// TestLookFailed: a look at the cluster does not send its user to dfsd status.
func TestLookFailed(t *testing.T) {
	for _, c := range []struct {
		verb string
		err  error
		line string
	}{
		{"status", dfs.Errorf(dfs.Unavailable, "call", "not the leader"), "dfsd: status: not the leader; no meta node that leads the control group answers: start meta nodes, for a majority is needed, or wait for an election; if the disks of a majority are gone for good see dfsd group recover --help"},
		{"status", dfs.Errorf(dfs.Deadline, "call", "too late"), "dfsd: status: too late; no meta node that leads the control group answers: start meta nodes, for a majority is needed, or wait for an election; if the disks of a majority are gone for good see dfsd group recover --help"},
		{"status", dfs.Errorf(dfs.Busy, "call", "too many"), "dfsd: status: too many"},
		{"group ls", dfs.Errorf(dfs.Permission, "call", "no"), "dfsd: group ls: no"},
	} {
		if got := errorLine(lookFailed(c.verb, c.err)); got != c.line {
			t.Errorf("printed %q, want %q", got, c.line)
		}
	}
}
