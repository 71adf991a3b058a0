package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// jsonVersion is the version of every object that --json prints. Members are
// added under it; one that changes or goes makes the next version.
const jsonVersion = 1

// printJSON prints one object on a line.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// jsonError is an error about one object of many.
type jsonError struct {
	jsonPath
	Error string `json:"error"`
}

// jsonList prints an object with a list, element by element, so that a list of
// any length needs no memory: {"version":1,"NAME":[…],"errors":[…]}.
type jsonList struct {
	w      *bufio.Writer
	n      int
	errors []jsonError
}

// maxListedErrors bounds the memory for errors; all are printed on stderr.
const maxListedErrors = 1000

func newJSONList(w io.Writer, name string) *jsonList {
	l := &jsonList{w: bufio.NewWriter(w), errors: []jsonError{}}
	fmt.Fprintf(l.w, `{"version":%d,%q:[`, jsonVersion, name)
	return l
}

func (l *jsonList) add(v any) error {
	if l.n++; l.n > 1 {
		_ = l.w.WriteByte(',') // its error stays with l.w
	}
	_ = l.w.WriteByte('\n')
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = l.w.Write(b)
	return err
}

func (l *jsonList) fail(path string, err error) {
	if len(l.errors) < maxListedErrors {
		l.errors = append(l.errors, jsonError{toJSONPath(path), err.Error()})
	}
}

// end prints what is left.
func (l *jsonList) end() error {
	b, err := json.Marshal(l.errors)
	if err != nil {
		return err
	}
	fmt.Fprintf(l.w, "\n],\"errors\":%s}\n", b)
	return l.w.Flush()
}
