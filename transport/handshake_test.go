package transport

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"

	"dfsd/dfs"
)

var testIdentity = Identity{
	Cluster: dfs.ClusterID{1, 2, 3, 15: 0xff}, Kind: KindNode, Node: 7,
	Incarnation: dfs.Incarnation{Mark: 0x0102030405060708, Start: 9},
}

// The bytes of docs/FORMATS.md: they never change for version 1.
func TestGreetingBytes(t *testing.T) {
	hello := greeting{a: 1, b: 1, identity: testIdentity}
	const want = "646673642d727063" + // "dfsd-rpc"
		"0001" + "0001" + // versions 1 to 1
		"0027" + // 39 bytes follow
		"010203000000000000000000000000ff" + // cluster
		"01" + "00000007" + // a node, number 7
		"0102030405060708" + "0000000000000009" + // incarnation
		"0000" // no text
	if got := hex.EncodeToString(hello.append(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	refusal := greeting{b: uint16(dfs.WrongCluster), identity: Identity{Kind: KindClient}, text: "no"}
	const wantRefusal = "646673642d727063" + "0000" + "0016" + "0029" +
		"00000000000000000000000000000000" + "02" + "00000000" + "0000000000000000" + "0000000000000000" + "0002" + "6e6f"
	if got := hex.EncodeToString(refusal.append(nil)); got != wantRefusal {
		t.Errorf("got  %s\nwant %s", got, wantRefusal)
	}
}

func TestReadGreeting(t *testing.T) {
	good := (&greeting{a: 1, b: 3, identity: testIdentity, text: "why"}).append(nil)
	with := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return out
	}
	longer := append(with(12, 0, byte(len(good)-greetingHead+5)), "later"...)
	for _, c := range []struct {
		name string
		in   []byte
		want dfs.Kind // 0: no error
		text string
	}{
		{"good", good, 0, ""},
		{"fields of a later release", longer, 0, ""},
		{"wrong magic", with(0, 'X'), dfs.Unsupported, "not dfsd's protocol"},
		{"HTTP answer", []byte("HTTP/1.1 400 Bad Request\r\n"), dfs.Unsupported, "HTTP"},
		{"HTTP request", []byte("GET / HTTP/1.1\r\nHost: x\r\n"), dfs.Unsupported, "HTTP"},
		{"TLS alert", []byte{0x15, 3, 3, 0, 2, 2, 22}, dfs.Unsupported, "TLS"},
		{"TLS hello", append([]byte{0x16, 3, 1, 2, 0, 1}, make([]byte, 100)...), dfs.Unsupported, "TLS"},
		{"over the limit", with(12, 0xff, 0xff), dfs.TooLarge, "limit"},
		{"body too short", with(12, 0, 5), dfs.Invalid, "bytes"},
		{"text past the end", with(greetingHead+identityLen, 0, 200), dfs.Invalid, "text"},
		{"unknown kind of peer", with(greetingHead+16, 9), dfs.Invalid, "kind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := bytes.NewReader(c.in)
			g, err := readGreeting(r)
			if c.want != 0 {
				if dfs.KindOf(err) != c.want || !strings.Contains(err.Error(), c.text) {
					t.Fatalf("got %v (%v), want %v with %q", err, dfs.KindOf(err), c.want, c.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := (greeting{a: 1, b: 3, identity: testIdentity, text: "why"}); g != want {
				t.Errorf("got %+v, want %+v", g, want)
			}
			if r.Len() != 0 {
				t.Errorf("%d bytes were left", r.Len())
			}
		})
	}
	for n := range good {
		if _, err := readGreeting(bytes.NewReader(good[:n])); err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func FuzzReadGreeting(f *testing.F) {
	f.Add((&greeting{a: 1, b: 1, identity: testIdentity}).append(nil))
	f.Add((&greeting{b: 22, identity: Identity{Kind: KindClient}, text: "refused"}).append(nil))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		g, err := readGreeting(bytes.NewReader(in))
		if err != nil {
			return
		}
		again, err := readGreeting(bytes.NewReader(g.append(nil)))
		if err != nil || again != g {
			t.Fatalf("%+v became %+v, %v", g, again, err)
		}
	})
}

// Both sides of the handshake, with what each ends with.
func TestHandshake(t *testing.T) {
	a, b := dfs.ClusterID{0xa}, dfs.ClusterID{0xb}
	for _, c := range []struct {
		name           string
		client, server dfs.ClusterID
		lo, hi         uint16 // the client's versions; 0: this release's
		refuse         error
		want           dfs.Kind // on both sides; 0: accepted
	}{
		{name: "same cluster", client: a, server: a},
		{name: "client learns", server: a},
		{name: "server learns", client: a},
		{name: "neither knows"},
		{name: "other cluster", client: a, server: b, want: dfs.WrongCluster},
		{name: "later release that speaks ours", lo: 1, hi: 9},
		{name: "only later versions", lo: 2, hi: 9, want: dfs.Unsupported},
		{name: "only earlier versions", lo: 0, hi: 0, want: dfs.Unsupported, refuse: nil},
		{name: "turned around", lo: 9, hi: 1, want: dfs.Unsupported},
		{name: "too many", client: a, server: a, refuse: dfs.Errorf(dfs.Busy, "accept", "full"), want: dfs.Busy},
		{name: "too many, a stranger is told that it is one", client: b, server: a, refuse: dfs.Errorf(dfs.Busy, "accept", "full"), want: dfs.WrongCluster},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			client, server := testIdentity, testIdentity
			client.Cluster, server.Cluster, server.Node = c.client, c.server, 1
			type result struct {
				peer Identity
				err  error
			}
			accepted := make(chan result, 1)
			go func() {
				peer, err := welcome(far, server, func(Identity) error { return c.refuse })
				accepted <- result{peer, err}
			}()
			var got result
			if c.lo == 0 && c.name != "only earlier versions" {
				got.peer, got.err = greet(near, client)
			} else {
				got.peer, got.err = greetWith(near, greeting{a: c.lo, b: c.hi, identity: client})
			}
			other := <-accepted
			if c.want != 0 {
				if dfs.KindOf(got.err) != c.want || dfs.KindOf(other.err) != c.want {
					t.Errorf("client got %v, server got %v, want %v", got.err, other.err, c.want)
				}
				return
			}
			if got.err != nil || other.err != nil {
				t.Fatalf("client got %v, server got %v", got.err, other.err)
			}
			if got.peer != server || other.peer != client {
				t.Errorf("client saw %+v, server saw %+v", got.peer, other.peer)
			}
		})
	}
}

// greetWith is a client of another release.
func greetWith(conn net.Conn, hello greeting) (Identity, error) {
	if _, err := conn.Write(hello.append(nil)); err != nil {
		return Identity{}, err
	}
	answer, err := readGreeting(conn)
	if err == nil && answer.a == 0 {
		err = dfs.Kind(answer.b)
	}
	return answer.identity, err
}

// A client refuses a server that answers with another cluster or version.
func TestGreetChecksTheAnswer(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer greeting
		want   dfs.Kind
	}{
		{"other cluster", greeting{a: 1, identity: Identity{Cluster: dfs.ClusterID{9}, Kind: KindNode}}, dfs.WrongCluster},
		{"version not offered", greeting{a: 2, identity: testIdentity}, dfs.Unsupported},
		{"refusal without a kind", greeting{identity: testIdentity, text: "x"}, dfs.Other},
		{"refusal of a kind unknown here", greeting{b: 250, identity: testIdentity, text: "x"}, dfs.Kind(250)},
		{"refusal of no kind at all", greeting{b: 0xffff, identity: testIdentity, text: "x"}, dfs.Other},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			go func() {
				defer far.Close()
				_, _ = readGreeting(far)
				_, _ = far.Write(c.answer.append(nil))
			}()
			if _, err := greet(near, testIdentity); err == nil || dfs.KindOf(err) != c.want {
				t.Errorf("got %v (%v), want %v", err, dfs.KindOf(err), c.want)
			}
		})
	}
}
