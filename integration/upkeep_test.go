package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestFsckFindsWhatWasChanged changes a store behind nexusfs's back, one thing
// at a time: fsck names each (I9, P33).
func TestFsckFindsWhatWasChanged(t *testing.T) {
	harness.EmbeddedOnly(t, "changes the database file")
	harness.Need(t, "sqlite3")
	m := harness.New(t, harness.Options{NoFsck: true})
	d := mkdir(t, filepath.Join(m.Dir, "d"))
	for i := range 10 {
		write(t, filepath.Join(d, fmt.Sprint(i)), pattern(uint64(i), 50000))
	}
	write(t, filepath.Join(d, "0"), pattern(77, 60000))
	must(t, os.Link(filepath.Join(d, "1"), filepath.Join(m.Dir, "link")))
	must(t, m.Stop())
	m.CLI("fsck", m.Store)
	db := filepath.Join(m.Store, "meta.db")
	whole, err := os.ReadFile(db)
	must(t, err)
	for name, sql := range map[string]string{
		"a record was rewritten":     "update operation_records set size = size + 1 where rev = (select max(rev) - 3 from operation_records)",
		"a record's actor was moved": "update actors set uid = uid + 1",
		"a record was removed":       "delete from operation_records where rev = (select max(rev) - 4 from operation_records)",
		"the last records were cut":  "delete from operation_records where rev > (select max(rev) - 2 from operation_records)",
		"a name without inode":       "delete from inodes where ino = (select ino from dentries where name = cast('5' as blob))",
		"an inode without name":      "delete from dentries where name = cast('6' as blob)",
		"a wrong link count":         "update inodes set nlink = 7 where ino = (select ino from dentries where name = cast('link' as blob))",
		"a wrong entry count":        "update inodes set entries = entries + 1 where ino = 1",
		"an extent without blob":     "update extents set blob = 999999 where ino = (select max(ino) from extents)",
		"a wrong size":               "update inodes set size = size - 40000 where ino = (select max(ino) from inodes)",
		"a wrong reference count":    "update blobs set refs = refs + 1 where blob = (select max(blob) from blobs)",
		"wrong usage":                "update counters set bytes = bytes + 1 where kind = 0",
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(db, whole, 0o600))
			for _, side := range []string{"-wal", "-shm"} {
				_ = os.Remove(db + side)
			}
			harness.Run(t, "/", "sqlite3", db, sql)
			res := m.TryCLI("fsck", m.Store)
			if res.Code != 1 || len(res.Stdout)+len(res.Stderr) == 0 {
				t.Errorf("fsck: code %d, want 1\n%s%s", res.Code, res.Stdout, res.Stderr)
			}
		})
	}
	must(t, os.WriteFile(db, whole, 0o600))
}

// TestP28DeduplicationAgainstCollection: contents that are written again while
// the collector removes them stay readable.
func TestP28DeduplicationAgainstCollection(t *testing.T) {
	m := harness.New(t, harness.Options{Args: []string{"-o", "history=off"}})
	var pool [6][]byte
	for i := range pool {
		pool[i] = pattern(uint64(i), []int{9000, 40000, 300000, 1500000, 20000, 700000}[i])
	}
	var over atomic.Bool
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for !over.Load() {
			if res := m.TryCLI("gc", m.Dir); res.Err != nil {
				t.Errorf("gc: %v %s", res.Err, res.Stderr)
				return
			}
		}
	}()
	parallel(4, func(w int) {
		rnd := rand.New(rand.NewPCG(uint64(w), 28))
		for i := range 150 {
			p := filepath.Join(m.Dir, fmt.Sprintf("w%d-%d", w, i%3))
			want := pool[rnd.IntN(len(pool))]
			if err := os.WriteFile(p, want, 0o644); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			if i%4 == 0 {
				if err := os.Remove(p); err != nil {
					t.Errorf("remove: %v", err)
				}
				continue
			}
			_ = dropPages(p)
			if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("worker %d: read %d bytes, %v, want %d", w, len(got), err, len(want))
				return
			}
		}
	})
	over.Store(true)
	<-collected
	m.Remount()
	for _, name := range names(t, m.Dir) {
		if _, err := os.ReadFile(filepath.Join(m.Dir, name)); err != nil {
			t.Errorf("after a remount: %v", err)
		}
	}
}

// dropPages asks the kernel to forget a file's cached pages.
func dropPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// TestReclaimedSpaceComesBack: what was deleted leaves the disk after gc.
func TestReclaimedSpaceComesBack(t *testing.T) {
	m := harness.New(t, harness.Options{Args: []string{"-o", "history=off"}})
	for i := range 8 {
		write(t, filepath.Join(m.Dir, fmt.Sprint("large", i)), pattern(uint64(i), 6<<20))
	}
	for i := range 200 {
		write(t, filepath.Join(m.Dir, fmt.Sprint("middle", i)), pattern(uint64(100+i), 100000))
	}
	m.CLI("sync", m.Dir)
	full := diskUse(t, m.Content)
	if full < 60<<20 {
		t.Fatalf("68 MB of content take %d bytes", full)
	}
	for _, name := range names(t, m.Dir) {
		if name != "middle7" {
			must(t, os.Remove(filepath.Join(m.Dir, name)))
		}
	}
	for range 3 { // condemned, removed, segments given back
		m.CLI("gc", m.Dir)
	}
	if left := diskUse(t, m.Content); left > full/2 {
		t.Errorf("%d bytes are left of %d after everything but one file was deleted", left, full)
	}
	wantContent(t, filepath.Join(m.Dir, "middle7"), pattern(107, 100000))
}

