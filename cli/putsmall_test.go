package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSmallFilesTogether: small files of a directory are stored together, each with
// an outcome of its own, and removed together.
func TestSmallFilesTogether(t *testing.T) {
	c, dir := startCluster(t), filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const files = 300
	write := func(text string) {
		t.Helper()
		for i := range files {
			b := []byte(fmt.Sprint(text, i))
			if i%100 == 50 { // not small, or empty
				b = make([]byte, (i-50)/100*2*smallFile)
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), b, 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("first ")
	if out := c.ok("put", "-r", "--json", dir, "/d"); !strings.Contains(out, fmt.Sprintf(`"files":%d,`, files)) {
		t.Errorf("%s", out)
	}
	c.ok("rm", "/d/f7")
	c.ok("mkdir", "/d/f8x")
	write("second ")
	if out := c.ok("put", "-r", "-n", "--json", dir+"/.", "/d"); !strings.Contains(out, `"files":1,`) || !strings.Contains(out, fmt.Sprintf(`"skipped":%d,`, files-1)) {
		t.Errorf("%s", out)
	}
	for path, want := range map[string]string{"/d/f7": "second 7", "/d/f8": "first 8", "/d/f50": ""} {
		if got := c.ok("cat", path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	if out := c.ok("stat", "/d/f150"); !strings.Contains(out, fmt.Sprint(2*smallFile)) {
		t.Errorf("%s", out)
	}
	c.ok("rm", "/d/f9")
	c.ok("mkdir", "/d/f9") // in a file's way
	c.no(1, "/f9: ", "put", "-r", dir+"/.", "/d")
	if got := c.ok("cat", "/d/f8"); got != "second 8" {
		t.Errorf("/d/f8 holds %q: one that fails is nothing to the others", got)
	}
	c.ok("rm", "-r", "/d")
	if out := c.ok("ls", "/"); out != "" {
		t.Errorf("left: %s", out)
	}
}
