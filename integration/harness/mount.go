package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// StartLimit and StopLimit bound how long a daemon may take to serve and to
// finish its work.
const (
	StartLimit = 30 * time.Second
	StopLimit  = 60 * time.Second
)

// Options says how a store is mounted.
type Options struct {
	Store      string   // default: a new one
	Dir        string   // default: a new mountpoint
	Args       []string // further flags of nexusfs mount
	Env        []string // added to the daemon's environment
	Failpoints bool     // run the binary that has failpoints
	UID, GID   uint32   // run the daemon as this user when not 0
	NoFsck     bool     // the test damages the store: cleanup does not check it
	Database   bool     // a new store is a zone in PostgreSQL, whatever OnDatabase says
}

// Mount is a store, a mountpoint and the daemon that serves it in the
// foreground as a child of this process. Its methods are for one goroutine.
type Mount struct {
	Store, Dir string
	Content    string // folder with the content outside of SQL

	t      testing.TB
	opts   Options
	bin    string
	args   []string // flags of mount that the kind of store needs
	env    []string // of every command
	log    string
	logged int // size of the log when the daemon was started
	cmd    *exec.Cmd
	done   chan struct{} // closed when the daemon has ended
	err    error         // how it ended; valid after done
}

// New mounts a store and unmounts and checks it when the test ends.
func New(t testing.TB, o Options) *Mount {
	t.Helper()
	m := Prepare(t, o)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return m
}

