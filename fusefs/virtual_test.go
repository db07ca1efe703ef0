package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		kind := ""
		if e.IsDir() {
			kind = "/"
		}
		out = append(out, e.Name()+kind)
	}
	return strings.Join(out, " ")
}

// mountWithVersions has a file d/f with three versions and one g with none.
func mountWithVersions(t *testing.T) *mounted {
	m := mountMem(t, false, func(o *Options) {
		o.Store, o.Control = "the store", "/run/control.sock"
		o.Status = func() ([]byte, error) { return []byte(`{"pid":7}`), nil }
	})
	if err := os.Mkdir(m.dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	m.write(t, "d/f", "third")
	m.write(t, "g", "")
	if err := os.Symlink("g", m.dir+"/link"); err != nil {
		t.Fatal(err)
	}
	ino := m.ino(t, "d/f")
	m.mu.Lock()
	for n, content := range []string{"first", "the second", "third"} {
		m.past[versionKey{ino, int64(n + 1)}] = []byte(content)
	}
	m.mu.Unlock()
	return m
}

func TestVersionsCanBeRead(t *testing.T) {
	m := mountWithVersions(t)
	top := m.dir + "/.nexusfs"
	for dir, want := range map[string]string{
		"":              "status versions/",
		"/versions":     "d/ g/",
		"/versions/d":   "f/",
		"/versions/d/f": "1 2 3",
		"/versions/g":   "",
	} {
		for range 2 { // the second from what the kernel keeps
			if got := names(t, top+dir); got != want {
				t.Errorf("%s lists %q, want %q", dir, got, want)
			}
		}
	}
	if out, err := exec.Command("ls", "-lR", top).CombinedOutput(); err != nil {
		t.Errorf("ls -lR: %v\n%s", err, out)
	}
	if got := m.read(t, ".nexusfs/versions/d/f/2"); got != "the second" {
		t.Errorf("got %q", got)
	}
	if st := m.stat(t, ".nexusfs/versions/d/f/2"); st.Size != 10 || st.Mode != unix.S_IFREG|0o444 || st.Mtim.Sec != 2 {
		t.Errorf("size %d, mode %o, time %d", st.Size, st.Mode, st.Mtim.Sec)
	}
	if got := m.read(t, ".nexusfs/status"); got != `{"pid":7}` {
		t.Errorf("status %q", got)
	}
	for _, missing := range []string{"x", "versions/none", "versions/link", "versions/d/f/0", "versions/d/f/4",
		"versions/d/f/01", "versions/d/f/x", "versions/d/f/1/x", "versions/.nexusfs"} {
		if _, err := os.Lstat(top + "/" + missing); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s: got %v", missing, err)
		}
	}
	// A version that came after the listing was kept.
	m.mu.Lock()
	ino := m.nodes[meta.RootIno].names["d"].names["f"].Ino
	m.past[versionKey{ino, 4}] = []byte("fourth")
	m.nodes[ino].Mtime++
	m.mu.Unlock()
	if got := names(t, top+"/versions/d/f"); got != "1 2 3 4" {
		t.Errorf("after another version: %q", got)
	}
}

func TestVersionsAreNeverListed(t *testing.T) {
	m := mountWithVersions(t)
	for range 2 {
		if got := names(t, m.dir); got != "d/ g link" {
			t.Errorf("the root lists %q", got)
		}
	}
	if out, err := exec.Command("find", m.dir, "-name", ".nexusfs*").CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("find: %v %q", err, out)
	}
	if out, err := exec.Command("sh", "-c", "rm -rf "+m.dir+"/*").CombinedOutput(); err != nil {
		t.Errorf("rm: %v %s", err, out)
	}
}

func TestNobodyChangesWhatIsVirtual(t *testing.T) {
	m := mountWithVersions(t)
	top := m.dir + "/.nexusfs"
	file := top + "/versions/d/f/1"
	for what, err := range map[string]error{
		"make in it":         os.Mkdir(top+"/x", 0o755),
		"create in it":       os.WriteFile(top+"/versions/d/x", nil, 0o644),
		"remove it":          unix.Rmdir(top),
		"remove a version":   unix.Unlink(file),
		"rename it":          unix.Rename(top, m.dir+"/other"),
		"rename into it":     unix.Rename(m.dir+"/g", top+"/g"),
		"rename over it":     unix.Rename(m.dir+"/d", top),
		"link a version":     unix.Link(file, m.dir+"/l"),
		"link into it":       unix.Link(m.dir+"/g", top+"/l"),
		"write a version":    os.WriteFile(file, []byte("x"), 0o644),
		"truncate a version": os.Truncate(file, 0),
		"chmod it":           unix.Chmod(top, 0o777),
		"set an attribute":   unix.Setxattr(top, "user.a", []byte("b"), 0),
	} {
		if err == nil || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSYS) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if got := m.read(t, ".nexusfs/versions/d/f/1"); got != "first" {
		t.Errorf("got %q", got)
	}
	// The name is free anywhere else.
	if err := os.Mkdir(m.dir+"/d/.nexusfs", 0o755); err != nil {
		t.Error(err)
	}
}

