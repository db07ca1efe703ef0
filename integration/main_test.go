package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func TestMain(m *testing.M) {
	os.Exit(harness.Main(m, map[string]func([]string) error{
		"append-lines": helperAppendLines,
		"excl-create":  helperExclCreate,
		"hold-lock":    helperHoldLock,
		"try-lock":     helperTryLock,
		"count-locked": helperCountLocked,
		"storm-ops":    helperStormOps,
		"map-shared":   helperMapShared,
	}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErrno checks that an operation failed with exactly this errno.
func wantErrno(t testing.TB, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) || err == nil {
		t.Errorf("%s: got error %v, want %v (%s)", what, err, want, unix.ErrnoName(want))
	}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	must(t, os.WriteFile(path, data, 0o644))
}

func mkdir(t testing.TB, path string) string {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	return path
}

// wantContent compares a file's bytes.
func wantContent(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	wantBytes(t, path, got, want)
}

func wantBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: got %d bytes, want %d; they differ at %d: got %.20q want %.20q",
		what, len(got), len(want), at, got[at:], want[at:])
}

// stat returns lstat's answer.
func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// names lists a directory, sorted.
func names(t testing.TB, dir string) []string {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	list, err := f.Readdirnames(-1)
	must(t, err)
	sort.Strings(list)
	return list
}

func wantNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	got := names(t, dir)
	sort.Strings(want)
	if strings.Join(got, "\x00") != strings.Join(want, "\x00") {
		t.Errorf("names in %s: got %q, want %q", dir, got, want)
	}
}

func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// pattern returns n bytes that differ from place to place and by seed.
func pattern(seed uint64, n int) []byte {
	out := make([]byte, n)
	x := seed*2862933555777941757 + 3037000493
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x >> 24)
	}
	return out
}

// asUser runs f on a thread whose file accesses are made as another user; the
// thread is thrown away afterwards. f must not start goroutines.
func asUser(t testing.TB, uid, gid int, groups []int, f func()) {
	t.Helper()
	harness.NeedRoot(t)
	done := make(chan any)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer func() { done <- recover() }()
		if err := threadUser(uid, gid, groups); err != nil {
			panic(err)
		}
		f()
	}()
	if p := <-done; p != nil {
		t.Fatalf("as user %d: %v", uid, p)
	}
}

// threadUser changes the filesystem identity of the calling thread alone (the
// package syscall's functions change that of every thread).
func threadUser(uid, gid int, groups []int) error {
	list := make([]uint32, len(groups)+1)
	for i, g := range groups {
		list[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptrOf(&list[0]), 0); e != 0 {
		return fmt.Errorf("setgroups: %w", e)
	}
	if err := unix.Setfsgid(gid); err != nil {
		return err
	}
	return unix.Setfsuid(uid)
}

// parallel runs f(0..n-1) at once and returns when all have ended.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// tree describes everything below dir: type, mode, size, link target and
// content of each name, for comparing two trees.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), sum(data))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " " + target
		}
		out[rel] = line
		return nil
	}))
	return out
}

// wantSameTree compares two trees whole.
func wantSameTree(t testing.TB, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("missing: %q", name)
		} else if g != w {
			t.Errorf("%q: got %s, want %s", name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("too many: %q", name)
		}
	}
}

// ns returns a Timespec as nanoseconds.
func ns(ts unix.Timespec) int64 { return ts.Nano() }

// tick waits until the kernel's coarse clock, which stamps file times, has moved.
func tick() {
	start := coarse()
	for coarse() == start {
		time.Sleep(time.Millisecond)
	}
}

func coarse() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}
