package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Root returns the folder of the module's sources.
func Root() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		panic("harness: no caller information")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

var buildPlain = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("NEXUSFS_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	bin := filepath.Join(scratchRoot(), "nexusfs")
	args := []string{"build", "-o", bin}
	if os.Getenv("NEXUSFS_RACE") == "1" {
		args = append(args, "-race")
	}
	return bin, quiet(exec.Command("go", append(args, "./cmd/nexusfs")...))
})

var buildFailpoints = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("NEXUSFS_FAILPOINTS_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	bin := filepath.Join(Root(), "build", "nexusfs-failpoints")
	return bin, quiet(exec.Command("make", "-s", "build/nexusfs-failpoints"))
})

// quiet runs a build command in the module's root.
func quiet(cmd *exec.Cmd) error {
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}

// Binary returns the path of the built nexusfs; the first call builds it.
func Binary(t testing.TB) string {
	t.Helper()
	return built(t, buildPlain)
}

// FailpointBinary returns the path of nexusfs built with failpoints.
func FailpointBinary(t testing.TB) string {
	t.Helper()
	return built(t, buildFailpoints)
}

func built(t testing.TB, build func() (string, error)) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return bin
}
