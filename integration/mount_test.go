package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestBackgroundServesWhenItReturns: the daemon is left behind detached, keeps
// nothing of its parent and serves from the first moment.
func TestBackgroundServesWhenItReturns(t *testing.T) {
	harness.NeedMount(t)
	base := harness.Scratch(t)
	store, dir := filepath.Join(base, "store"), mkdir(t, filepath.Join(base, "mnt"))
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := exec.Command(harness.Binary(t), "mount", store, dir, "--background")
	cmd.Dir = base
	cmd.ExtraFiles = []*os.File{w, w}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "at-once"), []byte("x"))
	if !strings.Contains(string(out), dir) {
		t.Errorf("mount does not say where it serves:\n%s", out)
	}
	must(t, w.Close())
	must(t, r.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("the daemon keeps an inherited descriptor: %v", err)
	}
	bin := harness.Binary(t)
	pid := int(decode(t, harness.Run(t, "/", bin, "status", "--json", dir))["pid"].(float64))
	if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); cwd != "/" {
		t.Errorf("the daemon works in %q", cwd)
	}
	if sid, _ := unix.Getsid(pid); sid == mySession(t) {
		t.Errorf("the daemon is in its caller's session")
	}
	harness.Run(t, base, bin, "umount", dir)
	if unix.Kill(pid, 0) == nil && !zombie(pid) {
		t.Errorf("the daemon lives on after umount")
	}
	if _, ok := harness.MountAt(dir); ok {
		t.Errorf("still mounted after umount")
	}
	harness.Run(t, base, bin, "fsck", store)
}

func mySession(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	must(t, err)
	return sid
}

// zombie reports a process that only waits for its parent to notice its end.
func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(text), ") Z ")
}

func TestStatus(t *testing.T) {
	m := harness.New(t, harness.Options{})
	write(t, filepath.Join(m.Dir, "f"), []byte("x"))
	byMount := m.Status()
	byStore := decode(t, m.CLI("status", "--json", m.Store))
	for _, key := range []string{"pid", "store", "zone", "revision", "durability"} {
		if byMount[key] == nil || fmt.Sprint(byMount[key]) != fmt.Sprint(byStore[key]) {
			t.Errorf("status %q: by mountpoint %v, by store %v", key, byMount[key], byStore[key])
		}
	}
	if pid := int(byMount["pid"].(float64)); pid != m.PID() {
		t.Errorf("pid: got %d, want %d", pid, m.PID())
	}
	durability := "relaxed"
	if harness.OnDatabase() {
		durability = "strict"
	}
	if byMount["zone"] != "default" || byMount["durability"] != durability {
		t.Errorf("zone %v, durability %v", byMount["zone"], byMount["durability"])
	}
	first := byMount["revision"].(float64)
	mkdir(t, filepath.Join(m.Dir, "d"))
	if now := m.Status()["revision"].(float64); now != first+1 {
		t.Errorf("revision after one mkdir: %v, was %v", now, first)
	}
	if text := m.CLI("status", m.Dir); !strings.Contains(text, strconv.Itoa(m.PID())) {
		t.Errorf("status for people lacks the pid:\n%s", text)
	}
}

// TestSecondDaemonRefused: the sentence names the first.
func TestSecondDaemonRefused(t *testing.T) {
	harness.EmbeddedOnly(t, "several daemons share a database")
	m := harness.New(t, harness.Options{})
	write(t, filepath.Join(m.Dir, "f"), []byte("x"))
	other := mkdir(t, filepath.Join(filepath.Dir(m.Dir), "other"))
	res := m.TryCLI("mount", m.Store, other, "--background")
	if res.Code != 3 || !strings.Contains(res.Stderr, strconv.Itoa(m.PID())) || !strings.Contains(res.Stderr, m.Dir) {
		t.Errorf("a second daemon: exit code %d, %q; want 3 and a sentence with pid %d and %s", res.Code, res.Stderr, m.PID(), m.Dir)
	}
	if _, ok := harness.MountAt(other); ok {
		t.Errorf("the second daemon mounted")
	}
	wantContent(t, filepath.Join(m.Dir, "f"), []byte("x"))
}

