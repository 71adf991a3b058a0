package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dfsd/config"
	"dfsd/dfs"
)

// run runs a command line and returns what came of it.
func run(ctx context.Context, p Process, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	if p.In == nil {
		p.In = strings.NewReader("")
	}
	p.Out, p.Err = &out, &errOut
	code = Main(ctx, args, p)
	return code, out.String(), errOut.String()
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   string
		code   int
		stdout string // a part of it
		stderr string // all of it
	}{
		{"", 0, "A distributed file system", ""},
		{"version", 0, "dfsd " + Version() + " (commit ", ""},
		{"version extra", 2, "", "dfsd: version: 1 argument given; usage: dfsd version\n"},
		{"--version", 0, "dfsd " + Version() + " (commit ", ""},
		{"stat", 2, "", "dfsd: stat: an argument is missing; usage: dfsd stat [-L] PATH…\n"},
		{"node show", 2, "", "dfsd: node show: an argument is missing; usage: dfsd node show NODE\n"},
		{"pg ls --state foo", 2, "", "dfsd: pg ls: --state \"foo\": want full, moving, degraded, below-minimum, stalled, new\n"},
		{"version --jsn", 2, "", "dfsd: unknown flag: --jsn; see dfsd version --help\n"},
		{"versoin", 2, "", "dfsd: \"versoin\": there is no such command; did you mean version?\n"},
		{"frobnicate /a", 2, "", "dfsd: \"frobnicate\": there is no such command; see dfsd --help\n"},
		{"node", 2, "", "dfsd: node: which command of it?; see dfsd node --help\n"},
		{"help put", 0, "dfsd put [-r] SOURCE… DESTINATION", ""},
		{"help node show", 0, "dfsd node show NODE", ""},
		{"help frobnicate", 2, "", "dfsd: \"frobnicate\": there is no such command; see dfsd --help\n"},
		{"help versoin", 2, "", "dfsd: \"versoin\": there is no such command; did you mean version?\n"},
		{"help node sl", 2, "", "dfsd: \"sl\": there is no such command; did you mean ls?\n"},
		{"node sl", 2, "", "dfsd: \"sl\": there is no such command; did you mean ls?\n"},
		{"ls docs", 2, "", "dfsd: ls docs: a path of the cluster is absolute: it begins with /\n"},
		{"put a b", 2, "", "dfsd: put b: a path of the cluster is absolute: it begins with /\n"},
		{"get a /b", 2, "", "dfsd: get a: a path of the cluster is absolute: it begins with /\n"},
		{"put /a", 2, "", "dfsd: put: 1 argument given; usage: dfsd put [-r] SOURCE… DESTINATION\n"},
		{"put --jobs 0 a /b", 2, "", "dfsd: put: --jobs 0: want 1 to 256\n"},
		{"rm -r /", 2, "", "dfsd: rm /: refused: name what is to be removed\n"},
		{"rm -rf ///", 2, "", "dfsd: rm ///: refused: name what is to be removed\n"},
		{"rm -rf /a/.", 2, "", "dfsd: rm /a/.: refused: name what is to be removed\n"},
		{"rm -rf /a/../", 2, "", "dfsd: rm /a/../: refused: name what is to be removed\n"},
		{"mkdir -m 9 /a", 2, "", "dfsd: mkdir: --mode \"9\": want an octal number up to 7777\n"},
		{"status --wait soon", 2, "", "dfsd: status: --wait \"soon\": want ready or full\n"},
		{"status --timeout soon", 2, "", "dfsd: configuration: --timeout: \"soon\": want a time from 1ms to 24h with its unit\n"},
		{"policy set /a rep99", 2, "", "dfsd: policy set: storage class \"rep99\": want rep1 to rep16, or ecK+M with K from 2, M from 1, K+M up to 32\n"},
		{"policy set /a ec4+2", 2, "", "dfsd: policy set: ec4+2: this release stores replicated classes only, rep1 to rep16\n"},
		{"engine", 2, "", "dfsd: engine: which command of it?; see dfsd engine --help\n"},
		{"engine dump /x", 2, "", "dfsd: engine dump: 1 argument given; usage: dfsd engine dump DIR SEGMENT\n"},
		{"engine dump /x zz", 2, "", "dfsd: engine dump: segment \"zz\": want its number, or the name of its file\n"},
		{"engine ls --pg 0 /x", 2, "", "dfsd: engine ls: --pg \"0\": want the number of a placement group, such as 7 or pg7\n"},
		{"dev --storage 0", 2, "", "dfsd: dev: --storage 0: want 1 to 60\n"},
		{"dev --meta 11", 2, "", "dfsd: dev: --meta 11: want 1 to 10\n"},
		{"--role=meta ls /", 2, "", "dfsd: unknown flag: --role; see dfsd ls --help\n"},
		{"ls / --tls.ca /no/ca --tls.cert /no/cert --tls.key /no/key", 2, "", "dfsd: read TLS file /no/ca: open /no/ca: no such file or directory\n"},
		{"ls -h /x --help", 0, "List directories", ""},

		{"ls " + strings.Repeat("x", 5000), 2, "", "dfsd: ls " + strings.Repeat("x", 120) + "…" + strings.Repeat("x", 60) + " (5000 bytes): a path of the cluster is absolute: it begins with /\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, stdout, stderr := run(t.Context(), Process{}, strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || stderr != c.stderr {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, c.code, stdout, stderr)
			}
		})
	}
}

