package local

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"nexusfs/meta"
)

// killDir, when set, makes the test binary a writer that puts until it is killed.
const killDir = "NEXUSFS_TEST_PUT_UNTIL_KILLED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		if err := putUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var killSizes = []int{17_000, 100_000, 600_000, 1<<20 + 3, meta.BlobMax}

// putUntilKilled puts blobs and prints a line for each one that was acknowledged.
func putUntilKilled(dir string) error {
	s, err := Open(context.Background(), Options{Dir: dir, SegmentSize: 6 << 20})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := w; ; i += 2 {
				b, err := s.Put(context.Background(), randomBytes(uint64(i), killSizes[i%len(killSizes)]))
				if err == nil && i%9 == 0 {
					err = s.Sync(context.Background())
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Printf("%d %d %d %d\n", i, b.Place, b.Segment, b.Offset)
			}
		})
	}
	wg.Wait()
	return nil
}

// A writer is killed at whatever it is doing, over and over: every Put that it
// acknowledged is there.
func TestKillNine(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 6 << 20}
	const rounds = 12
	all, checked := make(map[meta.Blob]bool), make(map[meta.Blob]bool)
	for round := range rounds {
		for b := range killedWriter(t, o.Dir, 3+round*5) {
			all[b] = true
		}
		s := mustOpen(t, o)
		listed := walkAll(t, s)
		for b := range all {
			if !listed[b] {
				t.Fatalf("round %d: walk misses %d/%d, which was acknowledged", round, b.Segment, b.Offset)
			}
		}
		// What was not acknowledged is nothing, or whole.
		for b := range listed {
			if checked[b] && round < rounds-1 {
				continue
			}
			checked[b] = true
			got := make([]byte, b.Size)
			if err := s.Read(context.Background(), b, 0, got); err != nil {
				t.Fatalf("round %d: walk lists %d/%d, read: %v", round, b.Segment, b.Offset, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killedWriter runs a writer, kills it after some lines and returns what it
// acknowledged.
func killedWriter(t *testing.T, dir string, lines int) map[meta.Blob]bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := make(map[meta.Blob]bool)
	for in := bufio.NewScanner(out); in.Scan(); {
		var i int
		b := meta.Blob{}
		if n, _ := fmt.Sscan(in.Text(), &i, &b.Place, &b.Segment, &b.Offset); n != 4 {
			continue // the line was cut by the kill
		}
		data := randomBytes(uint64(i), killSizes[i%len(killSizes)])
		b.ID, b.Size = (*Store)(nil).ID(data), int64(len(data))
		acked[b] = true
		if len(acked) == lines {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if len(acked) < lines {
		t.Fatalf("the writer ended by itself after %d puts", len(acked))
	}
	return acked
}