// TestStaleMountIsCleaned: what a killed daemon left, "Transport endpoint is
// not connected", is removed by the next mount, of this or another store.
func TestStaleMountIsCleaned(t *testing.T) {
	m := harness.New(t, harness.Options{})
	write(t, filepath.Join(m.Dir, "f"), []byte("before"))
	m.Kill9()
	_, err := os.Stat(m.Dir)
	wantErrno(t, "stat of a dead mountpoint", err, unix.ENOTCONN)
	m.Restart()
	wantContent(t, filepath.Join(m.Dir, "f"), []byte("before"))
	m.Kill9()
	base := filepath.Dir(m.Dir)
	m.CLI("mount", filepath.Join(base, "store2"), m.Dir, "--background")
	wantNames(t, m.Dir)
	m.CLI("umount", m.Dir)
	if left := harness.MountsUnder(base); len(left) != 0 {
		t.Errorf("mounts are left: %q", left)
	}
	m.Restart()
	m.Kill9()
	m.CLI("umount", m.Dir) // of a dead one
	if left := harness.MountsUnder(base); len(left) != 0 {
		t.Errorf("mounts are left after umount of a dead daemon's: %q", left)
	}
	m.Restart()
	wantContent(t, filepath.Join(m.Dir, "f"), []byte("before"))
}

// TestEndFinishesOpenWork: each way to end a daemon commits what open handles
// have written, ends with code 0 and leaves no mount.
func TestEndFinishesOpenWork(t *testing.T) {
	m := harness.New(t, harness.Options{})
	data := pattern(1, 3<<20)
	for name, end := range map[string]func(){
		"SIGTERM": func() { must(t, unix.Kill(m.PID(), unix.SIGTERM)) },
		"SIGINT":  func() { must(t, unix.Kill(m.PID(), unix.SIGINT)) },
		"umount --lazy": func() {
			m.CLI("umount", "--lazy", m.Dir)
		},
	} {
		p := filepath.Join(m.Dir, name)
		f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644)
		must(t, err)
		_, err = f.Write(data)
		must(t, err)
		end()
		if err := m.Wait(harness.StopLimit); err != nil {
			t.Errorf("%s: the daemon ended with %v", name, err)
		}
		_ = f.Close()
		if _, ok := harness.MountAt(m.Dir); ok {
			t.Fatalf("%s: still mounted", name)
		}
		m.Restart()
		wantContent(t, p, data)
	}
}

// TestBusyUmount: umount of a mount in use is refused and says by whom.
func TestBusyUmount(t *testing.T) {
	m := harness.New(t, harness.Options{})
	cmd := exec.Command("sleep", "600")
	cmd.Dir = m.Dir
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	res := m.TryCLI("umount", m.Dir)
	if res.Code != 4 || !strings.Contains(res.Stderr, strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("umount of a busy mount: code %d, %q", res.Code, res.Stderr)
	}
	write(t, filepath.Join(m.Dir, "f"), []byte("still served"))
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
}

// TestUmount8: plain umount(8) and fusermount3 -u end the daemon in order too.
func TestUmount8(t *testing.T) {
	harness.NeedRoot(t)
	m := harness.New(t, harness.Options{})
	for i, args := range [][]string{{"umount", m.Dir}, {"fusermount3", "-u", m.Dir}} {
		p := filepath.Join(m.Dir, fmt.Sprint(i))
		write(t, p, []byte("x"))
		harness.Run(t, "/", args...)
		if err := m.Wait(harness.StopLimit); err != nil {
			t.Errorf("%v: the daemon ended with %v", args, err)
		}
		m.Restart()
		wantContent(t, p, []byte("x"))
	}
}

func TestReadOnlyMount(t *testing.T) {
	m := harness.New(t, harness.Options{})
	p := func(s string) string { return filepath.Join(m.Dir, s) }
	write(t, p("f"), []byte("content"))
	mkdir(t, p("d"))
	must(t, os.Symlink("f", p("l")))
	must(t, unix.Setxattr(p("f"), "user.a", []byte("1"), 0))
	must(t, m.Stop())
	m.Restart("-o", "ro")
	before := m.Status()["revision"]
	wantContent(t, p("l"), []byte("content"))
	wantNames(t, m.Dir, "f", "d", "l")
	for what, err := range map[string]error{
		"create":      os.WriteFile(p("new"), nil, 0o644),
		"write":       appendTo(p("f"), "x"),
		"mkdir":       os.Mkdir(p("new"), 0o755),
		"rmdir":       unix.Rmdir(p("d")),
		"unlink":      unix.Unlink(p("f")),
		"rename":      os.Rename(p("f"), p("g")),
		"link":        os.Link(p("f"), p("g")),
		"symlink":     os.Symlink("x", p("g")),
		"chmod":       unix.Chmod(p("f"), 0o600),
		"chown":       os.Chown(p("f"), 1, 1),
		"truncate":    os.Truncate(p("f"), 0),
		"utimes":      unix.UtimesNanoAt(unix.AT_FDCWD, p("f"), nil, 0),
		"setxattr":    unix.Setxattr(p("f"), "user.b", nil, 0),
		"removexattr": unix.Removexattr(p("f"), "user.a"),
		"mkfifo":      unix.Mkfifo(p("p"), 0o600),
	} {
		wantErrno(t, what, err, unix.EROFS)
	}
	if e, _ := harness.MountAt(m.Dir); !strings.HasPrefix(e.Options, "ro") {
		t.Errorf("the mount table says %q", e.Options)
	}
	if after := m.Status()["revision"]; fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("a read-only mount moved the revision from %v to %v", before, after)
	}
	must(t, m.Stop())
	m.Restart("-o", "rw")
	must(t, os.Remove(p("f")))
}

