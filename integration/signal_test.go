package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestP7SignalStorm runs every kind of operation in processes that are hit by
// signals all the time: nothing answers EINTR, O_EXCL has one winner, and each
// answer is the operation's outcome.
func TestP7SignalStorm(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		shared := mkdir(t, filepath.Join(dir, "shared"))
		const procs = 3
		var cmds []*exec.Cmd
		outs := make([]bytes.Buffer, procs)
		for i := range procs {
			c := harness.HelperCmd("storm-ops", mkdir(t, filepath.Join(dir, fmt.Sprint(i))), shared)
			cmd := exec.Command(c.Args[0], c.Args[1:]...)
			cmd.Env = append(os.Environ(), c.Env...)
			cmd.Stdout, cmd.Stderr = &outs[i], &outs[i]
			must(t, cmd.Start())
			cmds = append(cmds, cmd)
			harness.Eventually(t, 20*time.Second, "the process handles signals", func() bool {
				return exists(filepath.Join(dir, fmt.Sprint(i), "ready"))
			})
		}
		var over atomic.Bool
		storm := make(chan struct{})
		go func() {
			defer close(storm)
			for !over.Load() {
				for _, cmd := range cmds {
					_ = cmd.Process.Signal(unix.SIGUSR1)
				}
				time.Sleep(50 * time.Microsecond) // the storm's rate
			}
		}()
		wins := 0
		for i, cmd := range cmds {
			if err := cmd.Wait(); err != nil {
				t.Errorf("process %d: %v\n%s", i, err, outs[i].String())
			}
			wins += bytes.Count(outs[i].Bytes(), []byte("won"))
		}
		over.Store(true)
		<-storm
		if wins != stormRounds {
			t.Errorf("O_EXCL: %d winners of %d names", wins, stormRounds)
		}
	})
}

const stormRounds = 150

// helperStormOps DIR SHARED does each operation in turn and fails on any
// error that is not the expected one.
func helperStormOps(args []string) error {
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1) // handled, so that it interrupts system calls
	dir, shared := args[0], args[1]
	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600); err != nil {
		return err
	}
	for i := range stormRounds {
		fd, err := unix.Open(filepath.Join(shared, fmt.Sprint(i)), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
		switch err {
		case nil:
			fmt.Println("won")
			if err := unix.Close(fd); err != nil {
				return fmt.Errorf("close: %w", err)
			}
		case unix.EEXIST:
		default:
			return fmt.Errorf("O_EXCL: %w", err)
		}
		if err := stormRound(dir, i); err != nil {
			return err
		}
	}
	return nil
}

// stormRound uses bare system calls: package os repeats what EINTR ended.
func stormRound(dir string, i int) error {
	d, f, g := filepath.Join(dir, "d"), filepath.Join(dir, "d", "f"), filepath.Join(dir, "d", "g")
	var fd int
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mkdir", func() error { return unix.Mkdir(d, 0o755) }},
		{"create", func() (err error) { fd, err = unix.Open(f, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600); return err }},
		{"write", func() error {
			n, err := unix.Pwrite(fd, pattern(uint64(i), 70000), 0)
			if err == nil && n != 70000 {
				err = fmt.Errorf("short write: %d", n)
			}
			return err
		}},
		{"fsync", func() error { return unix.Fsync(fd) }},
		{"read", func() error {
			buf := make([]byte, 70000)
			n, err := unix.Pread(fd, buf, 0)
			if err == nil && !bytes.Equal(buf[:n], pattern(uint64(i), 70000)) {
				err = fmt.Errorf("wrong bytes, %d of them", n)
			}
			return err
		}},
		{"chmod", func() error { return unix.Fchmod(fd, 0o640) }},
		{"setxattr", func() error { return unix.Setxattr(f, "user.s", []byte("x"), unix.XATTR_CREATE) }},
		{"rename", func() error { return unix.Rename(f, g) }},
		{"link", func() error { return unix.Link(g, f) }},
		{"truncate", func() error { return unix.Ftruncate(fd, 10) }},
		{"close", func() error { return unix.Close(fd) }},
		{"unlink", func() error { return unix.Unlink(f) }},
		{"unlink 2", func() error { return unix.Unlink(g) }},
		{"rmdir", func() error { return unix.Rmdir(d) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("round %d: %s: %w", i, step.name, err)
		}
	}
	return nil
}

// TestSigintDuringWork: Ctrl-C ends a process in the middle of its work and
// leaves the filesystem usable and whole.
func TestSigintDuringWork(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		for i := range 10 {
			d := mkdir(t, filepath.Join(dir, fmt.Sprint(i)))
			cmd := exec.Command("sh", "-c", `i=0; while :; do i=$((i+1)); echo $i > f$i; mv f$i g$i; done`)
			cmd.Dir = d
			must(t, cmd.Start())
			harness.Eventually(t, 30*time.Second, "the loop has made files", func() bool { return exists(filepath.Join(d, "g20")) })
			must(t, cmd.Process.Signal(unix.SIGINT))
			_ = cmd.Wait()
			for _, name := range names(t, d) {
				if name[0] == 'g' {
					data, err := os.ReadFile(filepath.Join(d, name))
					must(t, err)
					if string(data) != name[1:]+"\n" {
						t.Errorf("%s holds %q", name, data)
					}
				}
			}
		}
	})
}
