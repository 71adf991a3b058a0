package transport

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"

	"dfsd/dfs"
)

// PeerKind says what a process is.
type PeerKind uint8

// The kinds of peers. Numbers are on the wire: never reused.
const (
	KindNode   PeerKind = 1 // a dfsd server
	KindClient PeerKind = 2 // anything else
)

func (k PeerKind) String() string {
	switch k {
	case KindNode:
		return "node"
	case KindClient:
		return "client"
	}
	return "unknown"
}

// Identity is what a process says of itself in the handshake.
type Identity struct {
	Cluster     dfs.ClusterID // zero: not known yet
	Kind        PeerKind
	Node        dfs.NodeID      // 0: a client, or not registered yet
	Incarnation dfs.Incarnation // zero for clients
}

// Peer is the other side of a connection. Without TLS it is what the other side
// claims. With TLS the claim comes from a holder of a certificate of the cluster,
// one for servers where the claim is to be a node; which node it may speak for
// says Proves.
type Peer struct {
	Identity
	Addr string // network address of the connection's other end

	certificate *x509.Certificate // nil: no TLS
}

// Proves checks that the peer may speak for a node that is reached at addr: its
// certificate must be the one that a dialling side would find there. Without TLS
// every peer may. Error: Permission.
func (p Peer) Proves(addr string) error {
	if p.certificate == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err == nil {
		err = p.certificate.VerifyHostname(host)
	}
	if err != nil {
		return &dfs.Error{Kind: dfs.Permission, Op: "check certificate", Text: "the caller does not prove to be the node at " + addr, Err: err}
	}
	return nil
}

type peerKey struct{}

// PeerFrom returns who sent the request that a handler serves. It reports
// false for a context that is not a request's.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// The handshake: the dialling side sends a greeting with the versions it knows
// and its identity, the accepting side answers with the version to speak, or
// with the kind of the refusal and its reason, and its own identity. After
// that both speak dRPC. docs/FORMATS.md has the bytes.
const (
	handshakeMagic = "dfsd-rpc"

	// The versions of the protocol that this release speaks.
	minVersion = 1
	maxVersion = 1

	greetingHead   = len(handshakeMagic) + 6
	identityLen    = 16 + 1 + 4 + 8 + 8
	maxGreeting    = 4 << 10 // bytes: room for what later releases add, no more
	maxGreetingMsg = 1 << 10 // bytes of a refusal's reason
)

// greeting is either side's message of the handshake.
type greeting struct {
	a, b     uint16 // sent when dialling: lowest and highest version; in an answer: version (0: refused), kind of the refusal
	identity Identity
	text     string // in an answer: the reason of a refusal, at most maxGreetingMsg bytes
}

func (g *greeting) append(dst []byte) []byte {
	text := g.text[:min(len(g.text), maxGreetingMsg)]
	dst = append(dst, handshakeMagic...)
	dst = binary.BigEndian.AppendUint16(dst, g.a)
	dst = binary.BigEndian.AppendUint16(dst, g.b)
	dst = binary.BigEndian.AppendUint16(dst, uint16(identityLen+2+len(text)))
	dst = append(dst, g.identity.Cluster[:]...)
	dst = append(dst, byte(g.identity.Kind))
	dst = binary.BigEndian.AppendUint32(dst, uint32(g.identity.Node))
	dst = binary.BigEndian.AppendUint64(dst, g.identity.Incarnation.Mark)
	dst = binary.BigEndian.AppendUint64(dst, g.identity.Incarnation.Start)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(text)))
	return append(dst, text...)
}

// parseBody reads what follows the head. Bytes after the fields that this
// release knows belong to later ones and are skipped.
func (g *greeting) parseBody(body []byte) error {
	if len(body) < identityLen+2 {
		return dfs.Errorf(dfs.Invalid, "handshake", "greeting of %d bytes, want at least %d", len(body), identityLen+2)
	}
	copy(g.identity.Cluster[:], body)
	body = body[16:]
	g.identity.Kind = PeerKind(body[0])
	g.identity.Node = dfs.NodeID(binary.BigEndian.Uint32(body[1:]))
	g.identity.Incarnation.Mark = binary.BigEndian.Uint64(body[5:])
	g.identity.Incarnation.Start = binary.BigEndian.Uint64(body[13:])
	n := int(binary.BigEndian.Uint16(body[21:]))
	body = body[23:]
	if n > len(body) || n > maxGreetingMsg {
		return dfs.Errorf(dfs.Invalid, "handshake", "text of %d bytes in a greeting with %d left", n, len(body))
	}
	g.text = string(body[:n])
	if g.identity.Kind != KindNode && g.identity.Kind != KindClient {
		return dfs.Errorf(dfs.Invalid, "handshake", "peer kind %d is not known", g.identity.Kind)
	}
	return nil
}

