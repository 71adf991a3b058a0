package transport_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// authority makes certificates in a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns a certificate and key for a host, valid until then.
func (a *authority) issue(t *testing.T, host string, until time.Time) (cert, key []byte) {
	return a.issueFor(t, host, until, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

func (a *authority) issueFor(t *testing.T, host string, until time.Time, uses ...x509.ExtKeyUsage) (cert, key []byte) {
	private := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: uses,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})
}

// config trusts one authority and shows a certificate of another.
func config(t *testing.T, trusts, by *authority, host string, until time.Time) *tls.Config {
	cert, key := by.issue(t, host, until)
	c, err := transport.TLSConfig(trusts.pem, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Who shows no good certificate gets no request through, and is told why.
func TestMutualTLS(t *testing.T) {
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	ours, foreign := newAuthority(t, "ours"), newAuthority(t, "foreign")
	good := func(host string) *tls.Config { return config(t, ours, ours, host, later) }
	for _, c := range []struct {
		name           string
		client, server *tls.Config
		want           dfs.Kind // 0: served
		text           string
	}{
		{"both good", good("cli"), good("srv"), 0, ""},
		{"no TLS on either side", nil, nil, 0, ""},
		{"client of a foreign authority", config(t, ours, foreign, "cli", later), good("srv"), dfs.Permission, "unknown certificate authority"},
		{"client's certificate has expired", config(t, ours, ours, "cli", past), good("srv"), dfs.Permission, "expired certificate"},
		{"client without a certificate", &tls.Config{RootCAs: good("cli").RootCAs, MinVersion: tls.VersionTLS13}, good("srv"), dfs.Permission, "certificate required"},
		{"client trusts another authority", config(t, foreign, ours, "cli", later), good("srv"), dfs.Permission, "certificate is refused here"},
		{"server of a foreign authority", good("cli"), config(t, ours, foreign, "srv", later), dfs.Permission, "certificate is refused here"},
		{"server's certificate has expired", good("cli"), config(t, ours, ours, "srv", past), dfs.Permission, "certificate is refused here"},
		{"server's certificate is another host's", good("cli"), good("other"), dfs.Permission, "certificate is refused here"},
		{"client without TLS", nil, good("srv"), dfs.Unsupported, "wants TLS"},
		{"server without TLS", good("cli"), nil, dfs.Unsupported, "does not speak TLS"},
		{"client with TLS 1.2", oldTLS(good("cli")), good("srv"), dfs.Permission, "version of TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			net := transport.NewMemory(transport.MemoryOptions{})
			meta := &metaService{}
			s := serve(t, net.Host("srv"), "srv:1", transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1)), TLS: c.server}, meta)
			defer s.Close()
			pool := transport.NewPool(transport.PoolOptions{Network: net.Host("cli"), Identity: identity(clientOf(clusterA)), TLS: c.client})
			defer pool.Close()
			for range 2 {
				_, err := wire.NewDRPCMetaClient(pool.Conn("srv:1")).Probe(t.Context(), &wire.ProbeRequest{Name: "x"})
				wantKind(t, err, c.want)
				if c.want == 0 && err != nil || c.want != 0 && !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v, want %q in it", err, c.text)
				}
			}
			if served := meta.calls.Load() > 0; served != (c.want == 0) {
				t.Errorf("%d calls reached the handler", meta.calls.Load())
			}
		})
	}
}

