package harness

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const scratchPrefix = "nexusfs-it-"

// scratchRoot makes this process's scratch folder, after removing what killed
// runs left behind. Its name holds the process id, so that a later run can
// tell whether the owner still lives.
var scratchRoot = sync.OnceValue(func() string {
	parent := os.Getenv("NEXUSFS_TEST_STORE")
	if parent == "" {
		parent = os.TempDir()
	}
	sweep(parent)
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-", scratchPrefix, os.Getpid()))
	if err == nil {
		err = os.Chmod(dir, 0o755) // other users reach mountpoints and the test binary's copy
	}
	if err != nil {
		panic(err)
	}
	return dir
})

// sweep unmounts and removes the scratch folders of processes that are gone.
func sweep(parent string) {
	left, _ := filepath.Glob(filepath.Join(parent, scratchPrefix+"*"))
	for _, dir := range left {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), scratchPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		abortConnections(dir)
		for _, m := range MountsUnder(dir) {
			_ = syscall.Unmount(m, syscall.MNT_DETACH)
		}
		removeTree(dir)
	}
}

// Scratch returns a fresh folder that others may enter. It is removed at the
// end of the test, unless something is still mounted below it: then the test
// fails and the mount is detached first, so that nothing is removed through it.
func Scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratchRoot(), "t-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range MountsUnder(dir) {
			t.Errorf("still mounted at the end: %s", m)
			_ = syscall.Unmount(m, syscall.MNT_DETACH)
		}
		if t.Failed() && os.Getenv("NEXUSFS_KEEP") == "1" {
			t.Logf("kept: %s", dir)
			return
		}
		removeTree(dir)
	})
	return dir
}

// removeTree removes dir unless a mount is left below it.
func removeTree(dir string) {
	if len(MountsUnder(dir)) == 0 {
		_ = os.RemoveAll(dir)
	}
}

// MountEntry is one line of /proc/self/mountinfo.
type MountEntry struct {
	Device                                     string // major:minor
	Point, Options, Type, Source, SuperOptions string
}

// Mounts lists the mounts of this process's mount namespace, in mount order.
func Mounts() []MountEntry {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	var out []MountEntry
	for sc := bufio.NewScanner(f); sc.Scan(); {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		out = append(out, MountEntry{
			Device: l[2], Point: unescape(l[4]), Options: l[5], Type: r[0], Source: unescape(r[1]), SuperOptions: r[2],
		})
	}
	return out
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	for _, c := range []string{" ", "\t", "\n", `\`} {
		s = strings.ReplaceAll(s, fmt.Sprintf(`\%03o`, c[0]), c)
	}
	return s
}

// MountAt returns the topmost mount at exactly dir.
func MountAt(dir string) (MountEntry, bool) {
	var found MountEntry
	ok := false
	for _, m := range Mounts() {
		if m.Point == dir {
			found, ok = m, true
		}
	}
	return found, ok
}

// MountsUnder lists the mountpoints at or below dir, innermost first.
func MountsUnder(dir string) []string {
	var out []string
	for _, m := range Mounts() {
		if m.Point == dir || strings.HasPrefix(m.Point, dir+"/") {
			out = append([]string{m.Point}, out...)
		}
	}
	return out
}
