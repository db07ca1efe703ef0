package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"nexusfs/meta"
)

// These, when set, make the test binary a process of its own: a writer that
// puts until it is killed; one that takes a folder, says which, and waits.
const (
	killDir = "NEXUSFS_TEST_PUT_UNTIL_KILLED"
	takeDir = "NEXUSFS_TEST_TAKE_FOLDER"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(takeDir); dir != "" {
		if err := takeAndWait(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
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
	acked, err := putAndKill(dir, lines)
	if err != nil {
		t.Fatal(err)
	}
	return acked
}

func putAndKill(dir string, lines int) (map[meta.Blob]bool, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
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
		return nil, fmt.Errorf("the writer ended by itself after %d puts", len(acked))
	}
	return acked, nil
}

// Two writers at a time are killed, each at whatever it is doing, while a
// third process has the folder open: nothing that they acknowledged is lost,
// no place was given twice, and what they left is tended.
func TestKillNineOfTwoWriters(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 6 << 20, Shared: true})
	all := make(map[meta.Blob]bool)
	const rounds = 8
	for round := range rounds {
		var acked [2]map[meta.Blob]bool
		var errs [2]error
		var wg sync.WaitGroup
		for i := range acked {
			wg.Go(func() { acked[i], errs[i] = putAndKill(s.opts.Dir, 3+round*4+i*5) })
		}
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		for i := range acked {
			for b := range acked[i] {
				if all[b] || acked[1-i][b] {
					t.Fatalf("round %d: the place %d/%d was given twice", round, b.Segment, b.Offset)
				}
			}
		}
		for i := range acked {
			maps.Copy(all, acked[i])
		}
		listed := walkAll(t, s)
		for b := range all {
			if !listed[b] {
				t.Fatalf("round %d: walk misses %d/%d, which was acknowledged", round, b.Segment, b.Offset)
			}
		}
		for b := range listed { // what was not acknowledged is nothing, or whole
			if err := s.Read(ctx, b, 0, make([]byte, b.Size)); err != nil {
				t.Fatalf("round %d: walk lists %d/%d, read: %v", round, b.Segment, b.Offset, err)
			}
		}
		// Half of it goes; the folders have no holder, so this writer tends them.
		for b := range all {
			if b.ID[0]%2 == 0 {
				mustFree(t, s, b)
				delete(all, b)
			}
		}
		live := func(b meta.Blob) (bool, error) { return all[b], nil }
		err := s.Compact(ctx, live, func(from, to meta.Blob) error {
			delete(all, from)
			all[to] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for b := range all {
			if err := s.Read(ctx, b, 0, make([]byte, b.Size)); err != nil {
				t.Fatalf("round %d: after compact: %v", round, err)
			}
		}
	}
	if list, err := writers(s.opts.Dir); err != nil || len(list) != 3 {
		t.Errorf("%d times two writers left the folders of %v (%v), want three", rounds, list, err)
	}
}

// takeAndWait opens the store, prints its writer and waits for the end of its
// input.
func takeAndWait(dir string) error {
	s, err := Open(context.Background(), Options{Dir: dir, Shared: true})
	if err != nil {
		return err
	}
	fmt.Println(s.writer)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return s.Close()
}

// taker is a process that has a folder.
type taker struct {
	cmd    *exec.Cmd
	in     io.Closer
	out    *bufio.Reader
	writer int64
}

// startTakers starts n processes at once and returns them by their writers.
func startTakers(t *testing.T, dir string, n int) map[int64]*taker {
	t.Helper()
	started := make([]*taker, n)
	for i := range started {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), takeDir+"="+dir)
		cmd.Stderr = os.Stderr
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // does nothing to one that has ended
			cmd.Process.Kill()
			cmd.Wait()
		})
		started[i] = &taker{cmd: cmd, in: in, out: bufio.NewReader(out)}
	}
	byWriter := make(map[int64]*taker)
	for _, p := range started {
		if _, err := fmt.Fscan(p.out, &p.writer); err != nil {
			t.Fatalf("a process took no folder: %v", err)
		}
		if byWriter[p.writer] != nil {
			t.Fatalf("two processes are writer %d", p.writer)
		}
		byWriter[p.writer] = p
	}
	return byWriter
}

// end ends a process in order, or kills it.
func (p *taker) end(t *testing.T, kill bool) {
	t.Helper()
	if kill {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		return
	}
	if err := errors.Join(p.in.Close(), p.cmd.Wait()); err != nil {
		t.Errorf("writer %d: %v", p.writer, err)
	}
}

// Processes that open a store at once, also one that has to be made first,
// each have a folder of their own, with the lowest numbers that are free.
func TestTwoProcessesNeverTakeOneFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	wantWriters := func(got map[int64]*taker, want ...int64) {
		t.Helper()
		if w := slices.Sorted(maps.Keys(got)); !slices.Equal(w, want) {
			t.Fatalf("the writers are %v, want %v", w, want)
		}
	}
	running := startTakers(t, dir, 6)
	wantWriters(running, 0, 1, 2, 3, 4, 5)
	for round := range 3 {
		running[1].end(t, round%2 == 0)
		running[4].end(t, round%2 == 1)
		running[5].end(t, false)
		again := startTakers(t, dir, 3)
		wantWriters(again, 1, 4, 5)
		maps.Copy(running, again)
	}
	for _, p := range running {
		p.end(t, false)
	}
}