// TestVersionsHaveTheFilesRights: who may not read the file may not read what
// it was.
func TestVersionsHaveTheFilesRights(t *testing.T) {
	m := mountWithVersions(t)
	read := "cat .nexusfs/versions/d/f/1 2>&1 || true"
	if got := m.asNobody(t, read); got != "first" {
		t.Errorf("got %q", got)
	}
	if err := unix.Chmod(m.dir+"/d/f", 0o600); err != nil {
		t.Fatal(err)
	}
	if got := m.asNobody(t, read); !strings.Contains(got, "Permission denied") {
		t.Errorf("of a private file: got %q", got)
	}
	if err := unix.Chmod(m.dir+"/d/f", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(m.dir+"/d", 0o700); err != nil {
		t.Fatal(err)
	}
	if got := m.asNobody(t, read); !strings.Contains(got, "Permission denied") {
		t.Errorf("in a private directory: got %q", got)
	}
}

func TestForgottenVersionsAreForgotten(t *testing.T) {
	m := mountWithVersions(t)
	for range 3 {
		if _, err := exec.Command("ls", "-l", m.dir+"/.nexusfs/versions/d/f").Output(); err != nil {
			t.Fatal(err)
		}
	}
	v := &m.srv.raw.virtual
	v.mu.Lock()
	known := len(v.nodes)
	v.mu.Unlock()
	if known == 0 || known > 3 {
		t.Errorf("%d nodes for three versions", known)
	}
	n := v.version(versionKey{99, 1})
	if again := v.version(versionKey{99, 1}); again != n {
		t.Errorf("two numbers for one version")
	}
	v.forget(n, 1)
	_, payload := splitNode(n)
	if _, found := v.find(payload); !found {
		t.Error("forgotten while the kernel knows it")
	}
	v.forget(n, 1)
	if _, found := v.find(payload); found {
		t.Error("still known")
	}
}

func getxattr(path, name string) (string, error) {
	buf := make([]byte, 100)
	n, err := unix.Lgetxattr(path, name, buf)
	return string(buf[:max(n, 0)]), err
}

func TestExtendedAttributes(t *testing.T) {
	m := mountWithVersions(t)
	f := m.dir + "/d/f"
	for name, want := range map[string]string{
		"user.nexusfs.rev": "1", "user.nexusfs.version": "1", "user.nexusfs.ino": fmt.Sprint(m.ino(t, "d/f")),
		"user.nexusfs.store": "the store", "user.nexusfs.control": "/run/control.sock",
	} {
		if got, err := getxattr(f, name); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
		if err := unix.Setxattr(f, name, []byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("setting %s: %v", name, err)
		}
		if err := unix.Removexattr(f, name); !errors.Is(err, unix.EPERM) {
			t.Errorf("removing %s: %v", name, err)
		}
	}
	if got, err := getxattr(m.dir+"/.nexusfs", "user.nexusfs.control"); err != nil || got != "/run/control.sock" {
		t.Errorf("of .nexusfs: %q, %v", got, err)
	}
	for name, want := range map[string]error{
		"user.none": unix.ENODATA, "user.nexusfs.none": unix.ENODATA, "system.other": unix.EOPNOTSUPP, "odd.name": unix.EOPNOTSUPP,
		"trusted.none": unix.ENODATA, "security.capability": unix.ENODATA,
	} {
		if _, err := getxattr(f, name); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	if n, err := unix.Listxattr(f, nil); n != 0 || err != nil {
		t.Errorf("a list of %d bytes, %v", n, err)
	}
	for _, name := range []string{"user.a", "trusted.b", "security.c"} {
		if err := unix.Setxattr(f, name, []byte("value of "+name), unix.XATTR_CREATE); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if err := unix.Setxattr(f, "user.a", nil, unix.XATTR_CREATE); !errors.Is(err, unix.EEXIST) {
		t.Errorf("create again: %v", err)
	}
	if err := unix.Setxattr(f, "user.z", nil, unix.XATTR_REPLACE); !errors.Is(err, unix.ENODATA) {
		t.Errorf("replace what is not there: %v", err)
	}
	if _, err := unix.Getxattr(f, "user.a", make([]byte, 3)); !errors.Is(err, unix.ERANGE) {
		t.Errorf("small buffer: %v", err)
	}
	if n, err := unix.Getxattr(f, "user.a", nil); n != 15 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	buf := make([]byte, 100)
	n, err := unix.Listxattr(f, buf)
	if got := string(buf[:max(n, 0)]); got != "security.c\x00trusted.b\x00user.a\x00" {
		t.Errorf("list %q, %v", got, err)
	}
	if _, err := unix.Listxattr(f, make([]byte, 5)); !errors.Is(err, unix.ERANGE) {
		t.Errorf("small list: %v", err)
	}
	if got := m.asNobody(t, `python3 -c 'import os; print(os.listxattr("d/f"))'`); got != "['security.c', 'user.a']" {
		t.Errorf("an ordinary user sees %s", got)
	}
}