// TestWrongCommands: a sentence on standard error, the right exit code, and
// nothing changed on the disk.
func TestWrongCommands(t *testing.T) {
	harness.NeedMount(t)
	bin := harness.Binary(t)
	base := harness.Scratch(t)
	p := func(s string) string { return filepath.Join(base, s) }
	mkdir(t, p("mnt"))
	mkdir(t, p("other"))
	write(t, p("other/somebody's file"), []byte("x"))
	write(t, p("file"), []byte("x"))
	mkdir(t, p("foreign"))
	write(t, p("foreign/format"), []byte(`{"product":"otherfs","version":3}`))
	mkdir(t, p("newer"))
	write(t, p("newer/format"), []byte(`{"product":"nexusfs","version":99,"state":"ready"}`))
	mkdir(t, p("half"))
	write(t, p("half/format"), []byte(`{"product":"nexusfs","version":1,"state":"ready"}`))
	before := tree(t, base)
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no arguments", nil, 2, ""},
		{"unknown command", []string{"mout", p("s"), p("mnt")}, 2, "mout"},
		{"one argument", []string{"mount", p("s")}, 2, ""},
		{"unknown flag", []string{"mount", p("s"), p("mnt"), "--nope"}, 2, "nope"},
		{"unknown option", []string{"mount", p("s"), p("mnt"), "-o", "nope"}, 2, "nope"},
		{"wrong durability", []string{"mount", p("s"), p("mnt"), "-o", "durability=some"}, 2, "some"},
		{"missing mountpoint", []string{"mount", p("s"), p("missing")}, 4, "missing"},
		{"mountpoint is a file", []string{"mount", p("s"), p("file")}, 4, "file"},
		{"store is a file", []string{"mount", p("file"), p("mnt")}, 3, "file"},
		{"not a store", []string{"mount", p("other"), p("mnt")}, 3, "somebody"},
		{"another product", []string{"mount", p("foreign"), p("mnt")}, 3, "another product"},
		{"a newer format", []string{"mount", p("newer"), p("mnt")}, 3, "99"},
		{"half a store", []string{"mount", p("half"), p("mnt")}, 3, "half"},
		{"mountpoint holds the store", []string{"mount", p("other/s"), p("other")}, 4, ""},
		{"status of nothing", []string{"status", p("mnt")}, 3, ""},
		{"umount of nothing", []string{"umount", p("mnt")}, -1, ""},
		{"fsck of nothing", []string{"fsck", p("missing")}, 3, "missing"},
		{"log of nothing", []string{"log", p("file")}, -1, ""},
	} {
		for _, flag := range []string{"", "--background"} {
			args := c.args
			if flag != "" {
				if len(args) < 3 || args[0] != "mount" {
					continue
				}
				args = append(args[:len(args):len(args)], flag)
			}
			res := harness.Try(harness.Cmd{Dir: base, Args: append([]string{bin}, args...), Limit: 20 * time.Second})
			if c.code >= 0 && res.Code != c.code || res.Code == 0 || !strings.Contains(res.Stderr, c.says) {
				t.Errorf("%s %s: exit code %d, want %d; stderr %q, want it to contain %q", c.name, flag, res.Code, c.code, res.Stderr, c.says)
			}
			if (res.Stderr == "" && c.name != "no arguments") || strings.Contains(res.Stderr, "goroutine ") {
				t.Errorf("%s %s: stderr is %q", c.name, flag, res.Stderr)
			}
			wantSameTree(t, tree(t, base), before)
		}
	}
}

