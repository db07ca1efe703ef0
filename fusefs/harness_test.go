package fusefs

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// mounted is a real mount of a tree in memory.
type mounted struct {
	*memFS
	srv  *Server
	dir  string
	reqs *requestLog
}

// requestLog collects the names of the requests that the kernel sent.
type requestLog struct {
	slog.Handler
	mu  sync.Mutex
	all []string // guarded by mu
}

func (l *requestLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *requestLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *requestLog) WithGroup(string) slog.Handler            { return l }

func (l *requestLog) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "rx ") {
		l.mu.Lock()
		l.all = append(l.all, r.Message)
		l.mu.Unlock()
	}
	return nil
}

// count says how often each request was sent since the last call.
func (l *requestLog) count() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for _, line := range l.all {
		_, rest, _ := strings.Cut(line, ": ")
		op, _, _ := strings.Cut(rest, " ")
		n[op]++
	}
	l.all = nil
	return n
}

// mountMem mounts a tree in memory and unmounts it at the end of the test.
// With record the requests are collected.
func mountMem(t *testing.T, record bool, change ...func(*Options)) *mounted {
	t.Helper()
	if _, err := os.Stat(devicePath); err != nil {
		t.Skipf("no %s here: %v", devicePath, err)
	}
	m := &mounted{memFS: newMemFS(), dir: t.TempDir(), reqs: &requestLog{}}
	o := Options{Mountpoint: m.dir, Source: "test store", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if record {
		o.Debug, o.Log = true, slog.New(m.reqs)
	}
	for _, c := range change {
		c(&o)
	}
	srv, err := mountOn(m.memFS, o)
	if err != nil {
		t.Fatal(err)
	}
	m.srv, m.dir = srv, srv.Mountpoint()
	go srv.Serve()
	t.Cleanup(func() {
		if err := srv.Unmount(false); err != nil {
			t.Error(err)
			if err := srv.Unmount(true); err != nil {
				t.Error(err)
			}
		}
		srv.Wait()
		if n := srv.OpenFiles(); n != 0 {
			t.Errorf("%d files are open after the end of the mount", n)
		}
	})
	m.pollOnce(t)
	m.reqs.count()
	return m
}

// pollOnce polls a file that go-fuse answers by itself, after which the kernel
// asks nobody about polling. Go polls the files it opens, and here the one who
// would be asked is this very process.
func (m *mounted) pollOnce(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(m.dir+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
}

// ino returns the inode number of a path in the mount.
func (m *mounted) ino(t *testing.T, name string) meta.Ino {
	t.Helper()
	return meta.Ino(m.stat(t, name).Ino)
}

func (m *mounted) stat(t *testing.T, name string) *unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(m.dir+"/"+name, &st); err != nil {
		t.Fatalf("stat %s: %v", name, err)
	}
	return &st
}

func (m *mounted) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(m.dir+"/"+name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m *mounted) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(m.dir + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestMain lets the test program play other programs.
func TestMain(m *testing.M) {
	if path := os.Getenv("FUSEFS_TEST_EXEC"); path != "" {
		execHolding(path)
	}
	if path := os.Getenv("FUSEFS_TEST_MMAP"); path != "" {
		if err := dirtyAndTruncate(path); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv("FUSEFS_TEST_USER"); dir != "" {
		if err := mountAsUser(dir); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
