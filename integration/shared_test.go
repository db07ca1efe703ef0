package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// two mounts a zone in a database by two daemons.
func two(t *testing.T) (a, b *harness.Mount) {
	t.Helper()
	a = harness.New(t, harness.Options{Database: true})
	return a, a.Beside(t)
}

// TestI2CloseToOpenByTwoDaemons: what was closed, renamed or removed by one
// daemon is what the other opens.
func TestI2CloseToOpenByTwoDaemons(t *testing.T) {
	a, b := two(t)
	for _, m := range []*harness.Mount{a, b} {
		if s := m.Status(); s["shared"] != true || s["peers"] != 1.0 {
			t.Errorf("status of %s: shared %v, peers %v", m.Dir, s["shared"], s["peers"])
		}
	}
	for i := range 50 {
		name := fmt.Sprint(i)
		data := pattern(uint64(i), 1+i*700)
		write(t, filepath.Join(a.Dir, name), data)
		wantContent(t, filepath.Join(b.Dir, name), data)
		data = pattern(uint64(1000+i), 1+i*500)
		write(t, filepath.Join(b.Dir, name), data)
		wantContent(t, filepath.Join(a.Dir, name), data)
	}
	must(t, os.Rename(filepath.Join(a.Dir, "1"), filepath.Join(a.Dir, "one")))
	wantContent(t, filepath.Join(b.Dir, "one"), pattern(1001, 501))
	must(t, os.Remove(filepath.Join(b.Dir, "one")))
	_, err := os.Open(filepath.Join(a.Dir, "one"))
	wantErrno(t, "opening what the other daemon removed", err, unix.ENOENT)
	mkdir(t, filepath.Join(a.Dir, "d"))
	write(t, filepath.Join(b.Dir, "d", "x"), []byte("x"))
	wantErrno(t, "removing a directory that the other daemon has filled", os.Remove(filepath.Join(a.Dir, "d")), unix.ENOTEMPTY)
	wantNames(t, filepath.Join(a.Dir, "d"), "x")
	// An open file is read on, whatever the other daemon does to its name.
	f := open(t, filepath.Join(a.Dir, "2"), os.O_RDONLY)
	must(t, os.Remove(filepath.Join(b.Dir, "2")))
	buf := make([]byte, 5000)
	n, err := f.ReadAt(buf, 0)
	if n != 1001 {
		t.Errorf("read %d bytes of a file that was removed, %v", n, err)
	}
}

// TestOneWinnerPerNameByTwoDaemons: O_EXCL, mkdir and link by many at once.
func TestOneWinnerPerNameByTwoDaemons(t *testing.T) {
	a, b := two(t)
	write(t, filepath.Join(a.Dir, "from"), nil)
	makers := map[string]func(dir, name string) error{
		"excl": func(dir, name string) error {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		"mkdir": func(dir, name string) error { return os.Mkdir(filepath.Join(dir, name), 0o755) },
		"link":  func(dir, name string) error { return os.Link(filepath.Join(dir, "from"), filepath.Join(dir, name)) },
	}
	for kind, mk := range makers {
		const names = 100
		var won [names]atomic.Int32
		parallel(6, func(w int) {
			dir := []string{a.Dir, b.Dir}[w%2]
			for i := range names {
				err := mk(dir, fmt.Sprintf("%s%d", kind, i))
				switch {
				case err == nil:
					won[i].Add(1)
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("%s: %v", kind, err)
				}
			}
		})
		for i := range won {
			if n := won[i].Load(); n != 1 {
				t.Errorf("%s: %d winners of name %d", kind, n, i)
			}
		}
	}
}

// TestP3TwoDaemonsMoveDirectories: whatever two daemons do to the same few
// directories, the tree stays a tree and both show the same one.
func TestP3TwoDaemonsMoveDirectories(t *testing.T) {
	a, b := two(t)
	const dirs = 5
	path := func(r *rand.Rand) string {
		p := ""
		for range 1 + r.IntN(4) {
			p = filepath.Join(p, fmt.Sprintf("d%d", r.IntN(dirs)))
		}
		return p
	}
	allowed := []unix.Errno{unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.EINVAL, unix.ENOTDIR, unix.EISDIR, unix.EBUSY, unix.ESTALE, unix.EPERM}
	parallel(6, func(w int) {
		r := rand.New(rand.NewPCG(uint64(w), 7))
		dir := []string{a.Dir, b.Dir}[w%2]
		for range 150 {
			p, q := filepath.Join(dir, path(r)), filepath.Join(dir, path(r))
			var err error
			switch r.IntN(8) {
			case 0, 1:
				err = os.Mkdir(p, 0o755)
			case 2, 3, 4:
				err = os.Rename(p, q)
			case 5:
				err = unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE)
			case 6:
				err = os.WriteFile(filepath.Join(p, "f"), []byte(p), 0o644)
			case 7:
				err = os.Remove(p)
			}
			var no unix.Errno
			if err != nil && (!errors.As(err, &no) || !strings.Contains(fmt.Sprint(allowed), fmt.Sprint(no))) {
				t.Errorf("%v", err)
			}
		}
	})
	a.CLI("fsck", a.Dir)
	// What one listed may be gone a moment later: for half a second each believes
	// what it knows.
	list := func(m *harness.Mount) string {
		return harness.Try(harness.Cmd{Dir: m.Dir, Args: []string{"sh", "-c", "find . -printf '%p %y %s\n' | sort"}}).Stdout
	}
	harness.Eventually(t, 10*time.Second, "both daemons show the same tree", func() bool { return list(a) == list(b) })
	wantSameTree(t, tree(t, a.Dir), tree(t, b.Dir))
}

