// Package pgtest starts private PostgreSQL servers for tests: a cluster made by
// initdb in a temporary folder, reached over a unix socket and over TCP on the
// loopback. It promises that nothing outlives the test: the server is a child of
// the test process and ends by its process id, its folder goes. It needs the
// server's programs, which packaging/setup.sh installs; without them a test
// fails. Tests of every room may use it; shipped code never does.
package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Superuser is the cluster's administrator; it logs in without a password.
const Superuser = "postgres"

// startLimit bounds how long a server may take to answer.
const startLimit = 60 * time.Second

// Options change what Start makes.
type Options struct {
	Fsync    bool     // sync to disk as in production; off, nothing survives the machine but everything the process
	Settings []string // further settings: "max_connections=30"
	Auth     string   // authentication over TCP, for pg_hba.conf; "" means trust
	HBA      string   // lines that go before it, in place of it where they fit
	Data     string   // where the data lies, an empty folder or none; "": in the server's own
}

// Server is a running or stopped cluster. Its methods may be called one at a time.
type Server struct {
	Dir  string // holds the data folder, the socket and the log
	Port int    // on 127.0.0.1, and part of the socket's name

	bin  string
	cred *syscall.Credential // nil: run as who we are
	o    Options
	proc *os.Process
	done chan struct{} // closed when proc has ended

	made atomic.Int64 // databases so far
}

// Bin finds the folder of the newest installed server's programs.
func Bin() (string, error) {
	list, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	version := func(p string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(p)))) // what is no number sorts first
		return n
	}
	slices.SortFunc(list, func(a, b string) int { return version(a) - version(b) })
	if len(list) == 0 {
		return "", errors.New("PostgreSQL is not installed: run packaging/setup.sh test (Debian's package postgresql)")
	}
	return filepath.Dir(list[len(list)-1]), nil
}

// New makes a cluster and starts it. Close ends it.
func New(o Options) (*Server, error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	s, err := folder(bin, o)
	if err != nil {
		return nil, err
	}
	if err := s.initialize(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.Dir))
	}
	if err := s.Start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// folder makes the server's folder, for a user that may own a server: root may not.
func folder(bin string, o Options) (*Server, error) {
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir, bin: bin, o: o}
	if os.Getuid() == 0 {
		err = s.becomeUnprivileged()
	}
	if err == nil {
		s.Port, err = freePort()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// Start is New for one test, which fails without a server and ends it.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// shared is one server for all tests of a test binary.
type shared struct {
	mu sync.Mutex
	s  *Server // guarded by mu
}

// Shared returns a function that hands out one server, started when it is first
// asked for, and one that ends it: for TestMain.
func Shared(o Options) (get func(testing.TB) *Server, end func() error) {
	var one shared
	get = func(tb testing.TB) *Server {
		tb.Helper()
		one.mu.Lock()
		defer one.mu.Unlock()
		if one.s == nil {
			s, err := New(o)
			if err != nil {
				tb.Fatal(err)
			}
			one.s = s
		}
		return one.s
	}
	end = func() error {
		one.mu.Lock()
		defer one.mu.Unlock()
		if one.s == nil {
			return nil
		}
		return one.s.Close()
	}
	return get, end
}

// initialize runs initdb.
func (s *Server) initialize() error {
	if err := s.run("initdb", "-D", s.data(), "-U", Superuser, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"); err != nil {
		return err
	}
	auth := s.o.Auth
	if auth == "" {
		auth = "trust"
	}
	hba := "local all all trust\nlocal replication all trust\n" + s.o.HBA + "host all all 127.0.0.1/32 " + auth + "\n"
	return os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(hba), 0o600)
}

// becomeUnprivileged gives the folder to the package's own user, or to nobody.
func (s *Server) becomeUnprivileged() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if s.o.Data != "" {
		if err := os.Chown(s.o.Data, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return os.Chown(s.Dir, int(uid), int(gid))
}

// freePort finds a port that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (s *Server) data() string {
	if s.o.Data != "" {
		return s.o.Data
	}
	return filepath.Join(s.Dir, "data")
}

func (s *Server) command(program string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(s.bin, program), args...)
	c.Dir = s.Dir
	c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=" + s.Dir}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setpgid: true}
	return c
}

