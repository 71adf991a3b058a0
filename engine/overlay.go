package engine

import (
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"sync"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// overlay shows a file system with changes that are kept in memory: whatever is
// done through it, nothing below is changed. A store that is opened over it does
// what a start would do, for looking at the outcome.
//
// A file is in one of three places: made or replaced here (mem), below with
// pages written over it (patches), or below as it is. A name below that was
// removed or replaced here is gone, and with it all that was under it.
type overlay struct {
	vfs.FS // below; its paths are ours
	mem    *vfs.MemFS

	// mu guards what follows.
	mu      sync.Mutex
	gone    map[string]bool
	patches map[string]*patch // by name
}

func newOverlay(below vfs.FS) *overlay {
	return &overlay{FS: below, mem: vfs.NewMem(), gone: map[string]bool{}, patches: map[string]*patch{}}
}

// hide makes a name below, and what is under it, invisible.
func (o *overlay) hide(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone[name] = true
	delete(o.patches, name)
}

// hidden reports whether what is below under the name is not to be seen.
func (o *overlay) hidden(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if o.gone[name] {
			return true
		}
		up := o.PathDir(name)
		if up == name {
			return false
		}
		name = up
	}
}

func (o *overlay) inMem(name string) bool {
	_, err := o.mem.Stat(name)
	return err == nil
}

func notExist(op, name string) error {
	return &iofs.PathError{Op: op, Path: name, Err: iofs.ErrNotExist}
}

func (o *overlay) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := o.mem.MkdirAll(o.PathDir(name), 0o700); err != nil {
		return nil, err
	}
	o.hide(name)
	return o.mem.Create(name, c)
}

func (o *overlay) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if o.inMem(name) {
		return o.mem.Open(name, opts...)
	}
	if o.hidden(name) {
		return nil, notExist("open", name)
	}
	f, err := o.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.patches[name]; p != nil {
		return &patchedFile{File: f, patch: p}, nil
	}
	return f, nil
}

// OpenReadWrite opens a file below for reading, and keeps what is written.
func (o *overlay) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if o.inMem(name) {
		return o.mem.OpenReadWrite(name, c, opts...)
	}
	if o.hidden(name) {
		return o.Create(name, c)
	}
	f, err := o.FS.Open(name, opts...)
	if isNotExist(err) {
		return o.Create(name, c)
	}
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.patches[name] == nil {
		o.patches[name] = &patch{pages: map[int64][]byte{}}
	}
	return &patchedFile{File: f, patch: o.patches[name]}, nil
}

func (o *overlay) OpenDir(name string) (vfs.File, error) {
	if _, err := o.Stat(name); err != nil {
		return nil, err
	}
	if err := o.mem.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	return o.mem.OpenDir(name)
}

func (o *overlay) Remove(name string) error {
	if _, err := o.Stat(name); err != nil {
		return err
	}
	if o.inMem(name) {
		if err := o.mem.Remove(name); err != nil {
			return err
		}
	}
	o.hide(name)
	return nil
}

func (o *overlay) RemoveAll(name string) error {
	o.hide(name)
	if !o.inMem(name) {
		return nil
	}
	return o.mem.RemoveAll(name)
}

func (o *overlay) Rename(oldname, newname string) error {
	if err := o.adopt(oldname); err != nil {
		return err
	}
	if err := o.mem.MkdirAll(o.PathDir(newname), 0o700); err != nil {
		return err
	}
	o.hide(newname)
	return o.mem.Rename(oldname, newname)
}

func (o *overlay) Link(oldname, newname string) error {
	if err := o.adopt(oldname); err != nil {
		return err
	}
	if err := o.mem.MkdirAll(o.PathDir(newname), 0o700); err != nil {
		return err
	}
	return o.mem.Link(oldname, newname)
}

func (o *overlay) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := o.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return o.mem.OpenReadWrite(newname, c)
}

// adopt brings a whole file into memory: it is to get another name.
func (o *overlay) adopt(name string) error {
	if o.inMem(name) {
		return nil
	}
	from, err := o.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := o.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close()
		return err
	}
	return to.Close()
}

