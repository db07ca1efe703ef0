package integration

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// dirent is one entry as getdents64 gives it: Off is where the next one begins.
type dirent struct {
	name string
	ino  uint64
	off  int64
	typ  byte
}

// getdents reads one buffer of entries.
func getdents(t testing.TB, fd, size int) []dirent {
	t.Helper()
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	must(t, err)
	var out []dirent
	for b := buf[:n]; len(b) > 0; {
		length := binary.NativeEndian.Uint16(b[16:])
		name := b[19:length]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		out = append(out, dirent{
			name: string(name), ino: binary.NativeEndian.Uint64(b), off: int64(binary.NativeEndian.Uint64(b[8:])), typ: b[18],
		})
		b = b[length:]
	}
	return out
}

func fill(t testing.TB, dir string, n int) map[string]bool {
	t.Helper()
	want := map[string]bool{".": true, "..": true}
	for i := range n {
		name := fmt.Sprintf("entry-%05d", i)
		want[name] = true
		write(t, filepath.Join(dir, name), nil)
	}
	return want
}

// TestReaddirOffsets: every telldir position leads back to its successor.
func TestReaddirOffsets(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		fill(t, dir, 500)
		d := open(t, dir, os.O_RDONLY)
		fd := int(d.Fd())
		var all []dirent
		for {
			got := getdents(t, fd, 2048)
			if len(got) == 0 {
				break
			}
			all = append(all, got...)
		}
		if len(all) != 502 {
			t.Fatalf("listed %d entries, want 502", len(all))
		}
		for i := 0; i < len(all)-1; i += 7 {
			_, err := unix.Seek(fd, all[i].off, unix.SEEK_SET)
			must(t, err)
			if got := getdents(t, fd, 2048); len(got) == 0 || got[0].name != all[i+1].name {
				t.Fatalf("after seekdir behind %q: got %v, want %q", all[i].name, got, all[i+1].name)
			}
		}
		_, err := unix.Seek(fd, 0, unix.SEEK_SET)
		must(t, err)
		if got := getdents(t, fd, 2048); got[0].name != all[0].name {
			t.Errorf("rewinddir: got %q, want %q", got[0].name, all[0].name)
		}
		for _, e := range all {
			if e.name[0] == '.' {
				continue
			}
			if st := stat(t, filepath.Join(dir, e.name)); st.Ino != e.ino || e.typ != unix.DT_REG {
				t.Fatalf("%s: d_ino %d d_type %d, stat says %d", e.name, e.ino, e.typ, st.Ino)
			}
		}
	})
}

// TestReaddirWhileChanging: names that stay are listed exactly once, whatever
// else comes and goes between two reads.
func TestReaddirWhileChanging(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		stay := fill(t, dir, 800)
		for i := range 400 {
			write(t, filepath.Join(dir, fmt.Sprintf("goes-%d", i)), nil)
		}
		d := open(t, dir, os.O_RDONLY)
		seen := map[string]int{}
		for round := 0; ; round++ {
			got := getdents(t, int(d.Fd()), 1024)
			if len(got) == 0 {
				break
			}
			for _, e := range got {
				seen[e.name]++
			}
			for i := range 5 {
				_ = os.Remove(filepath.Join(dir, fmt.Sprintf("goes-%d", round*5+i)))
				write(t, filepath.Join(dir, fmt.Sprintf("comes-%d-%d", round, i)), nil)
			}
		}
		for name := range stay {
			if seen[name] != 1 {
				t.Errorf("%q was listed %d times", name, seen[name])
			}
		}
		for name, n := range seen {
			if n > 1 {
				t.Errorf("%q was listed %d times", name, n)
			}
		}
	})
}

// TestRemoveWhileListing: readdir, unlink, readdir ... empties a directory, as
// rm -r does it.
func TestRemoveWhileListing(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		fill(t, dir, 1000)
		d := open(t, dir, os.O_RDONLY)
		for {
			got := getdents(t, int(d.Fd()), 512)
			if len(got) == 0 {
				break
			}
			for _, e := range got {
				if e.name != "." && e.name != ".." {
					must(t, os.Remove(filepath.Join(dir, e.name)))
				}
			}
		}
		wantNames(t, dir)
	})
}

// TestListingSeesNewNames: an open directory that is read again from the start
// shows what was made meanwhile.
func TestListingSeesNewNames(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		d := open(t, dir, os.O_RDONLY)
		for i := range 20 {
			write(t, filepath.Join(dir, fmt.Sprint(i)), nil)
			_, err := d.Seek(0, 0)
			must(t, err)
			list, err := d.Readdirnames(-1)
			must(t, err)
			if len(list) != i+1 {
				t.Fatalf("after %d creates an open directory lists %d names", i+1, len(list))
			}
		}
	})
}
