//go:build e2e

package chaos

import (
	"os"
	"path/filepath"
	"testing"
)

// nobody is the ordinary user of the second run.
const nobody = 65534

// TestFirstLight runs the scenario with real processes: as this user, and, when
// that is root, as an ordinary one. The binary is named by DFSD_E2E_BINARY.
func TestFirstLight(t *testing.T) {
	binary, err := filepath.Abs(os.Getenv("DFSD_E2E_BINARY"))
	if err != nil || os.Getenv("DFSD_E2E_BINARY") == "" {
		t.Fatal("DFSD_E2E_BINARY does not name the dfsd to test: run make e2e")
	}
	users := map[string]int{"self": -1}
	if os.Geteuid() == 0 {
		users["ordinary"] = nobody
	}
	for name, uid := range users {
		t.Run(name, func(t *testing.T) {
			s, err := Load("../../testdata/scenarios/first-light.yaml")
			if err != nil {
				t.Fatal(err)
			}
			dir, err := os.MkdirTemp("", "dfsd-e2e-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			// The ordinary user may not reach where the binary was built.
			mine := filepath.Join(dir, "dfsd")
			if err := copyFile(binary, mine); err != nil {
				t.Fatal(err)
			}
			if err := Run(t.Context(), s, Options{Binary: mine, Dir: dir, Log: t.Logf, UID: uid, GID: uid}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
