package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"dfsd/engine"
)

// engineReport is what verify prints.
type engineReport struct {
	Version    int           `json:"version"`
	OK         bool          `json:"ok"`
	Segments   int           `json:"segments"`
	Bytes      int64         `json:"bytes"`
	Batches    int           `json:"batches"`
	Records    int           `json:"records"`
	Blocks     uint64        `json:"blocks"`
	Tombstones uint64        `json:"tombstones"`
	Faults     []engineFault `json:"faults"`
	More       int           `json:"more_faults"`
	Notes      []string      `json:"notes"`
	Seconds    float64       `json:"seconds"`
}

func (a *app) engineVerify() *cobra.Command {
	cmd := a.engineVerb("verify DIR", "Read everything in a store and check it", 1, func(ctx context.Context, dir string, asJSON bool, _ []string) error {
		return a.inspect(ctx, dir, func(in *engine.Inspection) error {
			begun := time.Now()
			m := a.newMeter("verify")
			r, err := in.Verify(ctx, m.progress)
			m.end()
			if err != nil {
				return err
			}
			took := time.Since(begun)
			if asJSON {
				err = printJSON(a.proc.Out, &engineReport{
					jsonVersion, r.OK(), r.Segments, r.Bytes, r.Batches, r.Records, r.Blocks, r.Tombstones,
					toEngineFaults(r.Faults), r.MoreFaults, append([]string{}, r.Notes...), took.Seconds(),
				})
			} else {
				err = printReport(a.proc.Out, r, took)
			}
			if err == nil && !r.OK() {
				err = somethingWrong(len(r.Faults) + r.MoreFaults)
			}
			return err
		})
	})
	cmd.Long = `Read everything in a store and check it: the small files, every batch and record of every segment with
the checksums of the blocks, footers, and the index against the segments. Nothing is changed. What is
wrong is named by file, offset and block; what is only worth knowing, such as a batch that a crash cut
short, is a note.`
	return cmd
}

func printReport(w io.Writer, r *engine.Report, took time.Duration) error {
	b := bufio.NewWriter(w)
	for _, f := range r.Faults {
		known := ""
		if f.Known {
			known = " (known to the store)"
		}
		fmt.Fprintf(b, "wrong: %s%s\n", printable(f.String()), known)
	}
	if r.MoreFaults > 0 {
		fmt.Fprintf(b, "wrong: and %d more\n", r.MoreFaults)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(b, "note: %s\n", printable(n))
	}
	fmt.Fprintf(b, "read %s with %s in %s, %s in %.2f s, %s; the index has %s, %s\n", plural(r.Segments, "segment"), plural(r.Records, "record"),
		batches(r.Batches), sizeText(uint64(r.Bytes)), took.Seconds(), rateText(r.Bytes, took), plural(r.Blocks, "block"), plural(r.Tombstones, "tombstone"))
	return b.Flush()
}

func batches(n int) string {
	if n == 1 {
		return "1 batch"
	}
	return fmt.Sprintf("%d batches", n)
}
