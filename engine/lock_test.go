package engine

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// holdDir names the directory that a second process of this test looks into.
const holdDir = "DFSD_TEST_HOLD"

// TestOfflineToolIsNamed: a start that an offline tool is in the way of names that
// one, and not the server that had the store open last.
func TestOfflineToolIsNamed(t *testing.T) {
	if name := os.Getenv(holdDir); name != "" {
		in, err := Inspect(vfs.Default, name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	o := testOptions(vfs.Default)
	o.Dir = t.TempDir() + "/store"
	mustClose(t, mustOpen(t, o))

	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOfflineToolIsNamed$")
	cmd.Env = append(os.Environ(), holdDir+"="+o.Dir)
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, err = Open(o)
	wantKind(t, err, dfs.Unavailable)
	if want := fmt.Sprintf("process %d", cmd.Process.Pid); !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "4711") {
		t.Errorf("%q does not name %s", err, want)
	}
	_ = stop.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	mustClose(t, mustOpen(t, o))
}