// TestP8AppendsByTwoDaemons: no line of many appenders is lost or cut.
func TestP8AppendsByTwoDaemons(t *testing.T) {
	a, b := two(t)
	write(t, filepath.Join(a.Dir, "log"), nil)
	const workers, lines = 4, 25
	parallel(workers, func(w int) {
		for i := range lines {
			f, err := os.OpenFile(filepath.Join([]string{a.Dir, b.Dir}[w%2], "log"), os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = fmt.Fprintf(f, "worker %d line %d\n", w, i)
			must(t, err)
			must(t, f.Close())
		}
	})
	data, err := os.ReadFile(filepath.Join(b.Dir, "log"))
	must(t, err)
	got := map[string]int{}
	for line := range strings.Lines(string(data)) {
		got[line]++
	}
	for w := range workers {
		for i := range lines {
			if n := got[fmt.Sprintf("worker %d line %d\n", w, i)]; n != 1 {
				t.Errorf("worker %d line %d is there %d times", w, i, n)
			}
		}
	}
}

// TestP20KilledBesideAnother: a daemon that was killed is taken over by the
// next one at once, and one that stays dead is fenced when its lease ends.
func TestP20KilledBesideAnother(t *testing.T) {
	a, b := two(t)
	write(t, filepath.Join(a.Dir, "f"), []byte("by a"))
	a.Kill9()
	wantContent(t, filepath.Join(b.Dir, "f"), []byte("by a"))
	began := time.Now()
	a.Restart()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("mounting after a kill took %v", d)
	}
	write(t, filepath.Join(a.Dir, "f"), []byte("by a again"))
	wantContent(t, filepath.Join(b.Dir, "f"), []byte("by a again"))
	a.Kill9()
	write(t, filepath.Join(b.Dir, "g"), []byte("by b"))
	harness.Eventually(t, 30*time.Second, "the dead daemon counts no more", func() bool { return b.Status()["shared"] == false })
	b.CLI("gc", b.Dir)
}

// TestNothingGoesWhileTwoDaemonsLive: gc and purge say so.
func TestNothingGoesWhileTwoDaemonsLive(t *testing.T) {
	a, _ := two(t)
	write(t, filepath.Join(a.Dir, "f"), []byte("1"))
	for _, args := range [][]string{{"gc", a.Dir}, {"purge", filepath.Join(a.Dir, "f")}} {
		if r := a.TryCLI(args...); r.Code == 0 || !strings.Contains(r.Stderr, "other daemons") {
			t.Errorf("%v: code %d, %q", args[:1], r.Code, r.Stderr)
		}
	}
}

// TestContentOfAKilledDaemonIsFreed: what was stored early for a file that
// never came to its close goes when the zone is mounted alone again.
func TestContentOfAKilledDaemonIsFreed(t *testing.T) {
	m := harness.New(t, harness.Options{Database: true})
	write(t, filepath.Join(m.Dir, "kept"), pattern(1, 9<<20))
	f := open(t, filepath.Join(m.Dir, "lost"), os.O_CREATE|os.O_WRONLY)
	_, err := f.Write(pattern(2, 24<<20))
	must(t, err)
	harness.Eventually(t, 30*time.Second, "content is stored early", func() bool { return diskUse(t, m.Content) > 25<<20 })
	m.Kill9()
	f.Close() // ENOTCONN: nobody is there
	m.Restart()
	harness.Eventually(t, 60*time.Second, "it is freed", func() bool { return diskUse(t, m.Content) < 14<<20 })
	wantContent(t, filepath.Join(m.Dir, "kept"), pattern(1, 9<<20))
	ended := decode(t, m.CLI("sql", "--json", m.Dir, "select count(*) as n from sessions where ended is null"))["n"]
	if ended != 1.0 {
		t.Errorf("%v sessions are open, want the living one", ended)
	}
}
