package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// checkStore is Verify for a store that is open, while nothing is changed or
// given up: it returns the first fault that the store does not know of.
func checkStore(s *Store) error {
	s.giveUpTurn <- struct{}{}
	defer func() { <-s.giveUpTurn }()
	s.index.turn <- struct{}{}
	defer func() { <-s.index.turn }()
	// Other files may be made or used again meanwhile.
	v := &survey{fs: s.opts.FS, dir: s.opts.Dir}
	var names []string
	for n := range *s.segs.byNumber.Load() {
		names = append(names, segmentName(n))
	}
	if err := v.read(names); err != nil {
		return err
	}
	c := newFsck(context.Background(), v, nil)
	c.ix, c.open = s.index, true
	s.pgMu.RLock()
	c.floors = maps.Clone(s.floors)
	s.pgMu.RUnlock()
	c.bounds = s.ledger.bounds()
	if err := c.run(); err != nil {
		return err
	}
	return unknown(c.report)
}

// unknown is the first fault in a report that the store does not know of.
func unknown(r *Report) error {
	for _, f := range r.Faults {
		if !f.Known {
			return errors.New(f.String())
		}
	}
	return nil
}

// verifyDir is Verify for a directory that no store has open.
func verifyDir(fs vfs.FS, dir string) (*Report, error) {
	in, err := Inspect(fs, dir)
	if err != nil {
		return nil, err
	}
	report, err := in.Verify(context.Background(), nil)
	return report, errors.Join(err, in.Close())
}

// fsckDir fails the test when Verify finds what the store does not know of.
func fsckDir(t testing.TB, fs vfs.FS, dir string) {
	t.Helper()
	if err := fsckErr(fs, dir); err != nil {
		t.Error(err)
	}
}

func fsckErr(fs vfs.FS, dir string) error {
	report, err := verifyDir(fs, dir)
	if err == nil {
		err = unknown(report)
	}
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	return nil
}
