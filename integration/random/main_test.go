package random

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"nexusfs/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, nil)) }

// place is where a case runs. remount and crash are nil in a plain directory.
type place struct {
	dir     string
	remount func() // in order, everything closed before
	crash   func() // kill -9 of the daemon and mount again
}

// tester is one kind of random case: steps are data, so that a failing list of
// them can be cut down and played again.
type tester[S fmt.Stringer] struct {
	steps func(rnd *rand.Rand, p *place) []S
	play  func(p *place, dir string, steps []S) error // nil: model and filesystem agreed throughout
}

// run plays cases until the time is used up.
func (x tester[S]) run(t *testing.T, p *place, budget time.Duration) {
	t.Helper()
	seed, fixed := seedFor(t)
	end := time.Now().Add(budget)
	cases := 0
	for ; time.Now().Before(end); cases++ {
		steps := x.steps(rand.New(rand.NewPCG(seed, 1)), p)
		if err := x.once(p, steps); err != nil {
			small := x.shrink(p, steps, time.Now().Add(time.Minute))
			t.Fatalf("seed %d: %v\nsmallest failing list (%d of %d steps):\n%s\nwhich fails with: %v",
				seed, err, len(small), len(steps), list(small), x.once(p, small))
		}
		if fixed {
			break
		}
		seed++
	}
	t.Logf("%d cases agreed, the last with seed %d", cases, seed-1)
}

func seedFor(t *testing.T) (seed uint64, fixed bool) {
	if s := os.Getenv("NEXUSFS_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("NEXUSFS_SEED: %v", err)
		}
		return seed, true
	}
	return uint64(time.Now().UnixNano()), false
}

// once plays a list in a folder of its own.
func (x tester[S]) once(p *place, steps []S) error {
	dir, err := os.MkdirTemp(p.dir, "case-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return x.play(p, dir, steps)
}

// shrink drops steps as long as the rest still fails.
func (x tester[S]) shrink(p *place, steps []S, until time.Time) []S {
	for n := len(steps) / 2; n > 0; n /= 2 {
		for i := 0; i+n <= len(steps) && time.Now().Before(until); {
			rest := append(append([]S{}, steps[:i]...), steps[i+n:]...)
			if x.once(p, rest) != nil {
				steps = rest
			} else {
				i += n
			}
		}
	}
	return steps
}

func list[S fmt.Stringer](steps []S) string {
	var b strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&b, "%4d %s\n", i, s)
	}
	return b.String()
}

// everywhere runs a tester on a plain filesystem, briefly, and on nexusfs.
func everywhere[S fmt.Stringer](t *testing.T, x tester[S]) {
	t.Helper()
	if dir := os.Getenv("NEXUSFS_TEST_DIR"); dir != "" {
		x.run(t, &place{dir: dir}, max(5*time.Second, harness.Long()))
		return
	}
	t.Run("control", func(t *testing.T) {
		x.run(t, &place{dir: harness.Scratch(t)}, time.Second)
	})
	t.Run("nexusfs", func(t *testing.T) {
		m := harness.New(t, harness.Options{})
		p := &place{dir: m.Dir, remount: m.Remount, crash: func() { m.Kill9(); m.Restart() }}
		x.run(t, p, max(6*time.Second, harness.Long()))
	})
}
