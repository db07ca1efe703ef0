package integration

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// lockFile takes one lock. Kinds: "flock", "posix", "ofd"; a start and a
// length select the range; wait blocks.
func lockFile(fd uintptr, kind string, typ int16, start, length int64, wait bool) error {
	if kind == "flock" {
		how := map[int16]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[typ]
		if !wait {
			how |= unix.LOCK_NB
		}
		return unix.Flock(int(fd), how)
	}
	cmd := map[string][2]int{"posix": {unix.F_SETLK, unix.F_SETLKW}, "ofd": {unix.F_OFD_SETLK, unix.F_OFD_SETLKW}}[kind]
	lk := unix.Flock_t{Type: typ, Start: start, Len: length}
	if wait {
		return unix.FcntlFlock(fd, cmd[1], &lk)
	}
	return unix.FcntlFlock(fd, cmd[0], &lk)
}

// helperHoldLock PATH KIND START LEN takes a write lock, says so on standard
// output and keeps it until standard input ends.
func helperHoldLock(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	start, _ := strconv.ParseInt(args[2], 10, 64)
	length, _ := strconv.ParseInt(args[3], 10, 64)
	if err := lockFile(f.Fd(), args[1], unix.F_WRLCK, start, length, true); err != nil {
		return err
	}
	fmt.Println("locked")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// helperTryLock PATH KIND START LEN exits 0 when the lock is free, 1 when not.
func helperTryLock(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	start, _ := strconv.ParseInt(args[2], 10, 64)
	length, _ := strconv.ParseInt(args[3], 10, 64)
	return lockFile(f.Fd(), args[1], unix.F_WRLCK, start, length, false)
}

// holder is a process that holds a lock until told otherwise.
type holder struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func holdLock(t *testing.T, path, kind string, start, length int) *holder {
	t.Helper()
	c := harness.HelperCmd("hold-lock", path, kind, fmt.Sprint(start), fmt.Sprint(length))
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	h := &holder{cmd, stdin}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "locked\n" {
		t.Fatalf("the lock holder said %q, %v", line, err)
	}
	return h
}

func (h *holder) release(t *testing.T) {
	t.Helper()
	must(t, h.stdin.Close())
	must(t, h.cmd.Wait())
}

func lockIsFree(path, kind string, start, length int) bool {
	return harness.Try(harness.HelperCmd("try-lock", path, kind, fmt.Sprint(start), fmt.Sprint(length))).Err == nil
}

func TestLocksExclude(t *testing.T) {
	for _, kind := range []string{"flock", "posix", "ofd"} {
		t.Run(kind, func(t *testing.T) {
			harness.Targets(t, func(t *testing.T, dir string) {
				p := filepath.Join(dir, "f")
				write(t, p, make([]byte, 1000))
				h := holdLock(t, p, kind, 100, 50)
				if lockIsFree(p, kind, 120, 1) {
					t.Errorf("two processes hold one lock")
				}
				if kind != "flock" {
					for _, c := range [][2]int{{0, 100}, {150, 0}} {
						if !lockIsFree(p, kind, c[0], c[1]) {
							t.Errorf("range %d+%d beside the lock is not free", c[0], c[1])
						}
					}
				}
				h.release(t)
				if !lockIsFree(p, kind, 120, 1) {
					t.Errorf("the lock stays after its holder ended")
				}
				h = holdLock(t, p, kind, 0, 0)
				must(t, h.cmd.Process.Kill())
				_ = h.cmd.Wait()
				if !lockIsFree(p, kind, 0, 0) {
					t.Errorf("the lock stays after its holder was killed")
				}
			})
		})
	}
}

// TestLockWaits: a blocked lock call gets the lock when it is freed.
func TestLockWaits(t *testing.T) {
	for _, kind := range []string{"flock", "posix", "ofd"} {
		t.Run(kind, func(t *testing.T) {
			harness.Targets(t, func(t *testing.T, dir string) {
				p := filepath.Join(dir, "f")
				write(t, p, make([]byte, 10))
				h := holdLock(t, p, kind, 0, 0)
				f := open(t, p, os.O_RDWR)
				got := make(chan error, 1)
				go func() {
					for {
						err := lockFile(f.Fd(), kind, unix.F_WRLCK, 0, 0, true)
						if err != unix.EINTR { // Go's own preemption signals
							got <- err
							return
						}
					}
				}()
				select {
				case err := <-got:
					t.Fatalf("a lock call did not wait: %v", err)
				case <-time.After(50 * time.Millisecond): // it can only be seen not to happen
				}
				h.release(t)
				if err := <-got; err != nil {
					t.Errorf("the waiting call: %v", err)
				}
				if lockIsFree(p, kind, 0, 0) {
					t.Errorf("the waiter does not hold the lock")
				}
			})
		})
	}
}

// TestLockInterrupted: a signal ends a waiting lock call, and what it asked
// for is not granted later.
func TestLockInterrupted(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		for _, kind := range []string{"flock", "posix"} {
			p := filepath.Join(dir, kind)
			write(t, p, make([]byte, 10))
			h := holdLock(t, p, kind, 0, 0)
			c := harness.HelperCmd("hold-lock", p, kind, "0", "0")
			cmd := exec.Command(c.Args[0], c.Args[1:]...)
			cmd.Env = append(os.Environ(), c.Env...)
			must(t, cmd.Start())
			harness.Eventually(t, 10*time.Second, "the second process waits", func() bool {
				return threadBlockedInLock(cmd.Process.Pid)
			})
			must(t, cmd.Process.Signal(unix.SIGTERM))
			_ = cmd.Wait()
			h.release(t)
			if !lockIsFree(p, kind, 0, 0) {
				t.Errorf("%s: an interrupted wait was granted the lock", kind)
			}
		}
	})
}