func (o *overlay) MkdirAll(dir string, perm iofs.FileMode) error { return o.mem.MkdirAll(dir, perm) }

// Lock is no lock: what is above the overlay is nobody else's.
func (o *overlay) Lock(string) (io.Closer, error) { return io.NopCloser(strings.NewReader("")), nil }

func (o *overlay) List(dir string) ([]string, error) {
	var names []string
	var err error = notExist("list", dir)
	if !o.hidden(dir) {
		var below []string
		below, err = o.FS.List(dir)
		for _, n := range below {
			if !o.hidden(o.PathJoin(dir, n)) {
				names = append(names, n)
			}
		}
	}
	if here, merr := o.mem.List(dir); merr == nil {
		names, err = append(names, here...), nil
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

func (o *overlay) Stat(name string) (vfs.FileInfo, error) {
	if o.inMem(name) {
		return o.mem.Stat(name)
	}
	f, err := o.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// GetDiskUsage says that it is not known: memory is not the disk.
func (o *overlay) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{}, vfs.ErrUnsupported
}

func (o *overlay) Unwrap() vfs.FS { return nil }

// patch is what was written over a file.
type patch struct {
	// mu guards what follows.
	mu    sync.Mutex
	pages map[int64][]byte // whole pages by number
	end   int64            // past the last byte written
}

// patchedFile is a file below, read with a patch over it.
type patchedFile struct {
	vfs.File // opened for reading
	patch    *patch
	at       int64 // of Read
}

func (f *patchedFile) size() (int64, error) {
	info, err := f.File.Stat()
	if err != nil {
		return 0, err
	}
	f.patch.mu.Lock()
	defer f.patch.mu.Unlock()
	return max(info.Size(), f.patch.end), nil
}

func (f *patchedFile) ReadAt(p []byte, off int64) (int, error) {
	size, err := f.size()
	if err != nil {
		return 0, err
	}
	if off >= size {
		return 0, io.EOF
	}
	end := min(off+int64(len(p)), size)
	f.patch.mu.Lock()
	defer f.patch.mu.Unlock()
	for at := off; at < end; {
		page := at / pageSize
		to := min((page+1)*pageSize, end)
		if q := f.patch.pages[page]; q != nil {
			copy(p[at-off:to-off], q[at-page*pageSize:])
			at = to
			continue
		}
		for to < end && f.patch.pages[to/pageSize] == nil {
			to = min(to+pageSize, end)
		}
		n, err := f.File.ReadAt(p[at-off:to-off], at)
		if err != nil && err != io.EOF {
			return int(at - off), err
		}
		clear(p[at-off+int64(n) : to-off])
		at = to
	}
	if n := int(end - off); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (f *patchedFile) WriteAt(p []byte, off int64) (int, error) {
	f.patch.mu.Lock()
	defer f.patch.mu.Unlock()
	for at, end := off, off+int64(len(p)); at < end; {
		page := at / pageSize
		q := f.patch.pages[page]
		if q == nil {
			q = make([]byte, pageSize)
			if _, err := f.File.ReadAt(q, page*pageSize); err != nil && err != io.EOF {
				return int(at - off), err
			}
			f.patch.pages[page] = q
		}
		at += int64(copy(q[at-page*pageSize:], p[at-off:]))
		f.patch.end = max(f.patch.end, at)
	}
	return len(p), nil
}

func (f *patchedFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.at)
	f.at += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *patchedFile) Write([]byte) (int, error) {
	return 0, dfs.Errorf(dfs.Invalid, "write", "a file that exists is written at positions")
}

func (f *patchedFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	size, err := f.size()
	return patchedInfo{info, size}, err
}

func (f *patchedFile) Preallocate(int64, int64) error    { return nil }
func (f *patchedFile) Sync() error                       { return nil }
func (f *patchedFile) SyncData() error                   { return nil }
func (f *patchedFile) SyncTo(int64) (full bool, _ error) { return true, nil }
func (f *patchedFile) Fd() uintptr                       { return vfs.InvalidFd }

type patchedInfo struct {
	vfs.FileInfo
	size int64
}

func (i patchedInfo) Size() int64 { return i.size }
