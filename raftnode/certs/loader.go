package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Loader gives TLS what lies in a node's folder, as it is at each handshake.
// Its methods may be called concurrently.
type Loader struct {
	dir string
	now func() time.Time

	mu    sync.Mutex
	stamp [3]stamp // guarded by mu: of the files as they were read
	cert  *tls.Certificate
	trust *x509.CertPool
}

// stamp tells whether a file was replaced.
type stamp struct {
	size int64
	time time.Time
}

// NewLoader returns a loader for a node's folder, which must hold a certificate
// by now.
func NewLoader(dir string) (*Loader, error) {
	l := &Loader{dir: dir, now: time.Now}
	_, _, err := l.load()
	return l, err
}

// load returns the certificate and the authorities, read again if their files
// changed. Files that cannot be read leave what was read before in use.
func (l *Loader) load() (*tls.Certificate, *x509.CertPool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var now [3]stamp
	for i, name := range []string{CertFile, KeyFile, TrustFile} {
		if st, err := os.Stat(filepath.Join(l.dir, name)); err == nil {
			now[i] = stamp{st.Size(), st.ModTime()}
		}
	}
	if l.cert != nil && now == l.stamp {
		return l.cert, l.trust, nil
	}
	cert, trust, err := l.read()
	if err == nil {
		l.cert, l.trust, l.stamp = cert, trust, now
	}
	if l.cert == nil {
		return nil, nil, fmt.Errorf("certificates in %s: %w", l.dir, err)
	}
	return l.cert, l.trust, nil
}

func (l *Loader) read() (*tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(l.dir, CertFile), filepath.Join(l.dir, KeyFile))
	if err != nil {
		return nil, nil, err
	}
	b, err := os.ReadFile(filepath.Join(l.dir, TrustFile))
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, nil, errors.New(TrustFile + " holds no certificate")
	}
	return &cert, pool, nil
}

// Trusted returns the authorities' certificates, as PEM.
func (l *Loader) Trusted() ([]byte, error) { return os.ReadFile(filepath.Join(l.dir, TrustFile)) }

// Expires returns when the node's certificate ends.
func (l *Loader) Expires() (time.Time, error) {
	cert, _, err := l.load()
	if err != nil {
		return time.Time{}, err
	}
	return cert.Leaf.NotAfter, nil
}

// Client returns the configuration of a connection to the node with that id.
func (l *Loader) Client(id string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: id,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _, err := l.load()
			return cert, err
		},
		// The authorities are read at each handshake, which RootCAs are not: so
		// the check is made below, and all of it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return l.verify(cs, id, x509.ExtKeyUsageServerAuth)
		},
	}
}

// Server returns the configuration of a listener. A client that shows a
// certificate must show a good one; who shows none is nobody, and may only ask
// to join.
func (l *Loader) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, _, err := l.load()
			return cert, err
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return l.verify(cs, Name(cs), x509.ExtKeyUsageClientAuth)
		},
	}
}

// verify checks a peer's chain, purpose and name.
func (l *Loader) verify(cs tls.ConnectionState, id string, use x509.ExtKeyUsage) error {
	_, trust, err := l.load()
	if err != nil {
		return err
	}
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the other side has no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: trust, Intermediates: between, DNSName: id, CurrentTime: l.now(), KeyUsages: []x509.ExtKeyUsage{use},
	})
	return err
}

// Name returns the node's id in a verified peer's certificate, "" if it shows
// none.
func Name(cs tls.ConnectionState) string {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].DNSNames) != 1 {
		return ""
	}
	return cs.PeerCertificates[0].DNSNames[0]
}

// Pin names an authority, given as PEM: what a joining node is told, since it
// trusts nobody yet.
func Pin(authority []byte) (string, error) {
	b, _ := pem.Decode(authority)
	if b == nil {
		return "", errors.New("no certificate of an authority")
	}
	return fingerprint(b.Bytes), nil
}

func fingerprint(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}

// Joining returns the configuration with which a node that has no certificate
// yet connects to a member: the member's certificate must come from the
// authority that the pin names.
func Joining(pin string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// No authority is known yet: the check is made below, against the pin.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if c.IsCA && fingerprint(c.Raw) == pin {
					roots := x509.NewCertPool()
					roots.AddCert(c)
					_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
					return err
				}
			}
			return errors.New("the other side does not belong to the group that the token is for")
		},
	}
}
