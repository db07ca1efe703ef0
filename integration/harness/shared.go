package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Targets runs one workload in a fresh folder on nexusfs, and in one on a
// plain filesystem to prove that the test asks for what Linux gives.
// With NEXUSFS_TEST_DIR it runs in that directory alone.
func Targets(t *testing.T, work func(t *testing.T, dir string)) {
	t.Helper()
	if dir := os.Getenv("NEXUSFS_TEST_DIR"); dir != "" {
		work(t, fresh(t, dir))
		return
	}
	t.Run("control", func(t *testing.T) { work(t, fresh(t, controlRoot())) })
	t.Run("nexusfs", func(t *testing.T) { work(t, fresh(t, sharedDir(t))) })
}

// Mounted runs one workload in a fresh folder on nexusfs (or in
// NEXUSFS_TEST_DIR), without a control run: for workloads that take long.
func Mounted(t *testing.T, work func(t *testing.T, dir string)) {
	t.Helper()
	dir := os.Getenv("NEXUSFS_TEST_DIR")
	if dir == "" {
		dir = sharedDir(t)
	}
	work(t, fresh(t, dir))
}

// Plain reports that the workloads run in a plain directory, which may give
// less than nexusfs promises.
func Plain() bool { return os.Getenv("NEXUSFS_TEST_DIR") != "" }

// NeedMount skips a test of the product's own commands when the tests run in a
// plain directory.
func NeedMount(t testing.TB) {
	t.Helper()
	if Plain() {
		t.Skip("NEXUSFS_TEST_DIR is a plain directory")
	}
}

func controlRoot() string {
	if dir := os.Getenv("NEXUSFS_TEST_CONTROL"); dir != "" {
		return dir
	}
	return scratchRoot()
}

// fresh makes a folder named after the test, removed when the test passes.
func fresh(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, strings.NewReplacer("/", "-", "*", "_").Replace(t.Name())+"-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's folder: %v", err)
		}
	})
	return dir
}

// shared is the mount that the workload tests of one process use together:
// they meet a store with history in it, and mounting is not paid for by each.
var shared struct {
	sync.Mutex
	m *Mount
	t *processTB
}

// sharedDir returns the shared mountpoint, mounting anew when there is none or
// its daemon died.
func sharedDir(t testing.TB) string {
	t.Helper()
	return SharedMount(t).Dir
}

// SharedMount returns the mount that workload tests share.
func SharedMount(t testing.TB) *Mount {
	t.Helper()
	NeedMount(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.m != nil && !shared.m.Alive() {
		shared.t.Errorf("the shared mount's daemon died (noticed by %s): %v", t.Name(), shared.m.err)
		shared.t.finish()
		shared.m = nil
	}
	if shared.m == nil {
		tb := &processTB{TB: t}
		m := Prepare(tb, Options{Args: sharedArgs()})
		if err := m.Start(); err != nil {
			tb.finish()
			t.Fatal(err)
		}
		m.t = tb
		shared.m, shared.t = m, tb
	}
	return shared.m
}

// sharedArgs lets other users in where that can be given.
func sharedArgs() []string {
	if os.Geteuid() == 0 {
		return []string{"-o", "allow_other"}
	}
	return nil
}

// Main runs the tests of one package, or, when the environment asks for it, one
// of the helpers instead: tests start the test binary again for work that
// needs a process of its own. It unmounts and checks the shared mount and
// removes the scratch folder. Use it as os.Exit(harness.Main(m, helpers)).
func Main(m *testing.M, helpers map[string]func(args []string) error) int {
	if name := os.Getenv(helperEnv); name != "" {
		return runHelper(name, helpers)
	}
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.m != nil {
		if shared.t.finish(); shared.t.failed && code == 0 {
			code = 1
		}
	}
	if err := endServer(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	removeTree(scratchRoot())
	return code
}

// processTB stands in for a test while something lives longer than one test:
// its cleanups run when finish is called, its failures are printed and counted.
type processTB struct {
	testing.TB
	mu       sync.Mutex
	failed   bool     // guarded by mu
	cleanups []func() // guarded by mu
}

func (p *processTB) Helper() {}
func (p *processTB) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *processTB) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

func (p *processTB) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "shared mount: "+format+"\n", args...)
}

func (p *processTB) Errorf(format string, args ...any) {
	p.Logf(format, args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
}

// Fatalf and Fatal end the calling goroutine, as those of testing.T do.
func (p *processTB) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

func (p *processTB) Fatal(args ...any) { p.Fatalf("%s", fmt.Sprint(args...)) }

// finish runs the cleanups, last first, each to its end.
func (p *processTB) finish() {
	for {
		p.mu.Lock()
		n := len(p.cleanups)
		if n == 0 {
			p.mu.Unlock()
			return
		}
		f := p.cleanups[n-1]
		p.cleanups = p.cleanups[:n-1]
		p.mu.Unlock()
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
}

const helperEnv = "NEXUSFS_TEST_HELPER"

func runHelper(name string, helpers map[string]func([]string) error) int {
	f, ok := helpers[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no helper %q\n", name)
		return 2
	}
	if err := f(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// HelperCmd describes a run of one of this test binary's helpers, as any user.
func HelperCmd(name string, args ...string) Cmd {
	return Cmd{Args: append([]string{selfCopy()}, args...), Env: []string{helperEnv + "=" + name}}
}

// selfCopy puts the test binary where every user can execute it.
var selfCopy = sync.OnceValue(func() string {
	path := filepath.Join(scratchRoot(), "helper.test")
	data, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err != nil {
		panic(err)
	}
	return path
})
