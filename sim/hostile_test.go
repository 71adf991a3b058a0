package sim

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// rawBytes sends bytes as they are, and takes any.
type rawBytes struct{}

func (rawBytes) Marshal(msg drpc.Message) ([]byte, error) { return *msg.(*[]byte), nil }

func (rawBytes) Unmarshal(buf []byte, msg drpc.Message) error {
	*msg.(*[]byte) = slices.Clone(buf)
	return nil
}

// rpcMethod is a unary method of the meta service.
type rpcMethod struct {
	name  string
	input protoreflect.MessageType
}

// metaMethods lists all that are served.
func metaMethods() (out []rpcMethod) {
	var d wire.DRPCMetaDescription
	for i := range d.NumMethods() {
		name, _, _, fn, _ := d.Method(i)
		request := reflect.New(reflect.TypeOf(fn).In(2).Elem()).Interface().(proto.Message) // of func(server, context, request)
		out = append(out, rpcMethod{name, request.ProtoReflect().Type()})
	}
	return out
}

// hostileCall is one request. An input is many of them, each as who asks and for what, a
// length of two bytes, and so many bytes.
type hostileCall struct {
	method uint8
	who    uint8 // asks: see siege.as
	data   []byte
}

// maxCalls bounds the requests of one input.
const maxCalls = 256

func (c hostileCall) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(b, c.method, c.who), uint16(len(c.data))), c.data...)
}

func parseCalls(b []byte) (out []hostileCall) {
	for len(b) >= 4 && len(out) < maxCalls {
		c, n := hostileCall{method: b[0], who: b[1]}, int(binary.BigEndian.Uint16(b[2:]))
		b = b[4:]
		c.data, b = b[:min(n, len(b))], b[min(n, len(b)):]
		out = append(out, c)
	}
	return out
}

// filler fills messages with what their fields' names suggest, or with what nothing can
// have a use for.
type filler struct {
	hostile bool
	variant int // which of several alternatives, and which of several values
}

// fill sets every field, down to a depth.
func (f filler) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if of := fd.ContainingOneof(); of != nil && of.Fields().Get(f.variant%of.Fields().Len()) != fd {
			continue
		}
		switch {
		case fd.IsMap():
		case fd.Message() != nil && depth == 0:
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range 2 {
				switch {
				case fd.Message() != nil:
					f.fill(list.AppendMutable().Message(), depth-1)
				case fd.Name() == "commands":
					list.Append(f.command(depth - 1))
				default:
					list.Append(f.scalar(fd))
				}
			}
		case fd.Message() != nil:
			f.fill(m.Mutable(fd).Message(), depth-1)
		case fd.Name() == "command":
			m.Set(fd, f.command(depth-1))
		default:
			m.Set(fd, f.scalar(fd))
		}
	}
}

// command is an encoded one.
func (f filler) command(depth int) protoreflect.Value {
	cmd := &wire.Command{}
	f.fill(cmd.ProtoReflect(), depth)
	data, err := proto.Marshal(cmd)
	if err != nil {
		panic(err)
	}
	return protoreflect.ValueOfBytes(data)
}

func (f filler) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := uint64(1)
	switch name := string(fd.Name()); {
	case name == "group" && f.variant%8 != 7:
	case name == "group" && !f.hostile:
		n = 0
	case name == "session" && f.variant%4 != 3:
		n = 2 // the next that is opened
	case name == "seq" && f.variant%4 != 3:
		n = uint64(1 + f.variant)
		if f.hostile {
			n += 1000
		}
	case f.hostile:
		n = ^uint64(0) >> (f.variant % 3)
	case strings.Contains(name, "ino") || strings.Contains(name, "parent") || strings.Contains(name, "dir"):
		n = uint64(dfs.RootIno)
	}
	text := "a"
	if f.hostile {
		text = strings.Repeat("\x00é", 300)
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.variant%2 == 0)
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		if f.hostile {
			return protoreflect.ValueOfEnum(1 << 30)
		}
		return protoreflect.ValueOfEnum(values.Get(f.variant % values.Len()).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(n)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text))
	}
	panic(fmt.Sprintf("a field of kind %v", fd.Kind()))
}

