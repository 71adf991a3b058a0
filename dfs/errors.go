package dfs

import (
	"context"
	"errors"
	"fmt"
)

// Kind is the class of an error. It crosses the wire as its number, maps to an
// errno in a mount, and is itself an error so that errors.Is(err, dfs.NotExist)
// works. The list is append-only.
type Kind uint8

// The kinds.
const (
	Other        Kind = iota // not classified
	NotExist                 // no such file, block, node, …
	Exist                    // it exists already
	NotDir                   // a path component is no directory
	IsDir                    // the operation does not work on a directory
	NotEmpty                 // the directory has entries
	Permission               // the caller may not
	NoSpace                  // the disk or cluster is full
	Quota                    // a quota would be exceeded
	Stale                    // the caller's map, epoch, session or handle is outdated
	NotLeader                // ask the leader; a hint may say who
	Unavailable              // cannot be served now; a retry may work; not applied
	Corrupt                  // stored bytes are damaged
	Invalid                  // the request makes no sense
	TooLarge                 // over a stated limit
	Internal                 // a bug
	CrossGroup               // would span two namespace groups (EXDEV)
	Fenced                   // the session has expired for ever
	ReadOnly                 // the store or PG takes no writes
	Busy                     // a queue is full; back off and retry; not applied
	Unknown                  // the outcome of a mutation is not known
	Unknowable               // an incomplete member was asked: neither yes nor no
	WrongCluster             // the peer belongs to another cluster
	Unsupported              // a version or feature this side does not know
	Deadline                 // the time given ran out
	Loop                     // too many symbolic links
	Frozen                   // an intent of another operation is in the way
	numKinds
)

var kindText = [numKinds]string{
	"error", "does not exist", "exists already", "not a directory", "is a directory", "directory not empty",
	"permission denied", "no space left", "quota exceeded", "stale", "not the leader", "unavailable", "corrupt",
	"invalid argument", "too large", "internal error", "crosses a group boundary", "session has expired",
	"read-only", "busy", "outcome unknown", "not known here", "wrong cluster", "not supported", "deadline exceeded",
	"too many symbolic links", "held by another operation",
}

// Error makes a Kind an error, for use as a target of errors.Is.
func (k Kind) Error() string {
	if k < numKinds {
		return kindText[k]
	}
	return fmt.Sprintf("error kind %d", uint8(k))
}

// Retryable reports whether the request was certainly not applied and the same
// request may succeed later or elsewhere.
func (k Kind) Retryable() bool {
	switch k {
	case NotLeader, Unavailable, Busy, Stale, Frozen:
		return true
	}
	return false
}

// Error is an error with its kind, the operation, the object and the cause.
type Error struct {
	Kind   Kind
	Op     string // verb, as the user or the log knows it
	Object string // path, block, store, group, …; may be empty
	Text   string // what happened and, where there is one, what helps; may be empty
	Err    error  // the cause; may be nil

	// LeaderHint is the node to ask instead, with Kind NotLeader; 0 is none.
	LeaderHint NodeID
}

func (e *Error) Error() string {
	s := e.Op
	if e.Object != "" {
		s += " " + e.Object
	}
	if s != "" {
		s += ": "
	}
	switch {
	case e.Text != "" && e.Err != nil:
		return s + e.Text + ": " + e.Err.Error()
	case e.Text != "":
		return s + e.Text
	case e.Err != nil:
		return s + e.Err.Error()
	}
	return s + e.Kind.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is this error's kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// Errorf makes an error of a kind for an operation with a formatted text.
func Errorf(kind Kind, op, format string, args ...any) error {
	return &Error{Kind: kind, Op: op, Text: fmt.Sprintf(format, args...)}
}

// Wrap adds operation and object to err and keeps its kind. A nil err stays nil.
func Wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Kind: KindOf(err), Op: op, Object: object, Err: err}
	var inner *Error
	if errors.As(err, &inner) {
		e.LeaderHint = inner.LeaderHint
	}
	return e
}

// KindOf returns the outermost kind in err's chain, Other when there is none.
// Of joined errors the first that has a kind counts.
func KindOf(err error) Kind {
	for err != nil {
		switch e := err.(type) {
		case *Error:
			if e.Kind != Other {
				return e.Kind
			}
		case Kind:
			return e
		case interface{ Unwrap() []error }:
			for _, err := range e.Unwrap() {
				if k := KindOf(err); k != Other {
					return k
				}
			}
			return Other
		}
		err = errors.Unwrap(err)
	}
	return Other
}

// SentKind is KindOf for an error that is sent to whoever asked: that of a context
// that ended is Deadline, or Unknown where it was cancelled half-way.
func SentKind(err error) Kind {
	switch kind := KindOf(err); {
	case kind != Other:
		return kind
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline
	case errors.Is(err, context.Canceled): // by the caller or by Close
		return Unknown
	}
	return Other
}
