package transport

import (
	"context"
	"errors"
	"io"
	"strings"

	"storj.io/drpc"
	"storj.io/drpc/drpcenc"
	"storj.io/drpc/drpcerr"

	"dfsd/dfs"
)

// An error crosses the wire as dRPC's code and text. The code is
//
//	bits 56..63  0xDF: made by this package
//	bits 32..39  dfs.Kind
//	bits  0..31  node to ask instead, with kind NotLeader
const (
	codeMark     = uint64(0xDF) << 56
	codeMarkMask = uint64(0xFF) << 56

	// maxErrorText bounds the text of an error on the wire (bytes).
	maxErrorText = 4 << 10
)

// toWire makes err one that dRPC sends with its kind and hint.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	kind := dfs.SentKind(err)
	if kind == dfs.Other && drpcerr.Code(err) == drpcerr.Unimplemented {
		kind = dfs.Unsupported
	}
	code := codeMark | uint64(kind)<<32
	var e *dfs.Error
	if errors.As(err, &e) {
		code |= uint64(e.LeaderHint)
	}
	text := err.Error()
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + " …"
	}
	return drpcerr.WithCode(errors.New(text), code)
}

// fromWire returns the error that the other side sent, nil when err did not
// come from there.
func fromWire(err error) *dfs.Error {
	code := drpcerr.Code(err)
	if code&codeMarkMask != codeMark {
		return nil
	}
	return &dfs.Error{Kind: dfs.Kind(code >> 32), Text: err.Error(), LeaderHint: dfs.NodeID(code)}
}

// failure makes a *dfs.Error of what a call ended with, other than an encoding
// that failed. sent says whether any byte of the request left this host, so
// that a handler may have seen it.
//
// The caller's context is asked before the error is: dRPC reports a connection
// that ended as context.Canceled too.
func failure(ctx context.Context, addr string, err error, sent bool) error {
	if err == nil {
		return nil
	}
	if e := fromWire(err); e != nil {
		return e
	}
	e := &dfs.Error{Kind: dfs.Unavailable, Op: "call", Object: addr, Err: err}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Kind, e.Err = dfs.Deadline, ctx.Err()
	case ctx.Err() != nil:
		e.Kind, e.Err = dfs.Other, ctx.Err()
	case sent:
		e.Kind, e.Text = dfs.Unknown, "the connection ended before the answer"
		if errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) {
			e.Err = nil // says no more than the text does, and the first is not true of the caller
		}
	case errors.Is(err, context.Canceled) || errors.Is(err, io.EOF):
		e.Text, e.Err = "the connection ended", nil
	}
	return e
}

// tracked is the encoding of one call or message; it tells failures to encode
// and to decode from those of the connection.
type tracked struct {
	drpc.Encoding
	encodeErr, decodeErr error
}

func (t *tracked) MarshalAppend(buf []byte, msg drpc.Message) ([]byte, error) {
	buf, t.encodeErr = drpcenc.MarshalAppend(msg, t.Encoding, buf)
	return buf, t.encodeErr
}

func (t *tracked) Unmarshal(buf []byte, msg drpc.Message) error {
	t.decodeErr = t.Encoding.Unmarshal(buf, msg)
	return t.decodeErr
}

// failure is as the function of this name. A request that could not be encoded
// was not sent; an answer that cannot be read leaves the outcome unknown.
func (t *tracked) failure(ctx context.Context, addr string, err error, sent bool) error {
	switch {
	case err == nil:
		return nil
	case t.encodeErr != nil:
		return &dfs.Error{Kind: dfs.KindOf(t.encodeErr), Op: "call", Object: addr, Err: t.encodeErr}
	case t.decodeErr != nil:
		return &dfs.Error{Kind: dfs.Unknown, Op: "call", Object: addr, Text: "the answer cannot be read", Err: t.decodeErr}
	}
	return failure(ctx, addr, err, sent)
}

// connectionFailed reports whether an error of failure tells of the connection
// or the peer's silence, and not of what the other side answered or the
// caller did.
func connectionFailed(err error) bool {
	var e *dfs.Error
	if !errors.As(err, &e) || e.Op == "" { // no operation: it came over the wire
		return false
	}
	return e.Kind == dfs.Unavailable || e.Kind == dfs.Unknown || e.Kind == dfs.Deadline
}