// readGreeting reads one greeting, and no byte after it. Errors: Unsupported
// for what is no greeting, Invalid, or the reader's.
func readGreeting(r io.Reader) (greeting, error) {
	var head [greetingHead]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if n > 0 && !bytes.HasPrefix([]byte(handshakeMagic), head[:min(n, len(handshakeMagic))]) {
			return greeting{}, notOurs(head[:n])
		}
		return greeting{}, err
	}
	if string(head[:len(handshakeMagic)]) != handshakeMagic {
		return greeting{}, notOurs(head[:])
	}
	rest := head[len(handshakeMagic):]
	g := greeting{a: binary.BigEndian.Uint16(rest), b: binary.BigEndian.Uint16(rest[2:])}
	n := int(binary.BigEndian.Uint16(rest[4:]))
	if n > maxGreeting-greetingHead {
		return greeting{}, dfs.Errorf(dfs.TooLarge, "handshake", "greeting of %d bytes: the limit is %d", n+greetingHead, maxGreeting)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return greeting{}, err
	}
	return g, g.parseBody(body)
}

// notOurs explains a first message that is no greeting.
func notOurs(head []byte) error {
	what := "something that is not dfsd's protocol"
	switch {
	case len(head) >= 2 && (head[0] == 0x15 || head[0] == 0x16) && head[1] == 3: // TLS record: alert or handshake
		what = "TLS, and this side has none: check the tls settings of both"
	case bytes.HasPrefix(head, []byte("HTTP")) || bytes.HasPrefix(head, []byte("GET ")):
		what = "HTTP: check the port"
	}
	return dfs.Errorf(dfs.Unsupported, "handshake", "the other side speaks %s", what)
}

// greet is the dialling side. The caller has set a deadline on conn. Errors:
// WrongCluster, Unsupported, Busy and others by which the other side refused;
// Invalid; the connection's.
func greet(conn net.Conn, own Identity) (Identity, error) {
	hello := greeting{a: minVersion, b: maxVersion, identity: own}
	if _, err := conn.Write(hello.append(nil)); err != nil {
		return Identity{}, err
	}
	answer, err := readGreeting(conn)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return Identity{}, dfs.Errorf(dfs.Unavailable, "handshake", "the other side closed the connection; if it expects TLS, set tls here too")
	case err != nil:
		return Identity{}, err
	case answer.a == 0:
		kind := dfs.Kind(answer.b)
		if answer.b == 0 || answer.b > 0xff {
			kind = dfs.Other
		}
		return Identity{}, dfs.Errorf(kind, "handshake", "refused: %s", answer.text)
	case answer.a < minVersion || answer.a > maxVersion:
		return Identity{}, dfs.Errorf(dfs.Unsupported, "handshake", "the other side chose protocol version %d, not one of %d to %d", answer.a, minVersion, maxVersion)
	}
	if err := sameCluster(own.Cluster, answer.identity.Cluster); err != nil {
		return Identity{}, err
	}
	return answer.identity, nil
}

// welcome is the accepting side: it reads the greeting and answers it. admit
// has the last word on a peer that fits. The caller has set a deadline on conn.
func welcome(conn net.Conn, own Identity, admit func(Identity) error) (Identity, error) {
	hello, err := readGreeting(conn)
	if err == nil {
		err = judge(&hello, own)
	}
	if err == nil {
		err = admit(hello.identity)
	}
	answer := greeting{a: maxVersion, identity: own}
	if err != nil {
		kind := dfs.KindOf(err)
		if kind == dfs.Other {
			return Identity{}, err // the connection failed
		}
		answer = greeting{b: uint16(kind), identity: own, text: err.Error()}
	} else {
		answer.a = min(hello.b, maxVersion)
	}
	if _, werr := conn.Write(answer.append(nil)); werr != nil && err == nil {
		err = werr
	}
	return hello.identity, err
}

// judge says why a well-formed greeting is refused, nil when it is not.
func judge(hello *greeting, own Identity) error {
	if hello.a > maxVersion || hello.b < minVersion || hello.a > hello.b {
		return dfs.Errorf(dfs.Unsupported, "handshake", "protocol versions %d to %d: this side speaks %d to %d", hello.a, hello.b, minVersion, maxVersion)
	}
	return sameCluster(own.Cluster, hello.identity.Cluster)
}

// sameCluster refuses two sides that know their clusters and differ.
func sameCluster(own, other dfs.ClusterID) error {
	if own.IsZero() || other.IsZero() || own == other {
		return nil
	}
	return dfs.Errorf(dfs.WrongCluster, "handshake", "one side belongs to cluster %s and the other to %s", own, other)
}
