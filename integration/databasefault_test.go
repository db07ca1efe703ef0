package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
	"nexusfs/internal/pgtest"
)

// authority makes certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	path string // of its certificate, PEM-encoded
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	a := &authority{t: t, key: key, path: filepath.Join(harness.Scratch(t), "ca.crt")}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	must(t, os.WriteFile(a.path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	return a
}

// issue makes a server's certificate for an address.
func (a *authority) issue(address string) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.ParseIP(address)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	must(a.t, err)
	private, err := x509.MarshalPKCS8PrivateKey(k)
	must(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// TestDatabaseOverTLS: a mount verifies the server's certificate and name, and
// each way in which that fails is a sentence.
func TestDatabaseOverTLS(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{HBA: "hostnossl all all 127.0.0.1/32 reject\n"})
	ca := newAuthority(t)
	install := func(address string) {
		must(t, s.Stop())
		must(t, s.InstallTLS(ca.issue(address)))
		must(t, s.Start())
	}
	install("127.0.0.1")
	plain := s.URL(pgtest.Superuser, "", s.Database(t))
	secure := func(ca *authority) string {
		return strings.Replace(plain, "sslmode=disable", "sslmode=verify-full&sslrootcert="+ca.path, 1)
	}
	m := mountOn(t, secure(ca))
	write(t, filepath.Join(m.Dir, "f"), []byte("over TLS"))
	wantContent(t, filepath.Join(m.Dir, "f"), []byte("over TLS"))
	if got := s.MustSQL(t, pgtest.Superuser, "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'nexusfs'"); got != "t" {
		t.Errorf("connections by TLS: %q", got)
	}
	refused := func(name, url, says string) {
		r := m.TryCLI("mount", "--background", "-o", "content=/nonexistent", url, harness.Scratch(t))
		if r.Code == 0 || !strings.Contains(r.Stderr, says) {
			t.Errorf("%s: code %d, %q; want a sentence with %q", name, r.Code, r.Stderr, says)
		}
	}
	refused("no TLS", plain, "demands TLS")
	refused("another authority", secure(newAuthority(t)), "certificate is not trusted")
	must(t, m.Stop())
	install("127.0.0.2")
	refused("a certificate for another host", secure(ca), "names the host")
	install("127.0.0.1")
}

// TestDatabaseDiskFull: what the database has no room for is ENOSPC, at once;
// what is there is read, and with room again everything goes on.
func TestDatabaseDiskFull(t *testing.T) {
	harness.NeedRoot(t)
	disk := smallDisk(t, "tmpfs", 48)
	ballast := filepath.Join(disk, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 16<<20), 0o600))
	s := pgtest.Start(t, pgtest.Options{Fsync: true})
	owner, err := os.Stat(s.Dir)
	must(t, err)
	space := filepath.Join(disk, "space")
	must(t, os.Mkdir(space, 0o700))
	id := owner.Sys().(*syscall.Stat_t)
	must(t, os.Chown(space, int(id.Uid), int(id.Gid)))
	must(t, os.Chmod(disk, 0o755))
	s.MustSQL(t, pgtest.Superuser, "CREATE TABLESPACE small LOCATION '"+space+"'")
	s.MustSQL(t, pgtest.Superuser, "CREATE DATABASE onsmall TEMPLATE template0 ENCODING 'UTF8' TABLESPACE small")
	m := mountOn(t, s.URL(pgtest.Superuser, "", "onsmall"))
	acknowledged := 0
	for i := range 4000 {
		began := time.Now()
		err = os.WriteFile(filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 12<<10), 0o644)
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("a write took %v", d)
		}
		if err != nil {
			break
		}
		acknowledged++
	}
	wantErrno(t, "a write into a full database", err, unix.ENOSPC)
	t.Logf("%d files fitted", acknowledged)
	for i := range acknowledged {
		wantContent(t, filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 12<<10))
	}
	must(t, os.Remove(ballast))
	harness.Eventually(t, 30*time.Second, "writes go on with room again", func() bool {
		return os.WriteFile(filepath.Join(m.Dir, "room"), pattern(7, 12<<10), 0o644) == nil
	})
	wantContent(t, filepath.Join(m.Dir, "room"), pattern(7, 12<<10))
	must(t, m.Stop())
	must(t, m.Start())
	for i := range acknowledged {
		wantContent(t, filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 12<<10))
	}
	if failed := m.Status()["failed"]; failed != nil {
		t.Errorf("status says failed: %v", failed)
	}
}

