package cli

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"dfsd/engine"
)

func (a *app) engineRebuild() *cobra.Command {
	cmd := a.engineVerb("rebuild-index DIR", "Make the index of a store anew from its segments", 1, func(ctx context.Context, dir string, asJSON bool, _ []string) error {
		begun := time.Now()
		m := a.newMeter("rebuild-index")
		r, err := engine.RebuildIndex(ctx, engine.Options{
			FS: vfs.Default, Dir: dir, NewMark: newMark, PID: os.Getpid(),
		}, m.progress)
		m.end()
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(a.proc.Out, toEngineRebuilt(r, time.Since(begun)))
		} else {
			_, err = fmt.Fprintf(a.proc.Out, "%s, %s from %s with %s of log in %.2f s\n", plural(r.Blocks, "block"), plural(r.Tombstones, "tombstone"),
				plural(r.Segments, "segment"), sizeText(r.Bytes), time.Since(begun).Seconds())
		}
		return cmpErr(err, a.complainOfDamage(r))
	})
	cmd.Long = `Make the index of a store anew from its segments, as a start does that finds it damaged. The index is
derived: nothing is lost by this, and what is damaged in the segments, or which of them is missing, is found
anew: a segment file that was moved away is to be put back first. It is not to be interrupted by Ctrl-C once
it has begun; when it is killed, the next start of the store goes on.`
	return cmd
}

// complainOfDamage prints what a rebuild found damaged. Its error says so.
func (a *app) complainOfDamage(r *engine.Rebuilt) error {
	for _, x := range r.Missing {
		fmt.Fprintf(a.proc.Err, "wrong: %s\n", missingText(x))
	}
	for _, d := range r.Damage {
		what := ""
		if d.Named {
			what = "block " + d.ID.String() + ": "
		}
		fmt.Fprintf(a.proc.Err, "wrong: segment %d at %d: %s%s\n", d.Segment, d.Offset, what, d.Reason)
	}
	switch {
	case len(r.Damage) > 0:
		return fmt.Errorf("the index is made, and %s damaged", places(len(r.Damage)))
	case r.Unnamed:
		return fmt.Errorf("the index is made, and records are lost that nobody can name: the cluster will fill the store again")
	}
	return nil
}

// missingText names segments that are lost.
func missingText(x [2]uint64) string {
	if x[0] == x[1] {
		return fmt.Sprintf("segment %d is missing", x[0])
	}
	return fmt.Sprintf("segments %d to %d are missing", x[0], x[1])
}

func places(n int) string {
	if n == 1 {
		return "1 place in the segments is"
	}
	return fmt.Sprintf("%d places in the segments are", n)
}

// engineRebuilt is what rebuild-index prints.
type engineRebuilt struct {
	Version    int            `json:"version"`
	Blocks     uint64         `json:"blocks"`
	Tombstones uint64         `json:"tombstones"`
	Segments   int            `json:"segments"`
	Bytes      uint64         `json:"bytes"`
	LastSeq    uint64         `json:"last_seq"`
	Unnamed    bool           `json:"damaged_unnamed"`
	Missing    [][2]uint64    `json:"missing"` // first and last number of each range
	Damage     []engineDamage `json:"damage"`
	Seconds    float64        `json:"seconds"`
}

type engineDamage struct {
	Segment uint64 `json:"segment"`
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"`
	Block   string `json:"block,omitempty"`
	Shard   uint8  `json:"shard,omitempty"`
	Text    string `json:"text"`
}

func toEngineRebuilt(r *engine.Rebuilt, took time.Duration) *engineRebuilt {
	out := &engineRebuilt{
		jsonVersion, r.Blocks, r.Tombstones, r.Segments, r.Bytes, r.LastSeq, r.Unnamed, append([][2]uint64{}, r.Missing...), []engineDamage{}, took.Seconds(),
	}
	for _, d := range r.Damage {
		e := engineDamage{Segment: d.Segment, Offset: d.Offset, Length: d.Length, Text: d.Reason}
		if d.Named {
			e.Block, e.Shard = d.ID.String(), d.Shard
		}
		out.Damage = append(out.Damage, e)
	}
	return out
}

// newMark draws a random number that is not 0.
func newMark() uint64 {
	for {
		var p [8]byte
		_, _ = rand.Read(p[:]) // it never fails
		if n := binary.BigEndian.Uint64(p[:]); n != 0 {
			return n
		}
	}
}