// With TLS a claim in the handshake is worth what the certificate proves.
func TestCertificatesProveNodes(t *testing.T) {
	ours, later := newAuthority(t, "ours"), time.Now().Add(time.Hour)
	with := func(uses ...x509.ExtKeyUsage) *tls.Config {
		cert, key := ours.issueFor(t, "cli", later, uses...)
		c, err := transport.TLSConfig(ours.pem, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const server, client = x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for _, c := range []struct {
		name   string
		config *tls.Config
		kind   transport.PeerKind
		addr   string   // of the node that it says to be
		want   dfs.Kind // of the call; 0: served
		proven bool
	}{
		{"a node at its address", with(server, client), transport.KindNode, "cli:7", 0, true},
		{"a node, by a certificate for all uses", with(), transport.KindNode, "cli:7", 0, true},
		{"a node for another", with(server, client), transport.KindNode, "other:7", 0, false},
		{"a node at no address", with(server, client), transport.KindNode, "", 0, false},
		{"a client", with(client), transport.KindClient, "cli:7", 0, true},
		{"a client that says it is a node", with(client), transport.KindNode, "cli:7", dfs.Permission, false},
		{"no TLS", nil, transport.KindNode, "other:7", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			net := transport.NewMemory(transport.MemoryOptions{})
			var proof error
			opts := transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1)), DropReply: func(p transport.Peer, _ string, _ error) bool {
				proof = p.Proves(c.addr)
				return false
			}}
			if c.config != nil {
				opts.TLS = config(t, ours, ours, "srv", later)
			}
			s := serve(t, net.Host("srv"), "srv:1", opts, &metaService{})
			defer s.Close()
			id := transport.Identity{Cluster: clusterA, Kind: c.kind, Node: 2}
			pool := transport.NewPool(transport.PoolOptions{Network: net.Host("cli"), Identity: identity(id), TLS: c.config})
			defer pool.Close()
			_, err := wire.NewDRPCMetaClient(pool.Conn("srv:1")).Probe(t.Context(), &wire.ProbeRequest{Name: "x"})
			if wantKind(t, err, c.want); err == nil && (proof == nil) != c.proven {
				t.Errorf("proof: %v", proof)
			}
			if err == nil && proof != nil {
				wantKind(t, proof, dfs.Permission)
			}
		})
	}
}

func oldTLS(c *tls.Config) *tls.Config {
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return c
}

func TestTLSConfigRefusesBadFiles(t *testing.T) {
	a := newAuthority(t, "a")
	cert, key := a.issue(t, "h", time.Now().Add(time.Hour))
	_, otherKey := a.issue(t, "h", time.Now().Add(time.Hour))
	for _, c := range []struct {
		name          string
		ca, cert, key []byte
		bad           bool
	}{
		{"good", a.pem, cert, key, false},
		{"no authority", nil, cert, key, true},
		{"authority is no PEM", []byte("x"), cert, key, true},
		{"no certificate", a.pem, nil, key, true},
		{"no key", a.pem, cert, nil, true},
		{"another's key", a.pem, cert, otherKey, true},
		{"torn certificate", a.pem, bytes.TrimSuffix(cert, cert[len(cert)/2:]), key, true},
	} {
		_, err := transport.TLSConfig(c.ca, c.cert, c.key)
		if (err != nil) != c.bad || c.bad && dfs.KindOf(err) != dfs.Invalid {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCheckListen(t *testing.T) {
	some := &tls.Config{}
	for _, c := range []struct {
		addr     string
		config   *tls.Config
		insecure bool
		refused  bool
	}{
		{"127.0.0.1:7400", nil, false, false},
		{"127.8.9.10:7400", nil, false, false},
		{"[::1]:7400", nil, false, false},
		{"localhost:7400", nil, false, false},
		{"10.0.0.1:7400", nil, false, true},
		{"0.0.0.0:7400", nil, false, true},
		{"[::]:7400", nil, false, true},
		{":7400", nil, false, true},
		{"meta1:7400", nil, false, true},
		{"localhost.example:7400", nil, false, true},
		{"0.0.0.0:7400", some, false, false},
		{"0.0.0.0:7400", nil, true, false},
		{"7400", some, true, true},
		{"", nil, false, true},
	} {
		err := transport.CheckListen(c.addr, c.config, c.insecure)
		if (err != nil) != c.refused || c.refused && dfs.KindOf(err) != dfs.Invalid {
			t.Errorf("%q, TLS %v, insecure %v: %v", c.addr, c.config != nil, c.insecure, err)
		}
	}
}
