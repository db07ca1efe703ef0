package fusefs

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

func TestAttestNamesTheProcess(t *testing.T) {
	a := newAttester()
	defer a.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan meta.Actor)
	go func() { // on another thread: this one is locked
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- a.Resolve(meta.Caller{UID: 1, GID: 2, PID: uint32(unix.Gettid())})
	}()
	got := <-done
	if got.PID != uint32(os.Getpid()) || got.Exe != exe || got.StartTime == 0 || got.UID != 1 || got.GID != 2 {
		t.Errorf("got %+v, want process %d running %s", got, os.Getpid(), exe)
	}
	self := a.Resolve(meta.Caller{PID: uint32(os.Getpid())})
	if self.StartTime != got.StartTime || self.Cgroup != got.Cgroup {
		t.Errorf("thread %+v, process %+v", got, self)
	}
}

// TestAttestSeesExecAndEnd: what is remembered of a process must not outlive it.
func TestAttestSeesExecAndEnd(t *testing.T) {
	a := newAttester()
	defer a.close()
	cmd := exec.Command("sh", "-c", "echo ready; read line; exec cat")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	pid := uint32(cmd.Process.Pid)
	first := a.Resolve(meta.Caller{PID: pid})
	if want := realPath(t, "sh"); first.Exe != want || first.PID != pid {
		t.Errorf("got %+v, want %s", first, want)
	}
	if again := a.Resolve(meta.Caller{PID: pid}); again != first {
		t.Errorf("remembered %+v, want %+v", again, first)
	}
	in.Write([]byte("go\nafter\n"))
	if line, err := lines.ReadString('\n'); line != "after\n" { // cat has it: the exec is through
		t.Fatal(line, err)
	}
	second := a.Resolve(meta.Caller{PID: pid})
	if want := realPath(t, "cat"); second.Exe != want || second.StartTime != first.StartTime {
		t.Errorf("after exec got %+v, want %s", second, want)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	gone := a.Resolve(meta.Caller{UID: 7, PID: pid})
	if gone.Exe != ExeGone || gone.PID != pid || gone.UID != 7 {
		t.Errorf("after the end got %+v", gone)
	}
}

// execHolding replaces this program by another while a file that was written
// to is open and marked close-on-exec.
func execHolding(path string) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte("written before the exec"))
	}
	if err == nil {
		err = unix.Exec("/bin/true", []string{"true"}, nil)
	}
	os.Stderr.WriteString(err.Error())
	os.Exit(1)
}

// TestExecThatClosesOurFile: execve(2) waits for the close of a file here, and
// reading about the process may wait for execve.
func TestExecThatClosesOurFile(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "")
	m.mu.Lock()
	delete(m.actors, "flush")
	m.mu.Unlock()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FUSEFS_TEST_EXEC="+m.dir+"/f")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if got := m.read(t, "f"); got != "written before the exec" {
		t.Errorf("got %q", got)
	}
	m.mu.Lock()
	who := m.actors["flush"]
	m.mu.Unlock()
	if who.PID != uint32(cmd.Process.Pid) || who.Exe == "" {
		t.Errorf("closed by %+v, want process %d", who, cmd.Process.Pid)
	}
}

func realPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAttestOutsideOfThePidNamespace(t *testing.T) {
	a := newAttester()
	if got := a.Resolve(meta.Caller{UID: 5}); got.Exe != ExeOutside || got.UID != 5 || got.PID != 0 {
		t.Errorf("got %+v", got)
	}
}

// TestAttestIsBounded: however many threads ask, few descriptors are held.
func TestAttestIsBounded(t *testing.T) {
	const threads = maxAttested + 50
	tids, stop := make(chan int, threads), make(chan struct{})
	var wg sync.WaitGroup
	for range threads {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			tids <- unix.Gettid()
			<-stop
		})
	}
	defer wg.Wait()
	defer close(stop)
	a := newAttester()
	before := countFDs(t)
	for range threads {
		tid := uint32(<-tids)
		if who := a.Resolve(meta.Caller{PID: tid}); who.PID != uint32(os.Getpid()) && who.Exe != ExeBusy {
			t.Errorf("%d: %+v", tid, who)
		}
	}
	for a.looking.Load() > 0 { // those that took too long
		runtime.Gosched()
	}
	if held := countFDs(t) - before; held > maxAttested+8 {
		t.Errorf("%d descriptors are held", held)
	}
	a.close()
	if left := countFDs(t) - before; left > 2 {
		t.Errorf("%d descriptors are left after close", left)
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestStartTimeOfAnOddName(t *testing.T) {
	stat := "12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 0 0"
	if got := startField([]byte(stat)); got != 987654 {
		t.Errorf("got %d", got)
	}
	for _, bad := range []string{"", "12", "12 (a)", "12 (a) S 1 2"} {
		if got := startField([]byte(bad)); got != 0 {
			t.Errorf("%q: got %d", bad, got)
		}
	}
}

func TestCgroupOf(t *testing.T) {
	for want, text := range map[string]string{
		"/user.slice/a:b": "0::/user.slice/a:b\n",
		"/job":            strings.Join([]string{"9:name=systemd:/", "4:memory:/job", "0::/", ""}, "\n"),
		"/":               "1:cpu:/\n0::/\n",
		"":                "",
	} {
		if got := cgroupOf(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func BenchmarkAttestKnown(b *testing.B) {
	a := newAttester()
	defer a.close()
	c := meta.Caller{PID: uint32(os.Getpid())}
	b.ReportAllocs()
	for b.Loop() {
		a.Resolve(c)
	}
}

func BenchmarkAttestNew(b *testing.B) {
	c := meta.Caller{PID: uint32(os.Getpid())}
	for b.Loop() {
		a := newAttester()
		a.Resolve(c)
		a.close()
	}
}