// TestMountpointInUse: a mountpoint of another mount, and one with files.
func TestMountpointInUse(t *testing.T) {
	m := harness.New(t, harness.Options{})
	base := filepath.Dir(m.Dir)
	res := m.TryCLI("mount", filepath.Join(base, "store2"), m.Dir, "--background")
	if res.Code != 4 || exists(filepath.Join(base, "store2")) {
		t.Errorf("mount over a nexusfs mount: code %d, %q, store made: %v", res.Code, res.Stderr, exists(filepath.Join(base, "store2")))
	}
}

func TestVersionHelpCompletion(t *testing.T) {
	harness.NeedMount(t)
	bin := harness.Binary(t)
	if got := harness.Run(t, "/", bin, "version"); !strings.Contains(got, "nexusfs") {
		t.Errorf("version: %q", got)
	}
	decode(t, harness.Run(t, "/", bin, "version", "--json"))
	help := harness.Run(t, "/", bin, "--help")
	for _, verb := range []string{"mount", "umount", "status", "fsck", "log", "versions", "cat", "restore", "deleted", "sql", "sync", "purge", "gc", "stats", "store", "version", "completion"} {
		if !strings.Contains(help, "\n  "+verb+" ") {
			t.Errorf("--help does not list %s", verb)
			continue
		}
		if one := harness.Run(t, "/", bin, verb, "--help"); !strings.Contains(one, "Examples:") && verb != "completion" {
			t.Errorf("%s --help has no examples", verb)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := harness.Run(t, "/", bin, "completion", shell); !strings.Contains(got, "nexusfs") {
			t.Errorf("completion %s: %d bytes", shell, len(got))
		}
	}
	if got := harness.Run(t, "/", bin, "help", "exit-codes"); !strings.Contains(got, "130") {
		t.Errorf("help exit-codes: %q", got)
	}
}

// TestMountHelper goes through mount(8), named stores and fstab, in a mount
// namespace of its own with /usr/sbin and /etc as scratch overlays.
func TestMountHelper(t *testing.T) {
	harness.NeedRoot(t)
	harness.NeedMount(t)
	harness.Need(t, "unshare", "mount")
	base := harness.Scratch(t)
	bin := harness.Binary(t)
	script := fmt.Sprintf(`
		mount -t tmpfs none ov; cd ov
		for d in usr/sbin etc; do
			mkdir -p $d.up $d.work
			mount -t overlay overlay -o lowerdir=/$d,upperdir=$d.up,workdir=$d.work /$d
		done
		cd ..
		for n in mount.nexusfs mount.fuse.nexusfs umount.nexusfs; do ln -sf %s /usr/sbin/$n; done
		%[1]s store add work %[2]s/store
		shows() { grep -F " %[2]s/mnt " /proc/self/mountinfo | grep -F -- " - fuse.nexusfs $1 " || { cat /proc/self/mountinfo; exit 3; }; }

		mount -t nexusfs work mnt
		echo one > mnt/f; shows work
		umount mnt
		mount -t fuse.nexusfs work mnt -o allow_other,default_permissions
		test "$(cat mnt/f)" = one; shows work
		setpriv --reuid 1000 --regid 1000 --clear-groups cat mnt/f
		umount mnt
		mount -t nexusfs %[2]s/store mnt -o ro
		test "$(cat mnt/f)" = one; shows %[2]s/store
		if touch mnt/g 2>/dev/null; then echo "wrote to a read-only mount" >&2; exit 4; fi
		umount mnt
		echo "work %[2]s/mnt nexusfs allow_other,nofail 0 0" > /etc/fstab
		mount mnt; test "$(cat mnt/f)" = one; umount mnt
		echo "work %[2]s/mnt fuse.nexusfs allow_other,nofail,ro 0 0" > /etc/fstab
		mount -a; test "$(cat mnt/f)" = one; umount mnt
		if mount -t nexusfs nosuchname mnt 2>err; then exit 5; else test $? = 32; fi
		grep nosuchname err`, bin, base)
	mkdir(t, filepath.Join(base, "mnt"))
	mkdir(t, filepath.Join(base, "ov"))
	harness.RunCmd(t, harness.Cmd{Dir: base, Env: []string{"HOME=" + base, "XDG_CONFIG_HOME=" + base},
		Args: []string{"unshare", "-m", "--propagation", "private", "sh", "-exc", script}})
	harness.Run(t, base, bin, "fsck", filepath.Join(base, "store"))
}

// TestOrdinaryUser mounts through fusermount3 as uid 1000.
func TestOrdinaryUser(t *testing.T) {
	harness.NeedRoot(t)
	harness.Need(t, "fusermount3")
	harness.NeedMount(t)
	fuseForAll(t)
	m := harness.New(t, harness.Options{UID: 1000, GID: 1000})
	run := func(script string) harness.Result {
		return harness.Try(harness.Cmd{UID: 1000, GID: 1000, Dir: filepath.Dir(m.Dir), Args: []string{"sh", "-ec", script},
			Env: []string{"HOME=" + filepath.Dir(m.Dir), "XDG_CONFIG_HOME=" + filepath.Dir(m.Dir)}})
	}
	if res := run("cd mnt; echo x > f; mkdir d; mv f d; chmod 600 d/f; ln -s d/f l; cat l; rm -r d; stat -c %u:%g ."); res.Err != nil || res.Stdout != "x\n1000:1000\n" {
		t.Errorf("work by the user: %v %q %q", res.Err, res.Stdout, res.Stderr)
	}
	_, err := os.Stat(filepath.Join(m.Dir, "l"))
	wantErrno(t, "root in a user's mount without allow_other", err, unix.EACCES)
	if res := run("ls mnt; " + harness.Binary(t) + " status --json mnt"); res.Err != nil {
		t.Errorf("status by the user: %v %s", res.Err, res.Stderr)
	}
	if res := run(harness.Binary(t) + " umount mnt"); res.Err != nil {
		t.Errorf("umount by the user: %v %s", res.Err, res.Stderr)
	}
	if err := m.Wait(harness.StopLimit); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

// fuseForAll lays a /dev/fuse that everybody may open, as udev makes it, over
// one that only root may, while the test runs.
func fuseForAll(t *testing.T) {
	t.Helper()
	if stat(t, "/dev/fuse").Mode&0o006 == 0o006 {
		return
	}
	node := filepath.Join(harness.Scratch(t), "fuse")
	must(t, unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
	must(t, unix.Chmod(node, 0o666))
	must(t, unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount("/dev/fuse", unix.MNT_DETACH)) })
}

// TestNothingInsideIsListed: what nexusfs shows in the mount opens by name and
// is never listed.
func TestNothingInsideIsListed(t *testing.T) {
	m := harness.New(t, harness.Options{})
	write(t, filepath.Join(m.Dir, "f"), []byte("one"))
	write(t, filepath.Join(m.Dir, "f"), []byte("two"))
	wantNames(t, m.Dir, "f")
	if st := stat(t, filepath.Join(m.Dir, ".nexusfs")); st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf(".nexusfs has mode %o", st.Mode)
	}
	if got := listXattrs(t, filepath.Join(m.Dir, "f")); len(got) != 0 {
		t.Errorf("attributes are listed: %q", got)
	}
	if st := stat(t, m.Dir); st.Nlink != 2 {
		t.Errorf("the root has %d links", st.Nlink)
	}
	harness.Shell(t, m.Dir, "rm -rf ./* && rmdir . 2>/dev/null || true; ls -A | wc -l | grep -qx 0")
}

