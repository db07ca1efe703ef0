package fusefs

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asNobody runs a shell command as an ordinary user.
func (m *mounted) asNobody(t *testing.T, script string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	for dir := m.dir + "/.."; dir != "/"; dir += "/.." {
		st, err := os.Stat(dir)
		if err != nil || st.Mode()&0o001 != 0 {
			break
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Not cmd.Dir: between fork and exec the child would wait for a mount whose
	// server, this process, may wait for the end of the fork.
	cmd := exec.Command("sh", "-c", "cd '"+m.dir+"' && { "+script+"\n}")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestSetUserIDEndsWithTheContent: whoever changes a file without the right to
// keep its set-user-id bit takes it away, and the kernel knows.
func TestSetUserIDEndsWithTheContent(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"write", "echo more >> f"},
		{"truncate", "truncate -s 3 f"},
		{"fallocate", "fallocate -l 100 f"},
		{"write by another program", "cat g > f"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := mountMem(t, false)
			m.write(t, "f", "content")
			m.write(t, "g", "other")
			if err := unix.Chmod(m.dir+"/f", 0o6777); err != nil {
				t.Fatal(err)
			}
			if got := m.asNobody(t, "stat -c %a f; "+c.script+"; stat -c %a f"); got != "6777\n777" {
				t.Errorf("got %q", got)
			}
		})
	}
	m := mountMem(t, false)
	m.write(t, "f", "content")
	if err := unix.Chmod(m.dir+"/f", 0o6777); err != nil {
		t.Fatal(err)
	}
	m.write(t, "f", "by root")
	if got := m.stat(t, "f").Mode & 0o7777; got != 0o6777 {
		t.Errorf("root's write left %o", got)
	}
}

// TestPermissionsAreChecked: default_permissions is always on.
func TestPermissionsAreChecked(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "secret")
	if err := unix.Chmod(m.dir+"/f", 0o600); err != nil {
		t.Fatal(err)
	}
	if got := m.asNobody(t, "cat f 2>&1 || true"); !strings.Contains(got, "Permission denied") {
		t.Errorf("got %q", got)
	}
	if got := m.asNobody(t, "touch x 2>&1 || true"); !strings.Contains(got, "Permission denied") {
		t.Errorf("got %q", got)
	}
}

func TestModeAndUmaskComeApart(t *testing.T) {
	m := mountMem(t, false)
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	for name, make := range map[string]func(string) error{
		"mkdir": func(p string) error { return unix.Mkdir(p, 0o777) },
		"mknod": func(p string) error { return unix.Mknod(p, unix.S_IFIFO|0o777, 0) },
		"creat": func(p string) error {
			fd, err := unix.Open(p, unix.O_CREAT|unix.O_WRONLY, 0o777)
			unix.Close(fd)
			return err
		},
	} {
		if err := make(m.dir + "/" + name); err != nil {
			t.Fatal(err)
		}
		if got := m.stat(t, name).Mode & 0o7777; got != 0o750 {
			t.Errorf("%s: mode %o, want 750", name, got)
		}
	}
}
