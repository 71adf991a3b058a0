package raftgroup

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// Damage of the two stores ends differently.
//
//	log store    it has lost what it synced, so this node may have promised what it
//	             no longer knows: the whole host is silent at once, and a file says so
//	             to every later start. Only a node under another number may go on.
//	state store  nothing is lost that the log or another node has not: the host ends,
//	             the store is put aside, and the next start begins it anew.
const (
	damagedFile = "raft-damaged"       // a line of text: why the log must not be opened
	stateAside  = "raft-state-damaged" // the last state store that was put aside
)

// LogDamage says that the log store has lost what this node may have
// acknowledged. Its kind is Corrupt.
type LogDamage struct{ Err error }

func (d *LogDamage) Error() string { return d.Err.Error() }

// Unwrap returns what was found.
func (d *LogDamage) Unwrap() error { return d.Err }

// IsLogDamage reports whether an error of Open or Failure says that this node
// must never again vote or acknowledge under its number.
func IsLogDamage(err error) bool {
	var d *LogDamage
	return errors.As(err, &d)
}

// logDamage marks an error of reading the log store, if it is one of damage.
func logDamage(err error) error {
	if dfs.KindOf(err) != dfs.Corrupt {
		return err
	}
	return &LogDamage{err}
}

// stateDamage is damage of the state store.
type stateDamage struct{ err error }

func (d *stateDamage) Error() string { return d.err.Error() }

func (d *stateDamage) Unwrap() error { return d.err }

// inState marks an error of reading the state store, if it is one of damage.
func inState(err error) error {
	if dfs.KindOf(err) != dfs.Corrupt {
		return err
	}
	return &stateDamage{err}
}

func isStateDamage(err error) bool {
	var d *stateDamage
	return errors.As(err, &d)
}

// checkDamaged refuses a log that was found damaged before.
func checkDamaged(o *Options) error {
	path := o.FS.PathJoin(o.Dir, damagedFile)
	there, err := exists(o.FS, path)
	if err != nil {
		return wrapStore("open raft host", path, err)
	}
	if !there {
		return nil
	}
	return &LogDamage{dfs.Errorf(dfs.Corrupt, "open raft host", "the log was found damaged: %s", readLine(o.FS, path))}
}

// readLine returns the text of a small file. Whether it can be read or not, the
// file is there.
func readLine(fs vfs.FS, path string) string {
	f, err := fs.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	buf := make([]byte, 4<<10)
	n, _ := f.Read(buf)
	return string(buf[:n])
}

// recordDamage makes it durable that the log is damaged.
func (h *Host) recordDamage(why error) {
	fs, path := h.opts.FS, h.opts.FS.PathJoin(h.opts.Dir, damagedFile)
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write([]byte(why.Error()))
		err = firstError(err, f.Sync(), f.Close(), syncDir(fs, h.opts.Dir))
	}
	if err != nil {
		h.log.Error("that the log is damaged cannot be recorded; it will be found again", "file", path, "cause", err)
	}
}

// failLog ends the host for a failure of its log store. After damage nothing of
// any group leaves it any more.
func (h *Host) failLog(err error) { h.fail(logDamage(err)) }

// failState ends the host for a failure of its state store. While the stores are
// opened it is only noted.
func (h *Host) failState(err error) {
	err = inState(err)
	h.mu.Lock()
	opening := !h.opened
	if opening {
		h.stateFault = firstError(h.stateFault, err)
	}
	h.mu.Unlock()
	if !opening {
		h.fail(err)
	}
}

// takeStateFault returns what was noted since the last call.
func (h *Host) takeStateFault() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.stateFault
	h.stateFault = nil
	return err
}

// putStateAside renames a damaged state store, which is closed: one generation is
// kept, until all groups have a state again.
func (h *Host) putStateAside(cause error) error {
	fs, dir := h.opts.FS, h.opts.FS.PathJoin(h.opts.Dir, "raft-state")
	aside := fs.PathJoin(h.opts.Dir, stateAside)
	h.log.Error("state store damaged; it is put aside and fetched anew", "store", dir, "aside", aside, "cause", cause)
	if err := fs.RemoveAll(aside); err != nil {
		return wrapStore("put raft state aside", aside, err)
	}
	if err := fs.Rename(dir, aside); err != nil {
		return wrapStore("put raft state aside", dir, err)
	}
	return wrapStore("put raft state aside", dir, syncDir(fs, h.opts.Dir))
}

// dropAside removes the state store that was put aside once every group has a
// state.
func (h *Host) dropAside() error {
	path := h.opts.FS.PathJoin(h.opts.Dir, stateAside)
	if there, err := exists(h.opts.FS, path); !there || err != nil {
		return err
	}
	for _, r := range h.sorted() {
		if r.state.missing() {
			return nil
		}
	}
	return h.opts.FS.RemoveAll(path)
}
