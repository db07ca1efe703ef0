package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// In background mode the command starts itself again, detached, and waits for
// the child's report on a pipe. The child keeps nothing of its parent: a
// session of its own, / as working directory, and no descriptor but the pipe,
// which it closes once it serves.

// childEnv marks the child; its value is the descriptor of the pipe.
const childEnv = "NEXUSFS_READY_FD"

// readyFD is where the child finds the pipe: the first of os/exec's ExtraFiles.
const readyFD = 3

func isDaemonChild(getenv func(string) string) bool { return getenv(childEnv) != "" }

// report is what the child tells: empty Error means that it serves.
type report struct {
	Error string `json:"error,omitempty"`
	Exit  int    `json:"exit,omitempty"`
	PID   int    `json:"pid"`
}

// mountInBackground returns when the daemon serves, or with its error.
func (a *app) mountInBackground(ctx context.Context, spec *mountSpec) error {
	child, err := a.startChild(spec)
	if err != nil {
		return fail(exitMount, "starting the daemon: %w", err)
	}
	defer child.status.Close()
	defer child.errors.Close()
	stop := context.AfterFunc(ctx, func() { _ = child.process.Signal(syscall.SIGTERM) })
	defer stop()
	rep, err := child.wait()
	if err != nil {
		return err
	}
	if rep.Error != "" {
		return &exitError{code: rep.Exit, err: errors.New(rep.Error)}
	}
	if !spec.helper {
		a.tryNext(spec, rep.PID)
	}
	return child.process.Release()
}

type childProcess struct {
	process *os.Process
	status  *os.File // its report
	errors  *os.File // its standard error, until it has a log
}

func (a *app) startChild(spec *mountSpec) (*childProcess, error) {
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer statusW.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		statusR.Close()
		return nil, err
	}
	defer errW.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0] // a mount helper is known by its name
	cmd.Env = append(os.Environ(), childEnv+"=3")
	if r := spec.target.remote; r != nil && r.password != "" {
		cmd.Env = append(cmd.Env, passwordEnv+"="+r.password) // the command line has none any more
	}
	cmd.ExtraFiles = []*os.File{statusW}
	cmd.Stdout, cmd.Stderr = errW, errW
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	closeInherited()
	if err := cmd.Start(); err != nil {
		statusR.Close()
		errR.Close()
		return nil, err
	}
	return &childProcess{process: cmd.Process, status: statusR, errors: errR}, nil
}

// closeInherited marks every descriptor that this process was started with, so
// that the child does not get those that a shell or mount(8) left open.
func closeInherited() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // no /proc: nothing that can be done, and nothing breaks
	}
	for _, e := range entries {
		if fd, err := parseFD(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// wait reads the report. A child that ends without one tells by what it wrote
// on its standard error.
func (c *childProcess) wait() (report, error) {
	var text string
	var wg sync.WaitGroup
	wg.Go(func() {
		data, _ := io.ReadAll(io.LimitReader(c.errors, 64<<10)) // what there is, is shown
		text = strings.TrimSpace(string(data))
	})
	line, err := bufio.NewReader(c.status).ReadBytes('\n')
	var rep report
	if err == nil {
		err = json.Unmarshal(line, &rep)
	}
	if err == nil {
		return rep, nil
	}
	state, werr := c.process.Wait()
	wg.Wait()
	if werr != nil {
		return rep, fail(exitMount, "the daemon ended before it served: %w", werr)
	}
	if text == "" {
		text = "see its log, STORE/daemon.log"
	}
	return rep, fail(exitMount, "the daemon ended before it served (%s): %s", state, text)
}

// daemonize is the child's side: it leaves the parent's directory and, once the
// store has a log, the parent's output.
func daemonize() error {
	unix.CloseOnExec(readyFD)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), 0, 0)
}

// toLog sends standard output and error to the log file, and opens it again
// when it was moved away (SIGHUP).
func toLog(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Dup3(int(f.Fd()), 1, 0); err != nil {
		return err
	}
	return unix.Dup3(int(f.Fd()), 2, 0)
}

// tell sends the report and closes the pipe. A parent that is gone is no error.
func tell(rep report) {
	pipe := os.NewFile(readyFD, "ready")
	if data, err := json.Marshal(rep); err == nil {
		_, _ = pipe.Write(append(data, '\n'))
	}
	_ = pipe.Close()
}
