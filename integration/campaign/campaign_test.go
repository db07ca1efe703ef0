package campaign

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, nil)) }

const workers = 4

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// often is how many times something is done in an ordinary run and in a long one.
func often(ordinary, long uint64) uint64 {
	if harness.Long() > 0 {
		return long
	}
	return ordinary
}

// crew is the workers of a campaign, whose ledgers outlive the daemons.
type crew struct {
	t     *testing.T
	m     *harness.Mount
	all   []*worker
	acked int
}

func newCrew(t *testing.T, m *harness.Mount, seed uint64) *crew {
	c := &crew{t: t, m: m}
	for i := range workers {
		w := newWorker(filepath.Join(m.Dir, fmt.Sprint("w", i)), seed+uint64(i))
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c.all = append(c.all, w)
	}
	return c
}

// work lets all workers work until the daemon dies; end makes it die.
func (c *crew) work(end func()) {
	c.t.Helper()
	errs := make([]error, len(c.all))
	var wg sync.WaitGroup
	for i, w := range c.all {
		wg.Go(func() { errs[i] = w.run() })
	}
	end()
	wg.Wait()
	for i, err := range errs {
		if !diesWithDaemon(err) {
			c.t.Errorf("worker %d: %v", i, err)
		}
	}
}

// diesWithDaemon lists what a system call answers when its daemon is gone.
func diesWithDaemon(err error) bool {
	for _, e := range []unix.Errno{unix.ENOTCONN, unix.ECONNABORTED, unix.EIO, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// verify checks every ledger after a remount.
func (c *crew) verify(what string) {
	c.t.Helper()
	for i, w := range c.all {
		if _, err := w.verify(); err != nil {
			c.t.Fatalf("%s: worker %d, after %d acknowledged operations, the last ones:\n  %s\n%v",
				what, i, w.done, strings.Join(w.recent, "\n  "), err)
		}
	}
	c.m.CLI("fsck", c.m.Dir)
	c.acked = 0
	for _, w := range c.all {
		c.acked += w.done
	}
}

// TestKill9Campaign kills the daemon at random moments under load.
func TestKill9Campaign(t *testing.T) {
	seed := number(t, "NEXUSFS_SEED", uint64(time.Now().UnixNano()))
	kills := number(t, "NEXUSFS_KILLS", often(15, 500))
	rnd := rand.New(rand.NewPCG(seed, 9))
	m := harness.New(t, harness.Options{})
	c := newCrew(t, m, seed)
	t.Logf("seed %d", seed)
	for k := range kills {
		pause := time.Duration(rnd.Int64N(int64(250 * time.Millisecond)))
		c.work(func() {
			time.Sleep(pause) // the random moment
			m.Kill9()
		})
		if t.Failed() {
			t.Fatalf("kill %d, seed %d", k, seed)
		}
		m.Restart()
		c.verify(fmt.Sprintf("kill %d (after %v), seed %d", k, pause, seed))
	}
	t.Logf("%d kills, %d acknowledged operations, every one found", kills, c.acked)
}

// TestKillWhileMounting kills daemons before they serve: the process is gone,
// and the next mount is as if nothing had been.
func TestKillWhileMounting(t *testing.T) {
	m := harness.New(t, harness.Options{})
	must(t, os.WriteFile(filepath.Join(m.Dir, "f"), []byte("x"), 0o644))
	must(t, m.Stop())
	for k := range number(t, "NEXUSFS_KILLS", often(60, 500)) {
		must(t, m.Launch())
		time.Sleep(time.Duration(k*7%61) * time.Millisecond) // moments all over the start
		m.Kill9()
	}
	m.Restart()
	if data, err := os.ReadFile(filepath.Join(m.Dir, "f")); err != nil || string(data) != "x" {
		t.Errorf("got %q, %v", data, err)
	}
}

// TestKillAtFailpointsUnderLoad kills the daemon while it is held at each
// failpoint, after a random number of passes, with all workers at work. Where
// the load does not get to a failpoint the moment is as random as any.
func TestKillAtFailpointsUnderLoad(t *testing.T) {
	points := failpoints(t)
	seed := number(t, "NEXUSFS_SEED", uint64(time.Now().UnixNano()))
	kills := int(number(t, "NEXUSFS_KILLS", often(uint64(min(15, len(points))), 500)))
	rnd := rand.New(rand.NewPCG(seed, 10))
	ctl := newControl(t)
	m := harness.New(t, harness.Options{Failpoints: true, Env: []string{ctl.env()}})
	c := newCrew(t, m, seed)
	t.Logf("seed %d", seed)
	reached := map[string]int{}
	order := rnd.Perm(len(points))
	for k := range kills {
		point, passes := points[order[k%len(points)]], rnd.IntN(30)
		ctl.hold(point, passes)
		c.work(func() {
			if ctl.held(point, passes, time.Second, nil) {
				reached[point]++
			}
			m.Kill9()
		})
		what := fmt.Sprintf("kill %d at %s after %d passes, seed %d", k, point, passes, seed)
		if t.Failed() {
			t.Fatal(what)
		}
		m.Restart()
		c.verify(what)
	}
	t.Logf("%d kills, %d acknowledged operations, every one found; killed at these failpoints: %v", kills, c.acked, reached)
}

// TestLedger runs a worker on a plain filesystem: the ledger itself is right.
func TestLedger(t *testing.T) {
	w := newWorker(harness.Scratch(t), number(t, "NEXUSFS_SEED", uint64(time.Now().UnixNano())))
	for w.done < 1500 {
		op := w.choose()
		if op == nil {
			continue
		}
		must(t, w.perform(op))
		if w.done%100 == 0 {
			if _, err := w.verify(); err != nil {
				t.Fatalf("%v; the last operations: %q", err, w.recent)
			}
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
