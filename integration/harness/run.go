package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// CommandLimit bounds every command that a test runs.
const CommandLimit = 4 * time.Minute

// Result is what a finished command left.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 when a signal or the time limit ended it
	Err            error
}

// Cmd describes a command to run; the zero values of the other fields do.
type Cmd struct {
	Dir   string
	Args  []string // Args[0] is looked up in PATH
	Env   []string // added to the environment
	Stdin string
	UID   uint32 // run as this user (and GID) when not 0
	GID   uint32
	Limit time.Duration // default CommandLimit
}

// Try runs a command and returns what came of it. A command over its limit is
// killed with everything it started.
func Try(c Cmd) Result {
	limit := c.Limit
	if limit == 0 {
		limit = CommandLimit
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	res := Result{Stdout: stdout.String(), Stderr: stderr.String(), Err: err}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		res.Code = exit.ExitCode()
	case err != nil:
		res.Code = -1
	}
	if ctx.Err() != nil {
		res.Err = fmt.Errorf("not done after %v: %w", limit, err)
	}
	return res
}

// RunCmd runs a command that must succeed and returns its standard output.
func RunCmd(t testing.TB, c Cmd) string {
	t.Helper()
	res := Try(c)
	if res.Err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(c.Args, " "), res.Err, tail(res.Stdout, 4000), tail(res.Stderr, 4000))
	}
	return res.Stdout
}

// Run runs a command in dir; it must succeed.
func Run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	return RunCmd(t, Cmd{Dir: dir, Args: args})
}

// Shell runs a script by sh -e in dir; it must succeed.
func Shell(t testing.TB, dir, script string) string {
	t.Helper()
	return RunCmd(t, Cmd{Dir: dir, Args: []string{"sh", "-ec", script}})
}

// tail returns the last n bytes of s.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "...\n" + s[len(s)-n:]
}

// Need skips the test when a tool is missing.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			Skip(t, "needs the program "+tool)
		}
	}
}

// NeedRoot skips the test for an ordinary user.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root")
	}
}

// NotShort skips the test under go test -short.
func NotShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long")
	}
}

// Long says how long the random and repeated tests may take, from
// NEXUSFS_LONG ("1h"); zero in ordinary runs.
func Long() time.Duration {
	d, err := time.ParseDuration(os.Getenv("NEXUSFS_LONG"))
	if err != nil {
		return 0
	}
	return d
}

// OnlyLong skips the test in ordinary runs.
func OnlyLong(t testing.TB) {
	t.Helper()
	if Long() == 0 {
		t.Skip("runs with NEXUSFS_LONG=DURATION")
	}
}

// Skip skips the test, or fails it when NEXUSFS_NO_SKIP=1: a run that counts
// must not pass because its machine lacked something.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("NEXUSFS_NO_SKIP") == "1" {
		t.Fatalf("would be skipped: %s", why)
	}
	t.Skip(why)
}

// Eventually polls until ok returns true, for conditions of other processes
// that nothing announces. It fails the test after limit.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
