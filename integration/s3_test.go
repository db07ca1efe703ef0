package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nexusfs/integration/harness"
	"nexusfs/internal/s3test"
)

// onS3 prepares a mount of a zone in PostgreSQL whose content lies in S3.
func onS3(t *testing.T) (*s3test.Server, *harness.Mount) {
	t.Helper()
	s := s3test.Start(t, "blobs")
	m := harness.Prepare(t, harness.Options{
		Database: true,
		Args:     []string{"-o", "content=s3://blobs/team?endpoint=http://" + s.Addr + "&path_style=true"},
	})
	m.AddEnv("AWS_ACCESS_KEY_ID="+s3test.AccessKey, "AWS_SECRET_ACCESS_KEY="+s3test.SecretKey)
	return s, m
}

// TestContentInS3: files of all sizes come back whole, by another daemon with an
// empty cache too; what was read once is read without the server.
func TestContentInS3(t *testing.T) {
	s, a := onS3(t)
	must(t, a.Start())
	sizes := []int{0, 1, 4096, 16 << 10, 16<<10 + 1, 300_000, 4 << 20, 9<<20 + 17}
	for i, n := range sizes {
		write(t, filepath.Join(a.Dir, fmt.Sprint(i)), pattern(uint64(i), n))
	}
	b := a.Beside(t)
	for i, n := range sizes {
		wantContent(t, filepath.Join(b.Dir, fmt.Sprint(i)), pattern(uint64(i), n))
	}
	f := open(t, filepath.Join(b.Dir, "7"), os.O_RDWR)
	_, err := f.WriteAt([]byte("changed"), 5<<20)
	must(t, err)
	must(t, f.Close())
	want := pattern(7, 9<<20+17)
	copy(want[5<<20:], "changed")
	wantContent(t, filepath.Join(a.Dir, "7"), want)
	must(t, b.Stop())
	must(t, a.Stop())
	must(t, a.Start())
	wantContent(t, filepath.Join(a.Dir, "7"), want)
	s.Stop()
	must(t, dropPages(filepath.Join(a.Dir, "7")))
	wantContent(t, filepath.Join(a.Dir, "7"), want) // by the cache on this disk
	if err := os.WriteFile(filepath.Join(a.Dir, "small"), []byte("rides in SQL"), 0o644); err != nil {
		t.Errorf("a small file needs the S3 server: %v", err)
	}
	began := time.Now()
	if err := os.WriteFile(filepath.Join(a.Dir, "large"), pattern(9, 3<<20), 0o644); err == nil {
		t.Error("a large file was closed and its content is nowhere")
	}
	if d := time.Since(began); d > 90*time.Second {
		t.Errorf("it took %v to say so", d)
	}
	must(t, s.Restart())
	write(t, filepath.Join(a.Dir, "large"), pattern(9, 3<<20))
	wantContent(t, filepath.Join(a.Dir, "large"), pattern(9, 3<<20))
}

// TestRealWorkOnS3: git on a zone whose content is far away.
func TestRealWorkOnS3(t *testing.T) {
	harness.Need(t, "git")
	_, m := onS3(t)
	must(t, m.Start())
	harness.Shell(t, m.Dir, `git init -q r && cd r && for i in 1 2 3 4 5; do
		head -c 200000 /dev/urandom > big$i; seq 1 $((i*1000)) > text$i; git add -A; git commit -qm "$i"; done
		git gc -q; git fsck --full; git clone -q . ../c; cmp big5 ../c/big5`)
	m.Remount()
	harness.Shell(t, filepath.Join(m.Dir, "c"), "git fsck --full && git status --porcelain | wc -l | grep -qx 0")
}
