package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version and commit are set by the build, with
// -ldflags "-X dfsd/cli.version=… -X dfsd/cli.commit=…", and never written to.
var version, commit string

// Version is the release of this binary: the stamp of the build, or "devel".
func Version() string {
	if version != "" {
		return version
	}
	return "devel"
}

// revision is the commit that the binary was built from, "unknown" where
// neither the stamp nor the Go toolchain recorded it.
func revision() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

func versionLine() string {
	return fmt.Sprintf("dfsd %s (commit %s, %s, %s/%s)", Version(), revision(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  checked(cobra.ExactArgs(0)),
		RunE: func(cmd *cobra.Command, _ []string) error {
			about := struct {
				Version  string `json:"version"`
				Commit   string `json:"commit"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{Version(), revision(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(about)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object with version, commit, go and platform")
	return cmd
}
