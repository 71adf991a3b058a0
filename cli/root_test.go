package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestMainExitCodesAndErrors(t *testing.T) {
	for _, c := range []struct {
		args   string
		code   int
		stdout string // a part of it
		stderr string // all of it
	}{
		{"", 0, "A distributed file system", ""},
		{"version", 0, "dfsd " + Version() + " (commit ", ""},
		{"version extra", 2, "", "dfsd: version: accepts 0 arg(s), received 1; usage: dfsd version [flags]\n"},
		{"version --jsn", 2, "", "dfsd: unknown flag: --jsn; see dfsd version --help\n"},
		{"versoin", 2, "", "dfsd: \"versoin\": there is no such command; did you mean version?\n"},
		{"frobnicate /a", 2, "", "dfsd: \"frobnicate\": there is no such command; see dfsd --help\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := Main(t.Context(), strings.Fields(c.args), Process{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
			if code != c.code || !strings.Contains(stdout.String(), c.stdout) || stderr.String() != c.stderr {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, c.code, &stdout, &stderr)
			}
		})
	}
}

func TestVersionJSON(t *testing.T) {
	var stdout bytes.Buffer
	if code := Main(t.Context(), []string{"version", "--json"}, Process{Out: &stdout, Err: &stdout}); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stdout)
	}
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"version", "commit", "go", "platform"} {
		if got[key] == "" {
			t.Errorf("%s is missing in %s", key, &stdout)
		}
	}
}

func TestErrorLine(t *testing.T) {
	cause := errors.New("no meta node answered")
	unreachable := &verbError{err: cause, code: exitUnreachable}
	for _, c := range []struct {
		err  error
		code exitCode
		line string
	}{
		{nil, exitDone, ""},
		{cause, exitFailed, "dfsd: no meta node answered"},
		{unreachable, exitUnreachable, "dfsd: no meta node answered"},
		{withHint(unreachable, "try --meta"), exitUnreachable, "dfsd: no meta node answered; try --meta"},
		{fmt.Errorf("ls /a: %w", withHint(unreachable, "try --meta")), exitUnreachable, "dfsd: ls /a: no meta node answered; try --meta"},
		{withHint(withHint(cause, "inner"), "outer"), exitFailed, "dfsd: no meta node answered; outer"},
		{withHint(usagef("bad %s", "flag"), "see --help"), exitUsage, "dfsd: bad flag; see --help"},
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
