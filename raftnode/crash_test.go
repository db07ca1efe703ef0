package raftnode

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/kv"
	"nexusfs/raftnode/state"
)

// The environment that makes the test binary a process to be killed.
const crashDir = "NEXUSFS_RAFT_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := crashChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// crashCore opens a member that writes as one of a group does: everything that
// counts is synced first.
func crashCore(dir string) (*core, *kv.Store, error) {
	store, err := kv.Open(filepath.Join(dir, storeFile))
	if err != nil {
		return nil, nil, err
	}
	d := boltDisk{store}
	im, err := d.load()
	if err == nil && im.hard == nil {
		im, err = foundImage(state.Version, d, &Identity{ID: 1})
	}
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	incarnation, err := store.IncrementRevision("incarnation")
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	c, err := newCore(coreConfig{
		id: 1, incarnation: uint64(incarnation), known: state.Version, timing: testTiming,
		rand: rand.New(rand.NewPCG(1, uint64(incarnation))), wall: func() int64 { return time.Now().UnixNano() },
		logger: raftLogger{slog.New(slog.DiscardHandler)},
	}, im)
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	c.grown = true
	c.checkAlone()
	c.log.keep, c.log.most = 4, 12
	return c, store, crashDrive(c, d)
}

// crashDrive carries out a core's work.
func crashDrive(c *core, d boltDisk) error {
	for w := c.ready(); w != nil; w = c.ready() {
		if w.write != nil {
			if err := d.save(w.write); err != nil {
				return err
			}
		}
		c.done(w)
	}
	return c.failed
}

// crashChild announces, compacts and restores snapshots until it is killed, and
// says on its output what it acknowledged.
func crashChild(dir string) error {
	c, store, err := crashCore(dir)
	if err != nil {
		return err
	}
	d := boltDisk{store}
	advance := newCall(&state.Advance{Zone: simZone, Epoch: 1, Rev: 1})
	c.propose(advance)
	if err := crashDrive(c, d); err != nil {
		return err
	}
	for rev := c.st.Zones[simZone].Prefix + 1; ; rev++ {
		cl := newCall(&state.Announce{Zone: simZone, Epoch: 1, Span: state.Span{First: rev, Last: rev, Ops: []meta.Committed{fakeOp(rev)}, Durable: rev}})
		cl.until = prefixWait{simZone, rev, 1}
		c.propose(cl)
		if err := crashDrive(c, d); err != nil {
			return err
		}
		if !cl.finished() || cl.err != nil || cl.result.Code != state.OK {
			return fmt.Errorf("revision %d was not announced: %v %v", rev, cl.result, cl.err)
		}
		fmt.Println("ack", rev)
		if rev%5 == 0 {
			if w := c.idle(); w != nil {
				if err := d.save(w); err != nil {
					return err
				}
			}
		}
		if rev%7 == 0 {
			snap, err := c.snapshot()
			if err != nil {
				return err
			}
			if err := c.restore(snap); err != nil {
				return err
			}
			if err := d.save(c.save(true, true)); err != nil {
				return err
			}
		}
	}
}

// crashBinary builds this test binary with its failpoints.
func crashBinary(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	check(t, err)
	src := t.TempDir()
	run := func(dir, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(root, f))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(src, f), b, 0o644))
	}
	for _, d := range []string{"meta", "raftnode"} {
		check(t, os.CopyFS(filepath.Join(src, d), os.DirFS(filepath.Join(root, d))))
	}
	run(src, "go", "run", "go.etcd.io/gofail", "enable", "raftnode", "raftnode/kv")
	run(src, "go", "test", "-c", "-o", "crash.test", "./raftnode")
	return filepath.Join(src, "crash.test")
}

// TestCrashAtEveryTransaction kills a real process at each failpoint around a
// transaction, again and again in one folder. What it acknowledged is there
// afterwards, and the store is never damaged.
func TestCrashAtEveryTransaction(t *testing.T) {
	binary := crashBinary(t)
	kills := 12
	if testing.Short() {
		kills = 6
	}
	for _, point := range []string{"kvBeforeCommit", "kvAfterCommit", "raftBeforeSave", "raftAfterSave"} {
		t.Run(point, func(t *testing.T) {
			dir := t.TempDir()
			var acked, before meta.Rev
			for i := range kills {
				got := crashOnce(t, binary, dir, point, 3+i*2)
				acked = max(acked, got)
				c, store, err := crashCore(dir)
				check(t, err)
				prefix := meta.Rev(0)
				if z := c.st.Zones[simZone]; z != nil {
					prefix = z.Prefix
				}
				if prefix < max(acked, before) || prefix > max(acked, before, 1)+1 {
					t.Fatalf("kill %d: the prefix is %d after %d, %d was acknowledged", i, prefix, before, acked)
				}
				before = prefix
				check(t, store.Abandon())
			}
			if acked < meta.Rev(kills)/2 {
				t.Errorf("only %d revisions in %d runs: the kills came too early", acked, kills)
			}
		})
	}
}

// crashOnce runs the process until it dies at a point's nth passage, and returns
// the last revision that it acknowledged.
func crashOnce(t *testing.T, binary, dir, point string, nth int) meta.Rev {
	t.Helper()
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, "GOFAIL_FAILPOINTS="+point+"="+strconv.Itoa(nth)+"*off->panic")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(errs.String(), "failpoint panic") {
		t.Fatalf("it did not die at %s: %v\n%s", point, err, errs.String())
	}
	var last meta.Rev
	for sc := bufio.NewScanner(&out); sc.Scan(); {
		n, err := strconv.ParseInt(strings.TrimPrefix(sc.Text(), "ack "), 10, 64)
		check(t, err)
		last = meta.Rev(n)
	}
	return last
}

// TestDisksAgree: the store in a file and the simulation's hold the same after
// the same writes.
func TestDisksAgree(t *testing.T) {
	for _, seed := range seeds(t, 10) {
		s := newSim(seed, voters(3)...)
		s.keep = 4
		store, err := kv.OpenTemp(t.TempDir())
		check(t, err)
		real := boltDisk{store}
		n := s.each()[1]
		n.disk.also = func(w *write) { check(t, real.save(w)) }
		im, err := n.disk.load()
		check(t, err)
		check(t, real.save(&write{hard: im.hard, conf: im.conf, before: im.before, rows: im.rows, reset: true}))
		s.chaosOf(150, func(k int) bool { return k < 45 || k > 53 }) // no power loss: the file has no such thing here
		got, err := real.load()
		check(t, err)
		want, err := n.disk.load()
		check(t, err)
		slices.SortFunc(got.rows, func(a, b state.Row) int { return bytes.Compare(a.Key, b.Key) })
		g, w := imageText(got), imageText(want)
		if g != w {
			t.Errorf("seed %d: in the file\n%s\nin memory\n%s", seed, g, w)
		}
		check(t, store.Close())
	}
}

// imageText shows an image.
func imageText(im *image) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hard %v conf %v before %v\n", im.hard, im.conf, im.before)
	for _, e := range im.entries {
		fmt.Fprintf(&b, "entry %d %d %x\n", e.GetIndex(), e.GetTerm(), e.GetData())
	}
	for _, r := range im.rows {
		fmt.Fprintf(&b, "row %q %x\n", r.Key, r.Value)
	}
	return b.String()
}