// TestP24Sync: nexusfs sync is a barrier also for what open handles hold.
func TestP24Sync(t *testing.T) {
	m := harness.New(t, harness.Options{})
	f := open(t, filepath.Join(m.Dir, "f"), os.O_CREATE|os.O_RDWR)
	data := pattern(1, 1<<20)
	_, err := f.Write(data)
	must(t, err)
	m.CLI("sync", m.Dir)
	m.Kill9()
	m.Restart()
	wantContent(t, filepath.Join(m.Dir, "f"), data)
}

// TestDescriptorsDoNotLeak: a daemon that served many files holds no more
// descriptors than before.
func TestDescriptorsDoNotLeak(t *testing.T) {
	m := harness.New(t, harness.Options{})
	count := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.PID()))
		must(t, err)
		return len(list)
	}
	work := func(n int) {
		d := mkdir(t, filepath.Join(m.Dir, "d"))
		for i := range n {
			p := filepath.Join(d, fmt.Sprint(i))
			write(t, p, pattern(uint64(i), 40000))
			wantContent(t, p, pattern(uint64(i), 40000))
		}
		must(t, os.RemoveAll(d))
	}
	work(50)
	before := count()
	work(600)
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("the daemon's descriptors go back to about %d", before), func() bool { return count() <= before+40 })
	harness.Eventually(t, 20*time.Second, "no handle stays open", func() bool {
		return openHandles(m.Status()) <= 0
	})
}

// openHandles finds the figure in the status, -1 when it is not there.
func openHandles(status map[string]any) float64 {
	for key, v := range status {
		switch v := v.(type) {
		case map[string]any:
			if n := openHandles(v); n >= 0 {
				return n
			}
		case float64:
			if strings.Contains(key, "handles") {
				return v
			}
		}
	}
	return -1
}
