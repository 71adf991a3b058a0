// Package codec turns messages into bytes and back for the generated service
// code, which calls it by name (make generate). Protobuf messages are marshalled
// deterministically and never above [dfs.MaxMessage]; a message that is a
// [Framer] brings its own encoding, so that block payloads are not copied
// through protobuf.
package codec

import (
	"storj.io/drpc"

	"dfsd/dfs"

	"google.golang.org/protobuf/proto"
)

// Framer is a message with an encoding of its own, limits included.
type Framer interface {
	// AppendFrame appends the encoded message to dst.
	AppendFrame(dst []byte) ([]byte, error)
	// DecodeFrame reads an encoded message. It keeps no reference to src.
	DecodeFrame(src []byte) error
}

// Marshal returns the encoded form of msg. Errors: TooLarge, Internal for
// what is no message.
func Marshal(msg drpc.Message) ([]byte, error) { return MarshalAppend(nil, msg) }

// MarshalAppend appends the encoded form of msg to buf. Errors as Marshal.
func MarshalAppend(buf []byte, msg drpc.Message) ([]byte, error) {
	if f, ok := msg.(Framer); ok {
		return f.AppendFrame(buf)
	}
	m, ok := msg.(proto.Message)
	if !ok {
		return nil, dfs.Errorf(dfs.Internal, "encode", "%T is no message", msg)
	}
	if n := proto.Size(m); n > dfs.MaxMessage {
		return nil, dfs.Errorf(dfs.TooLarge, "encode", "message %s of %d bytes: the limit is %d", m.ProtoReflect().Descriptor().Name(), n, dfs.MaxMessage)
	}
	out, err := proto.MarshalOptions{Deterministic: true, UseCachedSize: true}.MarshalAppend(buf, m)
	if err != nil {
		return nil, &dfs.Error{Kind: dfs.Invalid, Op: "encode", Object: string(m.ProtoReflect().Descriptor().Name()), Err: err}
	}
	return out, nil
}

// Unmarshal reads the encoded form in buf into msg, replacing what it held.
// Errors: TooLarge, Invalid for bytes that are no such message.
func Unmarshal(buf []byte, msg drpc.Message) error {
	if f, ok := msg.(Framer); ok {
		return f.DecodeFrame(buf)
	}
	m, ok := msg.(proto.Message)
	if !ok {
		return dfs.Errorf(dfs.Internal, "decode", "%T is no message", msg)
	}
	if len(buf) > dfs.MaxMessage {
		return dfs.Errorf(dfs.TooLarge, "decode", "message %s of %d bytes: the limit is %d", m.ProtoReflect().Descriptor().Name(), len(buf), dfs.MaxMessage)
	}
	if err := proto.Unmarshal(buf, m); err != nil {
		return &dfs.Error{Kind: dfs.Invalid, Op: "decode", Object: string(m.ProtoReflect().Descriptor().Name()), Err: err}
	}
	return nil
}