// TestDatabaseLogDiskFull: when the disk with the server's log is full the server
// gives up. The caller is told within the bound; what was acknowledged is
// there once there is room and the server runs, and the mount goes on by itself.
func TestDatabaseLogDiskFull(t *testing.T) {
	harness.NeedRoot(t)
	disk := smallDisk(t, "tmpfs", 160)
	must(t, os.Chmod(disk, 0o755))
	s := pgtest.Start(t, pgtest.Options{Fsync: true, Data: mkdir(t, filepath.Join(disk, "data")),
		Settings: []string{"min_wal_size=32MB", "max_wal_size=2GB", "restart_after_crash=off"}})
	m := mountOn(t, s.URL(pgtest.Superuser, "", s.Database(t)))
	ballast := filepath.Join(disk, "ballast")
	var free unix.Statfs_t
	must(t, unix.Statfs(disk, &free))
	must(t, os.WriteFile(ballast, make([]byte, int(free.Bavail)*int(free.Bsize)-(20<<20)), 0o600))
	acknowledged, limit := 0, 90*time.Second
	var err error
	var took time.Duration
	for i := range 4000 {
		began := time.Now()
		if err = os.WriteFile(filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 12<<10), 0o644); err != nil {
			if took = time.Since(began); took > limit {
				t.Errorf("the answer took %v", took)
			}
			break
		}
		acknowledged++
	}
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write without room for the log: %v", err)
	}
	t.Logf("%d files fitted, then %v after %v", acknowledged, err, took)
	must(t, os.Remove(ballast))
	if _, err := s.SQL(pgtest.Superuser, "SELECT 1"); err != nil {
		must(t, s.Start())
	}
	writesAgain(t, m)
	for i := range acknowledged {
		wantContent(t, filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 12<<10))
	}
	if failed := m.Status()["failed"]; failed != nil {
		t.Errorf("status says failed: %v", failed)
	}
}

// TestDatabaseHoldsTheZone: a statement that finds the zone held for longer than
// it may run is EIO within the stated time, and nothing was written.
func TestDatabaseHoldsTheZone(t *testing.T) {
	s, m := ownServer(t, pgtest.Options{Settings: []string{"statement_timeout=0"}}, pgtest.Superuser, "")
	must(t, m.Start())
	write(t, filepath.Join(m.Dir, "f"), []byte("x"))
	db := m.Store[strings.LastIndex(m.Store, "/")+1:]
	db = db[:strings.Index(db, "?")]
	held := make(chan error, 1)
	go func() {
		_, err := s.SQL(db, "BEGIN; SELECT FROM nexusfs.counters FOR UPDATE; SELECT pg_sleep(120); ROLLBACK")
		held <- err
	}()
	harness.Eventually(t, 20*time.Second, "the zone is held", func() bool {
		return s.MustSQL(t, db, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND wait_event = 'PgSleep'") != "0"
	})
	began := time.Now()
	err := os.WriteFile(filepath.Join(m.Dir, "g"), []byte("x"), 0o644)
	took := time.Since(began)
	wantErrno(t, "a create while the zone is held", err, unix.EIO)
	if took < 25*time.Second || took > 60*time.Second {
		t.Errorf("it took %v", took)
	}
	wantContent(t, filepath.Join(m.Dir, "f"), []byte("x"))
	s.MustSQL(t, db, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND wait_event = 'PgSleep'")
	if err := <-held; err == nil {
		t.Error("the holder was not cancelled")
	}
	harness.Eventually(t, 30*time.Second, "changes go on", func() bool {
		return os.WriteFile(filepath.Join(m.Dir, "h"), []byte("x"), 0o644) == nil
	})
	if _, err := os.Stat(filepath.Join(m.Dir, "g")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("what was refused is there: %v", err)
	}
}
