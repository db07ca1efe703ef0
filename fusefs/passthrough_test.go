package fusefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// TestP27KernelReadsWhatCannotChange: on a read-only mount the kernel reads a
// file of one blob by itself, however it is opened.
func TestP27KernelReadsWhatCannotChange(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 100000)
	backing := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(backing, content, 0o644); err != nil {
		t.Fatal(err)
	}
	m := mountMem(t, true, func(o *Options) { o.ReadOnly = true })
	if m.srv.raw.pass.server == nil {
		t.Skip("this kernel, or this user, has no passthrough")
	}
	make := func(name string, whole bool) {
		n, err := m.Mknod(t.Context(), meta.Caller{}, meta.RootIno, name, meta.ModeRegular|0o644, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.nodes[n.Ino].write(0, content)
		if whole {
			m.whole = map[meta.Ino]string{n.Ino: backing}
		}
	}
	make("one", true)
	make("many", false)
	for name, reads := range map[string]bool{"one": false, "many": true} {
		m.reqs.count()
		first, err := os.Open(m.dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second joins the first
			got, err := os.ReadFile(m.dir + "/" + name)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		mem, err := unix.Mmap(int(first.Fd()), 0, len(content), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_POPULATE)
		if err != nil {
			t.Errorf("%s: mmap: %v", name, err)
		} else {
			if !bytes.Equal(mem, content) {
				t.Errorf("%s: the mapping is wrong", name)
			}
			unix.Munmap(mem)
		}
		first.Close()
		if got := m.reqs.count()["READ"] > 0; got != reads {
			t.Errorf("%s: requests to read: %t, want %t", name, got, reads)
		}
	}
	if err := m.srv.Unmount(false); err != nil {
		t.Fatal(err)
	}
	if n := len(m.srv.raw.pass.nodes); n != 0 {
		t.Errorf("%d inodes are left", n)
	}
}
