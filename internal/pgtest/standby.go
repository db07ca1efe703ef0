package pgtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Standby makes a copy of the running server by pg_basebackup and starts it as
// a standby that follows it under a name, for synchronous_standby_names. It ends
// with the test. Settings are added to the primary's; "recovery_min_apply_delay"
// and the like go there.
func (s *Server) Standby(tb testing.TB, name string, settings ...string) *Server {
	tb.Helper()
	b, err := s.standby(name, settings)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
	})
	return b
}

func (s *Server) standby(name string, settings []string) (*Server, error) {
	o := s.o
	o.Data = ""
	b, err := folder(s.bin, o)
	if err != nil {
		return nil, err
	}
	conninfo := fmt.Sprintf("host=%s port=%d user=%s application_name=%s", s.Dir, s.Port, Superuser, name)
	if err := b.run("pg_basebackup", "-D", b.data(), "-d", conninfo, "-X", "stream", "-c", "fast", "-R", "--no-sync"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.Dir))
	}
	b.o.Settings = append(append([]string{}, o.Settings...), settings...)
	if err := b.Start(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Promote makes a standby a server of its own and waits until it is one.
func (s *Server) Promote() error {
	return s.run("pg_ctl", "promote", "-w", "-D", s.data())
}

// CaughtUp waits until the standby has received and replayed all that the
// primary has flushed.
func (s *Server) CaughtUp(tb testing.TB, primary *Server) {
	tb.Helper()
	lsn := primary.MustSQL(tb, Superuser, "SELECT pg_current_wal_flush_lsn()")
	for start := time.Now(); time.Since(start) < startLimit; time.Sleep(10 * time.Millisecond) {
		if s.MustSQL(tb, Superuser, "SELECT coalesce(pg_last_wal_replay_lsn() >= '"+lsn+"'::pg_lsn, false)") == "t" {
			return
		}
	}
	tb.Fatalf("the standby does not catch up:\n%s", s.Log())
}

// TakePort makes the server listen on another's port from its next start on, as
// a standby does that takes an address over. The other must have ended.
func (s *Server) TakePort(other *Server) { s.Port = other.Port }

// InstallTLS gives the server a certificate and its key, PEM-encoded; it serves
// TLS from its next start on.
func (s *Server) InstallTLS(certificate, key []byte) error {
	for name, data := range map[string][]byte{"server.crt": certificate, "server.key": key} {
		path := filepath.Join(s.data(), name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
		if s.cred != nil {
			if err := os.Chown(path, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
				return err
			}
		}
	}
	s.o.Settings = append(s.o.Settings, "ssl=on")
	return nil
}

// Both is the address of a database that is on this server or on another,
// whichever is writable.
func (s *Server) Both(other *Server, database string) string {
	return strings.Replace(s.URL(Superuser, "", database), fmt.Sprintf(":%d/", s.Port), fmt.Sprintf(":%d,127.0.0.1:%d/", s.Port, other.Port), 1) +
		"&target_session_attrs=read-write"
}

// HoldLog stops the process that flushes the log behind commits that do not wait
// for it: until the server is killed, only who waits gets to the disk.
func (s *Server) HoldLog(tb testing.TB) {
	tb.Helper()
	pid, err := strconv.Atoi(s.MustSQL(tb, Superuser, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGSTOP)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// Dump returns a database as statements that make it again.
func (s *Server) Dump(database string) (string, error) {
	c := s.command("pg_dump", "-h", s.Dir, "-p", fmt.Sprint(s.Port), "-U", Superuser, "-d", database)
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("pg_dump: %w", err)
	}
	return string(out), err
}

// StopFollowing makes a standby receive no more: what the primary commits from
// now on is not on it.
func (s *Server) StopFollowing(tb testing.TB) {
	tb.Helper()
	s.MustSQL(tb, Superuser, "ALTER SYSTEM SET primary_conninfo = ''")
	s.MustSQL(tb, Superuser, "SELECT pg_reload_conf()")
	for start := time.Now(); time.Since(start) < startLimit; time.Sleep(10 * time.Millisecond) {
		if s.MustSQL(tb, Superuser, "SELECT count(*) FROM pg_stat_wal_receiver") == "0" {
			return
		}
	}
	tb.Fatalf("the standby still receives:\n%s", s.Log())
}