// threadBlockedInLock reports whether a thread of the process is inside
// fcntl(2) or flock(2).
func threadBlockedInLock(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, p := range tasks {
		text, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		var nr int
		if n, _ := fmt.Sscan(string(text), &nr); n == 1 && (nr == unix.SYS_FCNTL || nr == unix.SYS_FLOCK) {
			return true
		}
	}
	return false
}

// TestLockedCounter: a counter that many processes raise under a lock loses
// nothing, with each kind of lock.
func TestLockedCounter(t *testing.T) {
	for _, kind := range []string{"flock", "posix"} {
		t.Run(kind, func(t *testing.T) {
			harness.Targets(t, func(t *testing.T, dir string) {
				p := filepath.Join(dir, "counter")
				write(t, p, []byte("0"))
				const procs, each = 6, 100
				parallel(procs, func(int) {
					if res := harness.Try(harness.HelperCmd("count-locked", p, kind, fmt.Sprint(each))); res.Err != nil {
						t.Errorf("%v %s", res.Err, res.Stderr)
					}
				})
				wantContent(t, p, []byte(fmt.Sprint(procs*each)))
			})
		})
	}
}

// helperCountLocked PATH KIND N raises the number in a file N times.
func helperCountLocked(args []string) error {
	signal.Ignore(unix.SIGURG)
	n, _ := strconv.Atoi(args[2])
	for range n {
		if err := raiseLocked(args[0], args[1]); err != nil {
			return err
		}
	}
	return nil
}

func raiseLocked(path, kind string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for err = unix.EINTR; err == unix.EINTR; {
		err = lockFile(f.Fd(), kind, unix.F_WRLCK, 0, 0, true)
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	v, err := strconv.Atoi(string(text))
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(v+1)), 0); err != nil {
		return err
	}
	return lockFile(f.Fd(), kind, unix.F_UNLCK, 0, 0, false)
}

// TestLockRules: conversions, splits, deadlock detection, lock queries.
func TestLockRules(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, make([]byte, 100))
		f := open(t, p, os.O_RDWR)
		must(t, lockFile(f.Fd(), "posix", unix.F_WRLCK, 0, 100, false))
		must(t, lockFile(f.Fd(), "posix", unix.F_UNLCK, 40, 20, false)) // splits it
		for _, c := range []struct {
			start int
			free  bool
		}{{0, false}, {39, false}, {40, true}, {59, true}, {60, false}, {99, false}, {100, true}} {
			if got := lockIsFree(p, "posix", c.start, 1); got != c.free {
				t.Errorf("byte %d free: got %v, want %v", c.start, got, c.free)
			}
		}
		// Closing any descriptor of the file drops the process's POSIX locks.
		g, err := os.Open(p)
		must(t, err)
		must(t, g.Close())
		if !lockIsFree(p, "posix", 0, 1) {
			t.Errorf("POSIX locks survive the close of another descriptor")
		}
		h := holdLock(t, p, "posix", 10, 20)
		lk := unix.Flock_t{Type: unix.F_WRLCK}
		must(t, unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lk))
		if lk.Type != unix.F_WRLCK || lk.Start != 10 || lk.Len != 20 || int(lk.Pid) != h.cmd.Process.Pid {
			t.Errorf("F_GETLK: %+v, want a write lock at 10+20 of process %d", lk, h.cmd.Process.Pid)
		}
		r := open(t, p, os.O_RDONLY)
		wantErrno(t, "a write lock on a reading handle", lockFile(r.Fd(), "posix", unix.F_WRLCK, 90, 1, false), unix.EBADF)
		// flock converts, and is shared by duplicates of one description.
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_SH))
		must(t, unix.Flock(int(r.Fd()), unix.LOCK_SH|unix.LOCK_NB))
		wantErrno(t, "flock upgrade beside a reader", unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
		must(t, unix.Flock(int(r.Fd()), unix.LOCK_UN))
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	})
}