// TestP29OpenHandleFollows: an open handle shows what others write; an open
// version is a snapshot.
func TestP29OpenHandleFollows(t *testing.T) {
	m := harness.New(t, harness.Options{})
	p := filepath.Join(m.Dir, "f")
	write(t, p, []byte("one"))
	r := open(t, p, os.O_RDONLY)
	n := int(decode(t, m.CLI("versions", "--json", p))["versions"].([]any)[0].(map[string]any)["version"].(float64))
	old := open(t, fmt.Sprintf("%s/.nexusfs/versions/f/%d", m.Dir, n), os.O_RDONLY)
	was := make([]byte, 10)
	k, _ := old.ReadAt(was, 0)
	for i := range 5 {
		want := fmt.Sprintf("content %d", i)
		write(t, p, []byte(want))
		got := make([]byte, 100)
		c, _ := r.ReadAt(got, 0)
		wantBytes(t, "an open handle", got[:c], []byte(want))
		again := make([]byte, 10)
		c, _ = old.ReadAt(again, 0)
		wantBytes(t, "an open version", again[:c], was[:k])
	}
}

// TestP30CommandsBesideTheDaemon: every reading command answers the same
// through the daemon and on the store alone, and many at once disturb nothing.
func TestP30CommandsBesideTheDaemon(t *testing.T) {
	m := harness.New(t, harness.Options{})
	for i := range 20 {
		write(t, filepath.Join(m.Dir, fmt.Sprint(i%4)), pattern(uint64(i), 30000))
	}
	must(t, os.Remove(filepath.Join(m.Dir, "3")))
	commands := func(store string) [][]string {
		return [][]string{
			{"log", "--json", store}, {"sql", store, "select path, size, version from files order by path"}, {"fsck", store},
			{"sql", store, "select count(*) from operations"},
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		parallel(4, func(int) {
			for range 4 {
				for _, c := range commands(m.Dir) {
					if res := m.TryCLI(c...); res.Err != nil {
						t.Errorf("%v: %v %s", c, res.Err, res.Stderr)
					}
				}
			}
		})
	}()
	for i := 0; ; i++ {
		write(t, filepath.Join(m.Dir, "busy"), pattern(uint64(i), 20000))
		select {
		case <-done:
		default:
			continue
		}
		break
	}
	m.CLI("sync", m.Dir)
	var through []string
	for _, c := range commands(m.Dir) {
		through = append(through, m.CLI(c...))
	}
	must(t, m.Stop())
	for i, c := range commands(m.Store) {
		if alone := m.CLI(c...); alone != through[i] && c[0] != "fsck" {
			t.Errorf("%v: without the daemon\n%.600s\nwith it\n%.600s", c[:1], alone, through[i])
		}
	}
	m.Restart()
}

// TestMetrics: the Prometheus endpoint answers in its text format.
func TestMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := l.Addr().String()
	must(t, l.Close())
	m := harness.New(t, harness.Options{Args: []string{"--metrics", address}})
	write(t, filepath.Join(m.Dir, "f"), []byte("x"))
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + address + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	must(t, err)
	own := 0
	for line := range strings.Lines(body.String()) {
		if strings.HasPrefix(line, "nexusfs_") {
			own++
		}
	}
	if resp.StatusCode != 200 || own < 5 {
		t.Errorf("status %d, %d metrics of nexusfs", resp.StatusCode, own)
	}
}

// TestLogRotation: in the background the log is in the store, and SIGHUP opens
// it again.
func TestLogRotation(t *testing.T) {
	harness.EmbeddedOnly(t, "the log is in the store")
	m := harness.Prepare(t, harness.Options{})
	m.CLI("mount", m.Store, m.Dir, "--background")
	t.Cleanup(func() { m.CLI("umount", m.Dir) })
	log := filepath.Join(m.Store, "daemon.log")
	if !exists(log) {
		t.Fatal("no log in the store")
	}
	must(t, os.Rename(log, log+".1"))
	must(t, unix.Kill(int(m.Status()["pid"].(float64)), unix.SIGHUP))
	harness.Eventually(t, 10*time.Second, "the log is opened again", func() bool { return exists(log) })
	write(t, filepath.Join(m.Dir, "f"), []byte("still served"))
}

// TestReadmeFirstTenMinutes runs the commands of the README's first section,
// in order, as a new user with an empty home.
func TestReadmeFirstTenMinutes(t *testing.T) {
	harness.NeedMount(t)
	text, err := os.ReadFile(filepath.Join(harness.Root(), "README.md"))
	must(t, err)
	_, section, ok := strings.Cut(string(text), "\n## The first ten minutes\n")
	section, _, ok2 := strings.Cut(section, "\n## ")
	if !ok || !ok2 {
		t.Fatal("README.md has no section 'The first ten minutes'")
	}
	var script strings.Builder
	for i, part := range strings.Split(section, "```") {
		if code, ok := strings.CutPrefix(part, "sh\n"); ok && i%2 == 1 {
			script.WriteString(code)
		}
	}
	home := harness.Scratch(t)
	bin := mkdir(t, filepath.Join(home, "bin"))
	must(t, os.Symlink(harness.Binary(t), filepath.Join(bin, "nexusfs")))
	res := harness.Try(harness.Cmd{Dir: home, Args: []string{"sh", "-exc", script.String()},
		Env: []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "PATH=" + bin + ":" + os.Getenv("PATH")}})
	if res.Err != nil {
		t.Errorf("%v\n%s\n%s", res.Err, res.Stdout, res.Stderr)
		harness.Try(harness.Cmd{Args: []string{harness.Binary(t), "umount", "--lazy", filepath.Join(home, "nx")}})
	}
}
