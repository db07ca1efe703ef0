package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func getXattr(path, name string) ([]byte, error) {
	n, err := unix.Lgetxattr(path, name, nil)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = unix.Lgetxattr(path, name, buf)
	return buf[:max(n, 0)], err
}

func listXattrs(t testing.TB, path string) []string {
	t.Helper()
	n, err := unix.Llistxattr(path, nil)
	must(t, err)
	buf := make([]byte, n)
	if n > 0 {
		n, err = unix.Llistxattr(path, buf)
		must(t, err)
	}
	var out []string
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) > 0 {
			out = append(out, string(name))
		}
	}
	slices.Sort(out)
	return out
}

func TestXattrs(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, []byte("x"))
		if got := listXattrs(t, p); len(got) != 0 {
			t.Errorf("a new file lists attributes: %q", got)
		}
		_, err := getXattr(p, "user.none")
		wantErrno(t, "get of a missing attribute", err, unix.ENODATA)
		wantErrno(t, "replace of a missing one", unix.Setxattr(p, "user.a", []byte("1"), unix.XATTR_REPLACE), unix.ENODATA)
		before := stat(t, p)
		tick()
		must(t, unix.Setxattr(p, "user.a", []byte("1\x00\xff"), unix.XATTR_CREATE))
		if st := stat(t, p); ns(st.Ctim) <= ns(before.Ctim) || ns(st.Mtim) != ns(before.Mtim) {
			t.Errorf("setxattr: ctime %v -> %v, mtime %v -> %v", before.Ctim, st.Ctim, before.Mtim, st.Mtim)
		}
		wantErrno(t, "create of an existing one", unix.Setxattr(p, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST)
		must(t, unix.Setxattr(p, "user.b", nil, 0))
		must(t, unix.Setxattr(p, "user.a", []byte("2"), unix.XATTR_REPLACE))
		if got := listXattrs(t, p); !slices.Equal(got, []string{"user.a", "user.b"}) {
			t.Errorf("list: %q", got)
		}
		for name, want := range map[string]string{"user.a": "2", "user.b": ""} {
			if got, err := getXattr(p, name); err != nil || string(got) != want {
				t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
			}
		}
		_, err = unix.Getxattr(p, "user.a", make([]byte, 0, 1)[:0:0])
		must(t, err)
		must(t, unix.Setxattr(p, "user.long", bytes.Repeat([]byte("v"), 1000), 0))
		_, err = unix.Getxattr(p, "user.long", make([]byte, 10))
		wantErrno(t, "a buffer too small", err, unix.ERANGE)
		_, err = unix.Listxattr(p, make([]byte, 5))
		wantErrno(t, "a list buffer too small", err, unix.ERANGE)
		wantErrno(t, "a name of 256 bytes", unix.Setxattr(p, "user."+strings.Repeat("n", 251), nil, 0), unix.ERANGE)
		wantErrno(t, "no namespace", unix.Setxattr(p, "plain", nil, 0), unix.EOPNOTSUPP)
		must(t, unix.Removexattr(p, "user.a"))
		wantErrno(t, "remove twice", unix.Removexattr(p, "user.a"), unix.ENODATA)
		must(t, os.Symlink("f", p+"l"))
		wantErrno(t, "user attribute on a symlink", unix.Lsetxattr(p+"l", "user.x", []byte("1"), 0), unix.EPERM)
	})
}

func TestXattrNamespaces(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		p := filepath.Join(dir, "f")
		write(t, p, nil)
		must(t, os.Chown(p, 1000, 1000))
		must(t, unix.Setxattr(p, "trusted.t", []byte("t"), 0))
		must(t, unix.Setxattr(p, "security.s", []byte("s"), 0))
		must(t, unix.Setxattr(p, "user.u", []byte("u"), 0))
		if got := listXattrs(t, p); !slices.Equal(got, []string{"security.s", "trusted.t", "user.u"}) {
			t.Errorf("list as root: %q", got)
		}
		asUser(t, 1001, 1001, nil, func() {
			wantErrno(t, "user attribute of another's file", unix.Setxattr(p, "user.u", []byte("x"), 0), unix.EACCES)
		})
		asUser(t, 1000, 1000, nil, func() {
			must(t, unix.Setxattr(p, "user.u", []byte("mine"), 0))
		})
		// An ordinary user without privileges, in a process of its own.
		res := harness.Try(harness.Cmd{UID: 1000, GID: 1000, Args: []string{"setfattr", "-n", "trusted.t", "-v", "x", p}})
		if res.Err == nil {
			t.Errorf("an ordinary user may set a trusted attribute")
		}
		got := harness.RunCmd(t, harness.Cmd{UID: 1000, GID: 1000, Args: []string{"getfattr", "-d", "-m", "-", "--absolute-names", p}})
		if strings.Contains(got, "trusted.") || !strings.Contains(got, `user.u="mine"`) {
			t.Errorf("getfattr by the owner:\n%s", got)
		}
	})
}