// alternatives is how many of the variants of a message differ.
func alternatives(md protoreflect.MessageDescriptor, depth int) int {
	most := 8
	if md.Fields().ByName("command") != nil || md.Fields().ByName("commands") != nil {
		most = (&wire.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields().Len()
	}
	for i := range md.Oneofs().Len() {
		most = max(most, md.Oneofs().Get(i).Fields().Len())
	}
	for i := range md.Fields().Len() {
		if sub := md.Fields().Get(i).Message(); sub != nil && depth > 0 {
			most = max(most, alternatives(sub, depth-1))
		}
	}
	return most
}

// fillDepth is how deep messages are filled: a command within a request within many.
const fillDepth = 5

// seedCalls are requests of every method: with nothing in them, with every alternative of
// what they may ask, and with what cannot be meant.
func seedCalls(methods []rpcMethod, who uint8, hostile bool) (out [][]byte) {
	var calls []hostileCall
	for i, m := range methods {
		calls = append(calls, hostileCall{uint8(i), who, nil}, hostileCall{uint8(i), who, []byte("no protobuf")})
		for v := range alternatives(m.input.Descriptor(), fillDepth) {
			msg := m.input.New()
			filler{hostile, v}.fill(msg, fillDepth)
			if data, err := proto.Marshal(msg.Interface()); err == nil && len(data) < 1<<16 {
				calls = append(calls, hostileCall{uint8(i), who, data})
			}
		}
	}
	for part := range slices.Chunk(calls, maxCalls) {
		var b []byte
		for _, c := range part {
			b = c.append(b)
		}
		out = append(out, b)
	}
	return out
}

// alarms collects the lines that say that something broke.
type alarms struct {
	slog.Handler
	mu   *sync.Mutex
	said *[]string
}

func newAlarms() alarms { return alarms{slog.DiscardHandler, new(sync.Mutex), new([]string)} }

// Enabled implements slog.Handler.
func (h alarms) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

// WithAttrs implements slog.Handler.
func (h alarms) WithAttrs([]slog.Attr) slog.Handler { return h }

// Handle implements slog.Handler.
func (h alarms) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	h.mu.Lock()
	defer h.mu.Unlock()
	*h.said = append(*h.said, text)
	return nil
}

// heard returns the lines that hold one of some texts.
func (h alarms) heard(texts ...string) (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range *h.said {
		if slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(line, t) }) {
			out = append(out, line)
		}
	}
	return out
}

// siege is a small cluster, and who asks its first meta node.
type siege struct {
	*Cluster
	log   alarms
	pools []*transport.Pool
}

// Of siege.as. The nodes are not those that they say they are.
const (
	asClient = iota
	asMeta   // the last meta node
	asStorage
	numCallers
)

func besiege(t *testing.T, metas int) *siege {
	s := &siege{log: newAlarms()}
	var err error
	if s.Cluster, err = New(Config{Seed: 1, Metas: metas, Stores: 1, Class: dfs.Replicated(1), Logger: slog.New(s.log), Tweak: quietly(nil)}); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.Cluster, "client")
	awaitReady(t, p)
	put(t, p, "/f", "before")
	m := p.Map()
	p.Close()
	node := func(n *dfs.Node) transport.Identity {
		return transport.Identity{Kind: transport.KindNode, Cluster: m.Cluster, Node: n.ID, Incarnation: n.Incarnation}
	}
	storage := m.Nodes[slices.IndexFunc(m.Nodes, func(n *dfs.Node) bool { return n.Roles.Has(dfs.RoleStorage) })]
	for who, id := range [numCallers]transport.Identity{
		asClient: {Kind: transport.KindClient, Cluster: m.Cluster}, asMeta: node(m.MetaNodes()[metas-1]), asStorage: node(storage),
	} {
		s.pools = append(s.pools, transport.NewPool(transport.PoolOptions{
			Network: s.net.Host(fmt.Sprintf("hostile%d", who)), Identity: func() transport.Identity { return id },
		}))
	}
	return s
}

func (s *siege) as(who uint8) drpc.Conn {
	return s.pools[int(who)%len(s.pools)].Conn("meta1:" + rpcPort)
}

func (s *siege) end() {
	for _, p := range s.pools {
		p.Close()
	}
	s.Close()
}

// maxGrowth bounds what all requests of an input may allocate, besides what the cluster
// does meanwhile: a length that is believed would be far more.
const maxGrowth = 1 << 30

func allocated() uint64 {
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return ms.TotalAlloc
}

// FuzzMetaService sends requests to every method of the meta service, as a client, a meta
// node and a storage node. Each is answered; what is no request is refused; nothing panics, no replica
// breaks, and the node goes on.
func FuzzMetaService(f *testing.F) {
	methods := metaMethods()
	for who := range uint8(numCallers) {
		for _, hostile := range []bool{false, true} {
			for _, b := range seedCalls(methods, who, hostile) {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		bubble.Test(t, func(t *testing.T) {
			s := besiege(t, 1)
			defer s.end()
			before := allocated()
			for _, call := range parseCalls(b) {
				m := methods[int(call.method)%len(methods)]
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				var reply []byte
				err := s.as(call.who).Invoke(ctx, m.name, rawBytes{}, &call.data, &reply)
				cancel()
				if proto.Unmarshal(call.data, m.input.New().Interface()) != nil && err == nil {
					t.Errorf("%s takes what is no request", m.name)
				}
				if dfs.KindOf(err) == dfs.Internal {
					t.Errorf("%s: %v", m.name, err)
				}
			}
			if grew := allocated() - before; grew > maxGrowth {
				t.Errorf("%d bytes were allocated", grew)
			}
			if said := s.log.heard("panic", "quarantined", "host failed", "cannot serve"); len(said) > 0 {
				t.Errorf("the node says: %s", strings.Join(said, "\n"))
			}
			if err := s.nodes[0].node.Err(); err != nil {
				t.Errorf("the node has ended: %v", err)
			}
		})
	})
}

// What an input of FuzzRaftService says of one message.
const (
	onMessages = iota // none: a stream of messages begins
	onSnapshot        // none: a stream of a snapshot begins
	greeting          // it is the greeting of the node that is played
	rawMessage        // the bytes are the message
	rawData           // they are its data
	sealedData        // likewise, as the frames of a batch
	numMessageKinds
)

// raftMessage is one of an input: a kind, a length of two bytes, and so many bytes.
type raftMessage struct {
	kind byte
	data []byte
}

// maxMessages bounds those of one input.
const maxMessages = 128

func (m raftMessage) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(b, m.kind), uint16(len(m.data))), m.data...)
}

