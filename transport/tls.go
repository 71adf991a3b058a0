package transport

import (
	"crypto/tls"
	"crypto/x509"
	"slices"

	"dfsd/dfs"
)

// TLSConfig makes the configuration of both sides of mutual TLS from the PEM
// bytes of the cluster's certificate authority and of this process's
// certificate and key. Either side must show a certificate of the authority;
// the name or address that was dialled must be in the server's. TLS 1.3 or
// later. Error: Invalid, which names what is wrong.
func TLSConfig(ca, cert, key []byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, &dfs.Error{Kind: dfs.Invalid, Op: "set up TLS", Text: "tls.cert and tls.key", Err: err}
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(ca) {
		return nil, dfs.Errorf(dfs.Invalid, "set up TLS", "tls.ca: no certificate in PEM form in it")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		// The certificate is shown even to who will refuse it: one that was not
		// shown would be reported as missing, and not as what is wrong with it.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },

		RootCAs:    authorities,
		ClientCAs:  authorities,
		ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13,
	}, nil
}

// isServers reports whether a certificate may be a server's, as that of a node
// is: one for clients only cannot speak as a node. The authority was checked.
func isServers(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.ContainsFunc(c.ExtKeyUsage, func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
	})
}
