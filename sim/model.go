package sim

import (
	"bytes"
	"slices"
	"time"
)

// file is what the model knows of a file: every content that it may have. A
// change whose outcome is not known adds one; an acknowledged change leaves one.
type file struct {
	contents [][]byte // never empty
}

func (f *file) may(got []byte) bool {
	return slices.ContainsFunc(f.contents, func(c []byte) bool { return bytes.Equal(c, got) })
}

// entry is what the model knows of one name: every file that it may lead to,
// nil for none.
type entry struct {
	may []*file // never empty

	// late are what changes without an answer may still make of the name, until
	// lateUntil: they go on in the background.
	late      []*file
	lateUntil time.Time
}

// sure returns the file the name leads to, and whether that is certain.
func (e *entry) sure() (*file, bool) {
	return e.may[0], len(e.may) == 1
}

// set is what an answer says: the name leads to f now.
func (e *entry) set(f *file) {
	e.may = []*file{f}
	if time.Now().After(e.lateUntil) {
		e.late = nil
	}
	e.add(e.late...)
}

// addLate adds what the name leads to once a change has taken effect, which
// may be any time until then.
func (e *entry) addLate(f *file, until time.Time) {
	e.add(f)
	e.late = append(e.late, f)
	e.lateUntil = until
}

// add adds possibilities.
func (e *entry) add(files ...*file) {
	for _, f := range files {
		if !slices.Contains(e.may, f) {
			e.may = append(e.may, f)
		}
	}
}

// absent reports whether the name may not exist.
func (e *entry) absent() bool { return slices.Contains(e.may, nil) }

// allows reports whether the name may lead to a file with these contents.
func (e *entry) allows(got []byte) bool {
	return slices.ContainsFunc(e.may, func(f *file) bool { return f != nil && f.may(got) })
}

// overwrite is content with p written at an offset, and zeros in between.
func overwrite(content, p []byte, at int) []byte {
	out := make([]byte, max(len(content), at+len(p)))
	copy(out, content)
	copy(out[at:], p)
	return out
}

// resize is content cut or grown with zeros.
func resize(content []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, content)
	return out
}
