package campaign

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"nexusfs/integration/harness"
)

// TestFailpointMatrix crosses failpoints with operations: the daemon is killed
// while it is held at the point and one operation is under way. Afterwards that
// operation is wholly there or wholly absent, and all earlier ones are there.
// An ordinary run takes a sample, a long one (NEXUSFS_LONG) and one that writes
// the table (NEXUSFS_MATRIX) take all.
func TestFailpointMatrix(t *testing.T) {
	points := failpoints(t)
	all := harness.Long() > 0 || os.Getenv("NEXUSFS_MATRIX") != ""
	ctl := newControl(t)
	m := harness.New(t, harness.Options{Failpoints: true, Env: []string{ctl.env()}})
	x := &matrix{t: t, m: m, control: ctl, crew: newCrew(t, m, 1), cells: map[[2]string]string{}}
	x.crew.all = x.crew.all[:1]
	seed := number(t, "NEXUSFS_SEED", uint64(time.Now().UnixNano()))
	t.Logf("seed %d", seed)
	sample := rand.New(rand.NewPCG(seed, 11))
	for _, point := range points {
		for _, kind := range opKinds {
			if all || sample.IntN(4) == 0 {
				x.cell(point, kind)
			}
		}
	}
	m.CLI("fsck", m.Dir)
	must(t, x.write(points, os.Getenv("NEXUSFS_MATRIX")))
}

type matrix struct {
	t       *testing.T
	m       *harness.Mount
	control *control
	crew    *crew
	cells   map[[2]string]string
}

// cell tries a pair until the operation passes the point: contents of some
// sizes only pass some points.
func (x *matrix) cell(point, kind string) {
	x.t.Helper()
	tries := 1
	if slices.Contains([]string{"write", "rewrite", "overwrite-fsync", "append"}, kind) {
		tries = 10
	}
	key := [2]string{point, kind}
	for x.cells[key] = "-"; x.cells[key] == "-" && tries > 0; tries-- {
		x.cells[key] = x.attempt(point, kind)
	}
}

// attempt prepares a folder in which an operation of the kind can be done, arms
// the failpoint, does the operation, and looks at what is left.
func (x *matrix) attempt(point, kind string) string {
	x.t.Helper()
	w := x.crew.all[0]
	if len(w.acked.names) > manyNames {
		must(x.t, w.empty())
	}
	op := makers[kind](w)
	for op == nil { // makers choose at random and may miss what there is
		for _, prepare := range []string{"mkdir", "write", "symlink", "write", "mkdir"} {
			must(x.t, w.perform(makers[prepare](w)))
		}
		op = makers[kind](w)
	}
	x.control.hold(point, 0)
	done := make(chan struct{})
	var err error
	go func() {
		err = w.perform(op)
		close(done)
	}()
	if !x.control.held(point, 0, 20*time.Second, done) {
		<-done
		must(x.t, err)
		x.control.release(point)
		return "-"
	}
	x.m.Kill9()
	<-done
	if err != nil && !diesWithDaemon(err) {
		x.t.Fatalf("held at %s during %s: %v", point, kind, err)
	}
	acknowledged := err == nil
	x.m.Restart()
	became, verr := w.verify()
	if verr != nil {
		x.t.Fatalf("killed at %s during %s: %v", point, kind, verr)
	}
	if acknowledged {
		return "acked"
	}
	return became
}

// write prints the table as markdown, into a file when one is named.
func (x *matrix) write(points []string, path string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "| failpoint | %s |\n|---|%s\n", strings.Join(opKinds, " | "), strings.Repeat("---|", len(opKinds)))
	for _, point := range points {
		fmt.Fprintf(&b, "| `%s` |", point)
		for _, kind := range opKinds {
			fmt.Fprintf(&b, " %s |", x.cells[[2]string{point, kind}])
		}
		b.WriteString("\n")
	}
	b.WriteString("\n`-`: the operation does not pass this point. What became of the operation that was not acknowledged:\n" +
		"`absent`, `there`, or `begun`: its open(2) made or emptied the file and was answered, its bytes are absent. `acked`: the daemon was killed after the answer, and the operation was there.\n")
	if path == "" {
		x.t.Logf("a sample of the matrix:\n%s", b.String())
		return nil
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
