package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

func TestMountShowsItsSourceAndType(t *testing.T) {
	m := mountMem(t, false)
	table, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	e := innermost(table, m.dir)
	if e.path != m.dir || e.fstype != "fuse.nexusfs" || e.source != "test store" {
		t.Errorf("got %+v", e)
	}
	for rel, path := range map[string]string{"/": m.dir, "/a/b": m.dir + "/a/b", "/x": m.dir + "/./y/../x"} {
		got, err := FindMount(path)
		if err != nil || got.Path != m.dir || got.Source != "test store" || got.Rel != rel {
			t.Errorf("%s: got %+v, %v; want %s", path, got, err, rel)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(m.dir+"/d", link); err != nil {
		t.Fatal(err)
	}
	if got, err := FindMount(link + "/f"); err != nil || got.Rel != "/d/f" {
		t.Errorf("through a link: got %+v, %v", got, err)
	}
	if _, err := FindMount(t.TempDir()); err == nil {
		t.Error("a path elsewhere was found")
	}
}

func TestMountRefusesBadPlaces(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m := mountMem(t, false)
	for _, c := range []struct{ place, want string }{
		{"", "no mountpoint"},
		{dir + "/missing", "mkdir -p"},
		{file, "not a directory"},
		{m.dir, "nexusfs umount"},
	} {
		_, err := mountOn(newMemFS(), Options{Mountpoint: c.place})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want a sentence with %q", c.place, err, c.want)
		}
	}
}

// deadMount makes what a daemon leaves that was killed.
func deadMount(t *testing.T, fstype string) string {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	err = unix.Mount("dead store", dir, fstype, 0, "fd="+strconv.Itoa(fd)+",rootmode=40000,user_id=0,group_id=0")
	unix.Close(fd)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if _, err := os.Stat(dir); !isDead(err) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	return dir
}

func TestCleanStaleRemovesOurDeadMount(t *testing.T) {
	dir := deadMount(t, "fuse.nexusfs")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := CleanStale(dir + "/sub"); err == nil || !strings.Contains(err.Error(), "nexusfs umount "+dir) {
		t.Errorf("a path inside: got %v", err)
	}
	if err := CleanStale(link); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("still dead: %v", err)
	}
	if err := CleanStale(dir); err != nil {
		t.Errorf("where nothing is dead: %v", err)
	}
	if err := CleanStale(filepath.Join(dir, "missing")); err != nil {
		t.Errorf("where nothing is: %v", err)
	}
}

func TestMountCleansUpADeadMount(t *testing.T) {
	dir := deadMount(t, "fuse.nexusfs")
	m := mountMem(t, false, func(o *Options) { o.Mountpoint = dir })
	m.dir = dir
	m.write(t, "f", "alive")
	if got := m.read(t, "f"); got != "alive" {
		t.Errorf("got %q", got)
	}
}

func TestCleanStaleLeavesOthersAlone(t *testing.T) {
	dir := deadMount(t, "fuse.other")
	if err := CleanStale(dir); err == nil || !strings.Contains(err.Error(), "fuse.other") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); !isDead(err) {
		t.Error("somebody else's mount was removed")
	}
}

// Neither mounting nor unmounting waits for an answer of the mount: a daemon
// that is killed in such a wait never ends.
func TestMountingAsksTheMountForNothing(t *testing.T) {
	reqs := &requestLog{}
	s, err := mountOn(newMemFS(), Options{Mountpoint: t.TempDir(), Debug: true, Log: slog.New(reqs)})
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve()
	if err := s.Unmount(false); err != nil {
		t.Fatal(err)
	}
	got := reqs.count()
	delete(got, "INIT")
	if len(got) != 0 {
		t.Errorf("the mount was asked: %v", got)
	}
}

func TestUnmountFromOutsideEndsTheServer(t *testing.T) {
	dir := t.TempDir()
	s, err := mountOn(newMemFS(), Options{Mountpoint: dir})
	if err != nil {
		t.Skip(err)
	}
	go s.Serve()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if err := s.Unmount(false); err != nil {
		t.Errorf("unmounting what is gone: %v", err)
	}
}

func TestBusyMountSaysSoAndDetaches(t *testing.T) {
	dir := t.TempDir()
	s, err := mountOn(newMemFS(), Options{Mountpoint: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Skip(err)
	}
	go s.Serve()
	fd, err := unix.Open(dir+"/open", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644) // not os.Create, see pollOnce
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(false); err == nil || !strings.Contains(err.Error(), "busy") || !strings.Contains(err.Error(), "--lazy") {
		t.Errorf("got %v", err)
	}
	if err := s.Unmount(true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/open"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name is still there: %v", err)
	}
	if _, err := unix.Write(fd, []byte("still served")); err != nil {
		t.Errorf("writing to the open file: %v", err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	s.Wait()
}

func TestReadOnlyMount(t *testing.T) {
	m := mountMem(t, false, func(o *Options) { o.ReadOnly = true })
	if err := os.Mkdir(m.dir+"/d", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir: got %v", err)
	}
	if err := os.WriteFile(m.dir+"/f", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("create: got %v", err)
	}
}

// TestIncEpochDropsNames: the last resort works on this kernel.
func TestIncEpochDropsNames(t *testing.T) {
	m := mountMem(t, true)
	m.write(t, "f", "x")
	m.stat(t, "f")
	m.reqs.count()
	m.stat(t, "f")
	if n := m.reqs.count()["LOOKUP"]; n != 0 {
		t.Fatalf("%d lookups of a name that is kept", n)
	}
	if err := m.srv.IncEpoch(); err != nil {
		t.Skipf("this kernel cannot: %v", err)
	}
	m.stat(t, "f")
	if n := m.reqs.count()["LOOKUP"]; n != 1 {
		t.Errorf("%d lookups after the epoch, want 1", n)
	}
}

func TestNoDescriptorsAreLeft(t *testing.T) {
	mountMem(t, false) // warms up what stays for the life of the process
	before := countFDs(t)
	t.Run("mount", func(t *testing.T) {
		m := mountMem(t, false)
		m.write(t, "f", "x")
	})
	if after := countFDs(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestMountAsAnOrdinaryUser goes through fusermount3.
func TestMountAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is needed to become another user")
	}
	if _, err := helper(); err != nil {
		t.Skip(err)
	}
	home, err := os.MkdirTemp("", "fusefs-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	const nobody = 65534
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(home, 0o755), os.WriteFile(home+"/self", self, 0o755), os.Mkdir(home+"/m, n", 0o755), os.Chown(home+"/m, n", nobody, nobody),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(home + "/self")
	cmd.Env = append(os.Environ(), "FUSEFS_TEST_USER="+home+"/m, n")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// mountAsUser mounts, uses and unmounts as whoever it is.
func mountAsUser(dir string) error {
	tree := newMemFS()
	tree.nodes[meta.RootIno].UID = uint32(os.Geteuid())
	s, err := mountOn(tree, Options{Mountpoint: dir, Source: `a, b\c`, Extra: []string{"dev", "noexec"}})
	if err != nil {
		return err
	}
	go s.Serve()
	return errors.Join(useAsUser(s, dir), s.Unmount(true))
}

func useAsUser(s *Server, dir string) error {
	fd, err := unix.Open(dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o644) // not os.Create, see pollOnce
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at, err := FindMount(dir + "/f")
	if err != nil || at.Source != `a, b\c` {
		return fmt.Errorf("found %+v: %w", at, err)
	}
	if err := s.Unmount(false); err == nil || !strings.Contains(err.Error(), "busy") {
		return fmt.Errorf("unmounting what is in use: %w", err)
	}
	return nil
}
