// Package certs makes and loads the certificates with which the nodes of a
// group know each other: an authority for the group, and one certificate for
// each node, named after the node's id. Certificates live in files and are read
// again when the files change, so that they and the authorities are replaced
// without ending a connection.
//
// It promises: TLS 1.3; both sides check the other's chain, purpose and name. It
// does not say who is a member: raftnode does. Its callers are
// raftnode/transport and cmd/nexusfs.
package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Names of the files in a node's folder.
const (
	TrustFile        = "ca.pem"        // the authorities that are trusted: one, or two while one replaces the other
	CertFile         = "node.pem"      // the node's certificate
	KeyFile          = "node.key"      // and its key
	AuthorityFile    = "authority.pem" // where this node issues certificates: the authority's certificate
	AuthorityKeyFile = "authority.key" // and its key
)

// Lives of certificates.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	NodeLife      = 365 * 24 * time.Hour
	skew          = 5 * time.Minute // by which clocks may differ
)

// Authority issues the certificates of a group.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes an authority for a group.
func NewAuthority(group string, now time.Time) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "nexusfs group " + group}, SerialNumber: serial(),
		NotBefore: now.Add(-skew), NotAfter: now.Add(AuthorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{cert, key}, err
}

// NewKey makes a key for a node: ECDSA on P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // does not fail (crypto/rand)
	return new(big.Int).SetBytes(b)
}

// Certificate returns the authority's own certificate, as PEM.
func (a *Authority) Certificate() []byte { return pemBlock("CERTIFICATE", a.cert.Raw) }

// Issue makes a certificate for the node with the given id and public key, as
// PEM, followed by the authority's own. It serves both ends of a connection.
func (a *Authority) Issue(id string, pub crypto.PublicKey, now time.Time) ([]byte, error) {
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: id}, DNSNames: []string{id}, SerialNumber: serial(),
		NotBefore: now.Add(-skew), NotAfter: now.Add(NodeLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return append(pemBlock("CERTIFICATE", der), a.Certificate()...), nil
}

// Request returns what proves that the caller has key: for IssueTo.
func Request(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// IssueTo issues a certificate to who made the request. The name is the
// caller's decision, never the request's.
func (a *Authority) IssueTo(id string, request []byte, now time.Time) ([]byte, error) {
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, err
	}
	return a.Issue(id, r.PublicKey, now)
}

// Save stores the authority in a node's folder: from then on that node issues
// certificates. Whoever reads the key can make himself a member.
func (a *Authority) Save(dir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	return errors.Join(
		replace(filepath.Join(dir, AuthorityKeyFile), pemBlock("PRIVATE KEY", key), 0o600),
		replace(filepath.Join(dir, AuthorityFile), a.Certificate(), 0o644))
}

// LoadAuthority reads a node's authority; fs.ErrNotExist where it has none.
func LoadAuthority(dir string) (*Authority, error) {
	keyPEM, err := os.ReadFile(filepath.Join(dir, AuthorityKeyFile))
	if err != nil {
		return nil, err
	}
	certPEM, err := os.ReadFile(filepath.Join(dir, AuthorityFile))
	if err != nil {
		return nil, err
	}
	kb, _ := pem.Decode(keyPEM)
	cb, _ := pem.Decode(certPEM)
	if kb == nil || cb == nil {
		return nil, fmt.Errorf("the authority in %s is damaged: put its copy back, or replace the authority", dir)
	}
	key, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the authority's key in %s cannot sign", dir)
	}
	return &Authority{cert, signer}, nil
}

// Install stores a node's key and certificate and the authorities that it
// trusts, each file replaced as one; a nil key stays as it is.
func Install(dir string, key *ecdsa.PrivateKey, cert, trust []byte) error {
	if key != nil {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		if err := replace(filepath.Join(dir, KeyFile), pemBlock("PRIVATE KEY", der), 0o600); err != nil {
			return err
		}
	}
	return errors.Join(
		replace(filepath.Join(dir, TrustFile), trust, 0o644),
		replace(filepath.Join(dir, CertFile), cert, 0o644))
}

// Key reads a node's key.
func Key(dir string) (crypto.Signer, error) {
	b, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key", filepath.Join(dir, KeyFile))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	if signer, ok := key.(crypto.Signer); ok {
		return signer, nil
	}
	return nil, fmt.Errorf("the key in %s cannot sign", dir)
}

// Trust adds an authority to those that a node trusts. Replacing an authority
// takes three steps, each on every node before the next: trust the new one; use
// certificates of the new one; distrust the old one.
func Trust(dir string, authority []byte) error {
	path := filepath.Join(dir, TrustFile)
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if bytes.Contains(have, bytes.TrimSpace(authority)) {
		return nil
	}
	return replace(path, append(have, authority...), 0o644)
}

// Distrust takes every authority but the given one from those that a node
// trusts.
func Distrust(dir string, keep []byte) error {
	return replace(filepath.Join(dir, TrustFile), keep, 0o644)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// replace writes a file durably in place of what was there.
func replace(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