func TestVersionJSON(t *testing.T) {
	code, stdout, stderr := run(t.Context(), Process{}, "version", "--json")
	var got map[string]string
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, stderr)
	}
	for _, key := range []string{"version", "commit", "go", "platform"} {
		if got[key] == "" {
			t.Errorf("%s is missing in %s", key, stdout)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	code, _, stderr := run(t.Context(), Process{}, "--meta", "127.0.0.1:1,127.0.0.1:2", "--timeout", "1s", "ls", "/")
	if code != 3 || !strings.Contains(stderr, "127.0.0.1:1: ") || !strings.Contains(stderr, "127.0.0.1:2: ") || !strings.Contains(stderr, "dfsd dev") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestServer: what is a server's command line, and what comes of it.
func TestServer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(file, []byte("role: storage\nname: a\ndir: /d\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		env    []string
		fail   error
		code   int
		served string // role and name
		stderr string // a part of it
	}{
		{"file", []string{"--config", file}, nil, nil, 0, "storage a", ""},
		{"role and file", []string{"--role=storage", "--config=" + file}, nil, nil, 0, "storage a", ""},
		{"apart", []string{"--config", file, "--role", "storage", "--name", "b"}, nil, nil, 0, "storage b", ""},
		{"environment", nil, []string{"DFSD_ROLE=storage", "DFSD_NAME=c", "DFSD_DIR=/d"}, nil, 0, "storage c", ""},
		{"fault", []string{"--role=sorage", "--name=a", "--dir=/d"}, nil, nil, 2, "", `--role: "sorage": want meta, storage, or both`},
		{"unknown flag", []string{"--role=storage", "--nmae=a"}, nil, nil, 2, "", "--nmae: there is no such flag; the nearest is --name"},
		{"no such file", []string{"--role=storage", "--config", file + "x"}, nil, nil, 2, "", "cannot be read"},
		{"a word too many", []string{"--role=storage", "--config", file, "surplus"}, nil, nil, 2, "", "unknown flag: --role"},
		{"foreign directory", []string{"--config", file}, nil, dfs.Errorf(dfs.Invalid, "open", "not a data directory"), 2, "storage a", "dfsd: a: open: not a data directory"},
		{"busy port", []string{"--config", file}, nil, dfs.Errorf(dfs.Busy, "listen", "in use"), 1, "storage a", "dfsd: a: listen: in use"},
		{"bad parent", []string{"--config", file, "--parent-fd=x"}, nil, nil, 2, "", "--parent-fd"},
		{"own stdin as parent", []string{"--config", file, "--parent-fd=0"}, nil, nil, 2, "", "--parent-fd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			served := ""
			p := Process{Env: c.env, Serve: func(_ context.Context, cfg *config.Server, _ string, _ io.Writer) error {
				served = cfg.Roles.String() + " " + cfg.Name
				return c.fail
			}}
			code, stdout, stderr := run(t.Context(), p, c.args...)
			if code != c.code || served != c.served || !strings.Contains(stderr, c.stderr) || stdout != "" {
				t.Errorf("exit code %d, want %d; served %q\nstdout: %s\nstderr: %s", code, c.code, served, stdout, stderr)
			}
		})
	}
}

func TestServerHelp(t *testing.T) {
	code, stdout, _ := run(t.Context(), Process{}, "--role=meta", "--help")
	if code != 0 || !strings.Contains(stdout, "--default-class") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

// inheritedPipe returns the reading end of a pipe as a process inherits it, a
// number that nobody else here closes, and the parent's end.
func inheritedPipe(t *testing.T) (fd int, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = syscall.Dup(int(r.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return fd, w
}

// TestServerEndsWithItsParent: a closed pipe stops the node, whatever closed it.
func TestServerEndsWithItsParent(t *testing.T) {
	fd, w := inheritedPipe(t)
	ctx, stop, err := untilClosed(t.Context(), fd)
	if err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Error("stopped before the pipe was closed")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	stop()
}

// TestServerOutlivesItsPipe: the watcher of the pipe ends with the node.
func TestServerOutlivesItsPipe(t *testing.T) {
	fd, w := inheritedPipe(t)
	defer w.Close()
	_, stop, err := untilClosed(t.Context(), fd)
	if err != nil {
		t.Fatal(err)
	}
	stop() // hangs when the watcher does not end
}