// Prepare is New without starting the daemon.
func Prepare(t testing.TB, o Options) *Mount {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		Skip(t, "needs /dev/fuse")
	}
	base := Scratch(t)
	m := &Mount{t: t, opts: o, Store: o.Store, Dir: o.Dir, log: filepath.Join(base, "daemon.log")}
	m.env = append(m.env, "NEXUSFS_STATE="+filepath.Join(base, "state"))
	switch {
	case m.Store == "" && (o.Database || OnDatabase()):
		m.zone(t, base)
	case m.Store == "":
		m.Store = filepath.Join(base, "store")
	}
	if m.Content == "" {
		m.Content = filepath.Join(m.Store, "content")
	}
	if m.Dir == "" {
		m.Dir = filepath.Join(base, "mnt")
		if err := os.Mkdir(m.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if o.UID != 0 {
		for _, d := range []string{base, m.Dir} {
			if err := os.Chown(d, int(o.UID), int(o.GID)); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.bin = Binary(t)
	if o.Failpoints {
		m.bin = FailpointBinary(t)
	}
	t.Cleanup(m.cleanup)
	return m
}

// Start starts the daemon and returns when the mount serves.
func (m *Mount) Start() error {
	if err := m.Launch(); err != nil {
		return err
	}
	return m.awaitServing()
}

// Launch starts the daemon and returns at once.
func (m *Mount) Launch() error {
	if info, err := os.Stat(m.log); err == nil {
		m.logged = int(info.Size())
	}
	logfile, err := os.OpenFile(m.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	defer logfile.Close()
	cmd := exec.Command(m.bin, slices.Concat([]string{"mount", m.Store, m.Dir}, m.args, m.opts.Args)...)
	cmd.Env = slices.Concat(os.Environ(), m.env, m.opts.Env)
	cmd.Stdout, cmd.Stderr = logfile, logfile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if m.opts.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: m.opts.UID, Gid: m.opts.GID}
		cmd.Env = append(cmd.Env, "HOME="+filepath.Dir(m.Dir), "XDG_CONFIG_HOME="+filepath.Dir(m.Dir))
	}
	if err := spawn(cmd); err != nil {
		return err
	}
	done := make(chan struct{})
	m.cmd, m.done = cmd, done
	go func() {
		m.err = cmd.Wait()
		close(done)
	}()
	return nil
}

// awaitServing returns when the daemon says that it has mounted, and the
// kernel lists the mount and statfs is answered. A mount of a predecessor that
// died does not count.
func (m *Mount) awaitServing() error {
	for end := time.Now().Add(StartLimit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		select {
		case <-m.done:
			return fmt.Errorf("the daemon ended before it served: %v\n%s", m.err, m.Log())
		default:
		}
		if text, err := os.ReadFile(m.log); err != nil || !strings.Contains(string(text[min(m.logged, len(text)):]), "is mounted at") {
			continue
		}
		if e, ok := MountAt(m.Dir); !ok || !strings.HasPrefix(e.Type, "fuse") {
			continue
		}
		var st syscall.Statfs_t
		// EACCES is the kernel's answer in another user's mount: it serves too.
		if err := syscall.Statfs(m.Dir, &st); err == nil || err == syscall.EACCES {
			return nil
		}
	}
	return fmt.Errorf("the mount does not serve after %v\n%s", StartLimit, m.Log())
}

// PID returns the daemon's process id.
func (m *Mount) PID() int { return m.cmd.Process.Pid }

// Alive reports whether the daemon runs.
func (m *Mount) Alive() bool {
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// Log returns the end of what the daemon printed.
func (m *Mount) Log() string {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(b), 16000)
}

// Kill9 kills the daemon without warning and waits until it is gone. The dead
// mountpoint stays: the next mount has to clean it up.
func (m *Mount) Kill9() {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Fatal(err)
	}
	select {
	case <-m.done:
	case <-time.After(killLimit):
		abortConnections(m.Dir)
		m.t.Fatalf("kill -9 did not end the daemon (pid %d) within %v: it waits for itself", m.PID(), killLimit)
	}
}

// killLimit is how long a killed process may take to be gone on a busy machine.
const killLimit = 20 * time.Second

// abortConnections breaks the FUSE connections below dir, so that nothing
// waits for their daemons any more.
func abortConnections(dir string) {
	for _, m := range Mounts() {
		if _, minor, ok := strings.Cut(m.Device, ":"); ok && strings.HasPrefix(m.Type, "fuse") && strings.HasPrefix(m.Point, dir) {
			_ = os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
		}
	}
}

// Wait waits until the daemon has ended and returns how.
func (m *Mount) Wait(limit time.Duration) error {
	m.t.Helper()
	select {
	case <-m.done:
		return m.err
	case <-time.After(limit):
		m.t.Fatalf("the daemon (pid %d) still runs after %v\n%s", m.PID(), limit, m.Log())
		return nil
	}
}

// Stop unmounts by `nexusfs umount` and waits for the daemon's end, which must
// be an orderly one.
func (m *Mount) Stop() error {
	m.t.Helper()
	res := Try(Cmd{Args: []string{m.bin, "umount", m.Dir}, Env: m.env, Limit: StopLimit})
	if res.Err != nil {
		return fmt.Errorf("nexusfs umount %s: %w\n%s%s", m.Dir, res.Err, res.Stdout, res.Stderr)
	}
	if err := m.Wait(StopLimit); err != nil {
		return fmt.Errorf("the daemon ended with %w\n%s", err, m.Log())
	}
	if e, ok := MountAt(m.Dir); ok {
		return fmt.Errorf("still mounted after umount: %+v", e)
	}
	return nil
}

// Remount stops the daemon in order and starts it again.
func (m *Mount) Remount() {
	m.t.Helper()
	if err := m.Stop(); err != nil {
		m.t.Fatal(err)
	}
	m.Restart()
}

// Restart starts the daemon again after it has ended, with these flags instead
// of the first ones when any are given.
func (m *Mount) Restart(args ...string) {
	m.t.Helper()
	if len(args) > 0 {
		m.opts.Args = args
	}
	if err := m.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// AddEnv adds to the environment of the daemon and of every command.
func (m *Mount) AddEnv(env ...string) { m.env = append(m.env, env...) }

// SetEnv replaces what is added to the daemon's environment at the next start.
func (m *Mount) SetEnv(env ...string) { m.opts.Env = env }

// CLI runs `nexusfs ARGS...`; it must succeed.
func (m *Mount) CLI(args ...string) string {
	m.t.Helper()
	return RunCmd(m.t, Cmd{Args: append([]string{m.bin}, args...), Env: m.env, Limit: StopLimit})
}

// TryCLI runs `nexusfs ARGS...`.
func (m *Mount) TryCLI(args ...string) Result {
	return Try(Cmd{Args: append([]string{m.bin}, args...), Env: m.env, Limit: StopLimit})
}

// Status returns `nexusfs status --json` of the mountpoint.
func (m *Mount) Status() map[string]any {
	m.t.Helper()
	var out map[string]any
	text := m.CLI("status", "--json", m.Dir)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		m.t.Fatalf("status --json: %v\n%s", err, text)
	}
	return out
}

// Fsck checks the store, which need not be mounted; it must be clean.
func (m *Mount) Fsck() {
	m.t.Helper()
	if res := m.TryCLI("fsck", m.Store); res.Err != nil {
		m.t.Errorf("nexusfs fsck: %v\n%s%s", res.Err, tail(res.Stdout, 6000), tail(res.Stderr, 2000))
	}
}

func (m *Mount) cleanup() {
	if m.Alive() {
		if err := m.Stop(); err != nil {
			m.t.Errorf("unmount: %v", err)
			_ = m.cmd.Process.Kill()
			abortConnections(m.Dir)
			<-m.done
		}
	}
	for {
		if _, ok := MountAt(m.Dir); !ok {
			break
		}
		if syscall.Unmount(m.Dir, syscall.MNT_DETACH) != nil {
			break
		}
	}
	if _, err := os.Stat(m.Content); err == nil && !m.opts.NoFsck {
		m.Fsck()
	}
	if m.t.Failed() {
		m.t.Logf("daemon's log:\n%s", m.Log())
	}
}