func TestXattrLarge(t *testing.T) {
	harness.Mounted(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, nil)
		big := pattern(1, 65536)
		if err := unix.Setxattr(p, "user.big", big, 0); err != nil && harness.Plain() {
			t.Skipf("the plain directory holds no attribute of 64 KiB: %v", err)
		} else {
			must(t, err)
		}
		got, err := getXattr(p, "user.big")
		must(t, err)
		wantBytes(t, "a value of 64 KiB", got, big)
		wantErrno(t, "65,537 bytes", unix.Setxattr(p, "user.big", append(big, 0), 0), unix.E2BIG)
		for i := range 500 {
			must(t, unix.Setxattr(p, fmt.Sprintf("user.attr-%03d", i), []byte{byte(i)}, 0))
		}
		if got := listXattrs(t, p); len(got) != 501 {
			t.Errorf("listed %d of 501 attributes", len(got))
		}
	})
}

func TestACLs(t *testing.T) {
	harness.Need(t, "setfacl", "getfacl")
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		p := filepath.Join(dir, "f")
		write(t, p, []byte("acl"))
		must(t, unix.Chmod(p, 0o600))
		harness.Run(t, dir, "setfacl", "-m", "u:1000:r,g:3000:rw", "f")
		got := harness.Run(t, dir, "getfacl", "-nc", "f")
		for _, want := range []string{"user:1000:r--", "group:3000:rw-", "mask::rw-", "group::---", "other::---"} {
			if !strings.Contains(got, want+"\n") {
				t.Errorf("getfacl lacks %q:\n%s", want, got)
			}
		}
		if m := stat(t, p).Mode & 0o777; m != 0o660 {
			t.Errorf("the mode shows the mask: got %o, want 660", m)
		}
		asUser(t, 1000, 1000, nil, func() {
			wantContent(t, p, []byte("acl"))
			wantErrno(t, "write with an r entry", appendTo(p, "x"), unix.EACCES)
		})
		asUser(t, 1002, 1002, []int{3000}, func() { must(t, appendTo(p, "+")) })
		asUser(t, 1003, 1003, nil, func() {
			_, err := os.ReadFile(p)
			wantErrno(t, "a user without entry", err, unix.EACCES)
		})
		must(t, unix.Chmod(p, 0o600)) // the mask goes to nothing
		asUser(t, 1000, 1000, nil, func() {
			_, err := os.ReadFile(p)
			wantErrno(t, "a masked entry", err, unix.EACCES)
		})
		harness.Run(t, dir, "setfacl", "-b", "f")
		if m := stat(t, p).Mode & 0o777; m != 0o600 {
			t.Errorf("mode after setfacl -b: %o", m)
		}
		if got := listXattrs(t, p); len(got) != 0 {
			t.Errorf("attributes after setfacl -b: %q", got)
		}
	})
}

// TestDefaultACLs: what is made inherits the default ACL, which replaces the umask.
func TestDefaultACLs(t *testing.T) {
	harness.Need(t, "setfacl", "getfacl")
	harness.Targets(t, func(t *testing.T, dir string) {
		old := unix.Umask(0o077)
		defer unix.Umask(old)
		d := filepath.Join(dir, "d")
		must(t, os.Mkdir(d, 0o755))
		harness.Run(t, dir, "setfacl", "-d", "-m", "u::rwx,u:1000:rwx,g::r-x,o::r-x", "d")
		must(t, os.WriteFile(filepath.Join(d, "f"), nil, 0o666))
		must(t, os.Mkdir(filepath.Join(d, "sub"), 0o777))
		must(t, unix.Mkfifo(filepath.Join(d, "p"), 0o644))
		for name, want := range map[string]string{
			"f":   "user::rw-\nuser:1000:rwx\t#effective:rw-\ngroup::r-x\t#effective:r--\nmask::rw-\nother::r--\n",
			"sub": "user::rwx\nuser:1000:rwx\ngroup::r-x\nmask::rwx\nother::r-x\ndefault:user::rwx\ndefault:user:1000:rwx\ndefault:group::r-x\ndefault:mask::rwx\ndefault:other::r-x\n",
			"p":   "user::rw-\nuser:1000:rwx\t#effective:r--\ngroup::r-x\t#effective:r--\nmask::r--\nother::r--\n",
		} {
			got := harness.Run(t, d, "getfacl", "-nc", name)
			strip := func(s string) string { return strings.Join(strings.Fields(s), "\n") }
			if strip(got) != strip(want) {
				t.Errorf("ACL of %s:\n%s\nwant:\n%s", name, got, want)
			}
		}
		// Without a default ACL the umask holds.
		must(t, os.WriteFile(filepath.Join(dir, "plain"), nil, 0o666))
		if m := stat(t, filepath.Join(dir, "plain")).Mode & 0o777; m != 0o600 {
			t.Errorf("mode without a default ACL: %o", m)
		}
		harness.Run(t, dir, "setfacl", "-k", "d")
		must(t, os.WriteFile(filepath.Join(d, "later"), nil, 0o666))
		if m := stat(t, filepath.Join(d, "later")).Mode & 0o777; m != 0o600 {
			t.Errorf("mode after setfacl -k: %o", m)
		}
	})
}
