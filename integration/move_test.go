package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// movable makes a tree with everything that a dump has to carry.
func movable(t *testing.T, dir string) {
	t.Helper()
	p := func(s string) string { return filepath.Join(dir, s) }
	mkdir(t, p("d"))
	mkdir(t, p("d/sub"))
	write(t, p("d/small"), pattern(1, 100))
	write(t, p("d/middle"), pattern(2, 300_000))
	write(t, p("d/sub/large"), pattern(3, 9<<20))
	write(t, p("odd\n\xff name"), []byte("odd"))
	must(t, os.Link(p("d/small"), p("d/sub/linked")))
	must(t, os.Symlink("d/small", p("symlink")))
	must(t, unix.Mkfifo(p("fifo"), 0o600))
	must(t, unix.Setxattr(p("d/small"), "user.color", []byte("green\x00"), 0))
	must(t, unix.Chmod(p("d/sub"), 0o2700))
	must(t, os.Chown(p("d/middle"), os.Getuid(), os.Getgid()))
	old := time.Unix(1_000_000_000, 123_456_789)
	for _, name := range []string{"d/small", "d/sub", "d"} {
		must(t, os.Chtimes(p(name), old, old))
	}
}

// TestDumpAndLoadBetweenMounts: through both daemons; what the second kernel
// had cached of the tree is dropped.
func TestDumpAndLoadBetweenMounts(t *testing.T) {
	from, to := harness.New(t, harness.Options{}), harness.New(t, harness.Options{})
	movable(t, from.Dir)
	blobs := filepath.Join(harness.Scratch(t), "blobs")
	lines := from.CLI("dump", from.Dir, "--content", blobs)

	// What the kernel knows of the target: absent names, an empty listing, a file.
	wantErrno(t, "stat", errorOf(os.Stat(filepath.Join(to.Dir, "d/small"))), unix.ENOENT)
	wantErrno(t, "stat", errorOf(os.Stat(filepath.Join(to.Dir, "symlink"))), unix.ENOENT)
	wantNames(t, to.Dir)
	write(t, filepath.Join(to.Dir, "odd\n\xff name"), []byte("something else"))
	wantContent(t, filepath.Join(to.Dir, "odd\n\xff name"), []byte("something else"))

	file := filepath.Join(harness.Scratch(t), "lines")
	write(t, file, []byte(lines))
	res := to.TryCLI("load", to.Dir, "--from", file, "--content", blobs)
	if res.Code != 1 || !strings.Contains(res.Stdout, "different: other content, mtime here") && !strings.Contains(res.Stdout, "different: other mtime, content here") {
		t.Errorf("load over a file that differs: code %d %s%s", res.Code, res.Stdout, res.Stderr)
	}
	to.CLI("load", to.Dir, "--from", file, "--content", blobs, "--overwrite")
	wantSameTree(t, tree(t, to.Dir), tree(t, from.Dir))
	for _, name := range []string{"d", "d/small", "d/sub"} {
		a, b := stat(t, filepath.Join(from.Dir, name)), stat(t, filepath.Join(to.Dir, name))
		if ns(a.Mtim) != ns(b.Mtim) || a.Nlink != b.Nlink || a.Uid != b.Uid || a.Mode != b.Mode {
			t.Errorf("%s: got %+v, want %+v", name, b, a)
		}
	}
	var value [16]byte
	n, err := unix.Getxattr(filepath.Join(to.Dir, "d/sub/linked"), "user.color", value[:])
	must(t, err)
	wantBytes(t, "attribute", value[:n], []byte("green\x00"))
}

func errorOf[T any](_ T, err error) error { return err }

// TestMigrateOfAMount: refused while it is mounted; the copy, mounted, is the
// tree with its history.
func TestMigrateOfAMount(t *testing.T) {
	m := harness.New(t, harness.Options{})
	movable(t, m.Dir)
	write(t, filepath.Join(m.Dir, "d/middle"), []byte("second version"))
	copied := filepath.Join(harness.Scratch(t), "store")
	if res := m.TryCLI("migrate", m.Dir, copied); res.Code != 3 || !strings.Contains(res.Stderr, "has it mounted") {
		t.Errorf("migrate of a mounted store: code %d %s", res.Code, res.Stderr)
	}
	want, records := tree(t, m.Dir), m.CLI("log", "--json", "-n", "0", m.Dir)
	must(t, m.Stop())
	m.CLI("migrate", m.Store, copied)
	if got := m.CLI("log", "--json", "-n", "0", copied); got != records {
		t.Errorf("the log differs: got %d bytes, want %d", len(got), len(records))
	}
	c := harness.New(t, harness.Options{Store: copied})
	wantSameTree(t, tree(t, c.Dir), want)
	if got := c.CLI("cat", filepath.Join(c.Dir, "d/middle@1")); got != string(pattern(2, 300_000)) {
		t.Errorf("the first version differs: %d bytes", len(got))
	}
}

// TestDoctorOfSickMounts: a daemon that is stopped, and one that was killed.
// It says so within a bounded time.
func TestDoctorOfSickMounts(t *testing.T) {
	m := harness.New(t, harness.Options{})
	write(t, filepath.Join(m.Dir, "f"), pattern(1, 100_000))
	if out := m.CLI("doctor", m.Dir, "--write"); !strings.Contains(out, "stored, read and removed") {
		t.Errorf("of a healthy mount:\n%s", out)
	}
	must(t, syscall.Kill(m.PID(), syscall.SIGSTOP))
	res := m.TryCLI("doctor", m.Dir)
	must(t, syscall.Kill(m.PID(), syscall.SIGCONT))
	if res.Code != 1 || !strings.Contains(res.Stdout, "does not answer") || !strings.Contains(res.Stdout, "no answer within") {
		t.Errorf("of a stopped daemon: code %d %v\n%s%s", res.Code, res.Err, res.Stdout, res.Stderr)
	}
	m.Kill9()
	res = m.TryCLI("doctor", m.Dir)
	if res.Code != 1 || !strings.Contains(res.Stdout, "the mount of a daemon that died") || !strings.Contains(res.Stdout, "did not end in order") {
		t.Errorf("of a killed daemon: code %d %v\n%s%s", res.Code, res.Err, res.Stdout, res.Stderr)
	}
	must(t, m.Start())
	m.CLI("doctor", m.Dir)
}