func (s *Server) run(program string, args ...string) error {
	out, err := s.command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	return nil
}

// Start starts the server and waits until it answers. It is for a server that
// was stopped or killed.
func (s *Server) Start() error {
	log, err := os.OpenFile(s.logName(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.Port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + s.Dir}
	if !s.o.Fsync {
		args = append(args, "-c", "fsync=off")
	}
	for _, set := range s.o.Settings {
		args = append(args, "-c", set)
	}
	c := s.command("postgres", args...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	started, done := make(chan error), make(chan struct{})
	go func() {
		// The kernel ends the server when the thread that started it ends, so that
		// not even a test that is killed leaves it behind: the thread stays.
		runtime.LockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			_ = c.Wait() // how it ended is in the log
		}
		close(done)
	}()
	if err := <-started; err != nil {
		return err
	}
	s.proc, s.done = c.Process, done
	return s.await()
}

// await polls the server, which has no better way to say that it is ready.
func (s *Server) await() error {
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.command("pg_isready", "-q", "-h", s.Dir, "-p", strconv.Itoa(s.Port)).Run() == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("the server ended:\n%s", s.Log())
		case <-limit.C:
			return fmt.Errorf("the server does not answer:\n%s", s.Log())
		case <-tick.C:
		}
	}
}

func (s *Server) logName() string { return filepath.Join(s.Dir, "log") }

// Log returns what the server wrote.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.logName())
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b))
}

// Stop ends the server in order; connections are cut.
func (s *Server) Stop() error { return s.signal(syscall.SIGINT) }

// Kill ends the server as a crash does: SIGKILL for the postmaster, then for
// its children, which would go by themselves a little later and until then keep
// Start from succeeding.
func (s *Server) Kill() error {
	if s.proc == nil {
		return nil
	}
	pid := strconv.Itoa(s.proc.Pid)
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	if err != nil {
		return err
	}
	if err := s.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	for _, child := range strings.Fields(string(children)) {
		if err := killAndWait(child); err != nil {
			return err
		}
	}
	return s.ended()
}

// killAndWait ends a child of the postmaster, whom only init can bury.
func killAndWait(child string) error {
	pid, err := strconv.Atoi(child)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(filepath.Join("/proc", child, "stat"))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return nil
		}
		if time.Since(start) > startLimit {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
}

func (s *Server) signal(sig os.Signal) error {
	if s.proc == nil {
		return nil
	}
	if err := s.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return s.ended()
}

// ended waits for the postmaster's end.
func (s *Server) ended() error {
	select {
	case <-s.done:
		s.proc = nil
		return nil
	case <-time.After(startLimit):
		return fmt.Errorf("the server does not end:\n%s", s.Log())
	}
}

// Close stops the server at once and removes its folder.
func (s *Server) Close() error {
	return errors.Join(s.signal(syscall.SIGQUIT), os.RemoveAll(s.Dir))
}

// URL is the address of a database by TCP, for a user; password may be empty.
func (s *Server) URL(userName, password, database string) string {
	if password != "" {
		userName += ":" + password
	}
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", userName, s.Port, database)
}

// SocketURL is the address of a database by the unix socket, for the superuser.
func (s *Server) SocketURL(database string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&port=%d&user=%s", database, s.Dir, s.Port, Superuser)
}

// SQL runs statements as the superuser and returns what they print, unaligned.
func (s *Server) SQL(database, statements string) (string, error) {
	c := s.command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", s.Dir, "-p", strconv.Itoa(s.Port), "-U", Superuser, "-d", database)
	c.Stdin = strings.NewReader(statements)
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w\n%s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// MustSQL is SQL for a test, which fails when the statements do.
func (s *Server) MustSQL(tb testing.TB, database, statements string) string {
	tb.Helper()
	out, err := s.SQL(database, statements)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// Database makes an empty database for a test and returns its name. Its
// collation orders text as people do, so that nothing relies on bytewise order
// by accident. It goes when the test ends, if the server still runs.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", s.made.Add(1))
	s.MustSQL(tb, Superuser, "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
	tb.Cleanup(func() {
		if s.proc == nil {
			return
		}
		if _, err := s.SQL(Superuser, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			tb.Error(err)
		}
	})
	return name
}