// parseStreams returns the messages of each stream, which its first one names.
func parseStreams(b []byte) (out [][]raftMessage) {
	for n := 0; len(b) >= 3 && n < maxMessages; n++ {
		m, size := raftMessage{kind: b[0] % numMessageKinds}, int(binary.BigEndian.Uint16(b[1:]))
		b = b[3:]
		m.data, b = b[:min(size, len(b))], b[min(size, len(b)):]
		if len(out) == 0 || m.kind <= onSnapshot {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], m)
	}
	return out
}

// encode makes the bytes that are sent.
func (m raftMessage) encode(from *dfs.Node, epoch dfs.Epoch) ([]byte, error) {
	b := &wire.RaftBatch{Data: m.data}
	switch m.kind {
	case rawMessage:
		return m.data, nil
	case sealedData:
		sealed := append([]byte{1}, m.data...) // the version of batches
		b.Data = binary.BigEndian.AppendUint32(sealed, crc32.Checksum(sealed, dfs.Castagnoli))
	case greeting:
		b = &wire.RaftBatch{Hello: &wire.RaftHello{Lineage: &wire.Lineage{Accepted: from.Incarnation.Start}, Epoch: uint64(epoch), Addr: from.Addr}}
	}
	return proto.Marshal(b)
}

// talk sends messages on a stream, and reads until its end.
func (s *siege) talk(t *testing.T, msgs []raftMessage) {
	name := "/dfsd.wire.Raft/Messages"
	if msgs[0].kind == onSnapshot {
		name = "/dfsd.wire.Raft/Snapshot"
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := s.as(asMeta).NewStream(ctx, name, rawBytes{})
	if err != nil {
		t.Fatal(err)
	}
	m := s.newestMap()
	metas := m.MetaNodes()
	for _, msg := range msgs {
		if msg.kind <= onSnapshot {
			continue
		}
		data, err := msg.encode(metas[len(metas)-1], m.Epoch)
		if err != nil {
			t.Fatal(err)
		}
		if stream.MsgSend(&data, rawBytes{}) != nil {
			break // it was refused before
		}
	}
	_ = stream.CloseSend() // fails on one that was refused
	for answers := 0; ; answers++ {
		var answer []byte
		if err := stream.MsgRecv(&answer, rawBytes{}); err != nil {
			if dfs.KindOf(err) == dfs.Internal || ctx.Err() != nil {
				t.Errorf("%s ends with %v", name, err)
			}
			break
		}
		if answers > maxMessages {
			t.Fatalf("%s answers without an end", name)
		}
	}
	_ = stream.Close()
}

// FuzzRaftService sends messages on both streams of the Raft service in the name of a member.
// Each stream ends in an answer or an error, and no handler panics. What a replica makes of
// messages that pass for a member's, package raftgroup shows.
func FuzzRaftService(f *testing.F) {
	tooMany, err := proto.Marshal(&wire.RaftBatch{Hello: &wire.RaftHello{Lineage: &wire.Lineage{Offered: make([]uint64, 5000)}, Epoch: 1 << 63, Addr: "\x00"}})
	if err != nil {
		f.Fatal(err)
	}
	hello := raftMessage{greeting, nil}
	beat, needState := raftMessage{sealedData, []byte{5, 5, 0, 0, 1, 0}}, raftMessage{sealedData, []byte{3, 3, 0, 0}}
	var seed []byte
	for _, stream := range []byte{onMessages, onSnapshot} {
		for _, msgs := range [][]raftMessage{
			{}, {hello}, {beat}, {hello, beat, needState}, {hello, beat, hello}, {{rawMessage, tooMany}, beat}, {hello, {rawMessage, []byte("no protobuf")}},
			{hello, {rawData, []byte("no batch")}}, {hello, {rawData, []byte("H\x01")}, {rawData, []byte("D")}},
			{hello, {sealedData, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}}},
		} {
			seed = raftMessage{stream, nil}.append(seed)
			for _, m := range msgs {
				seed = m.append(seed)
			}
		}
		f.Add(slices.Clone(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		bubble.Test(t, func(t *testing.T) {
			s := besiege(t, 2)
			defer s.end()
			before := allocated()
			for _, msgs := range parseStreams(b) {
				s.talk(t, msgs)
			}
			if grew := allocated() - before; grew > maxGrowth {
				t.Errorf("%d bytes were allocated", grew)
			}
			if said := s.log.heard("handler panicked"); len(said) > 0 {
				t.Errorf("the node says: %s", strings.Join(said, "\n"))
			}
		})
	})
}
