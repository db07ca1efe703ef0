package campaign

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"nexusfs/integration/harness"
)

var pointLine = regexp.MustCompile(`^\s*//\s*gofail:\s*var\s+(\w+)\b`)

// failpoints finds the failpoints in the sources: import path and name.
func failpoints(t *testing.T) []string {
	t.Helper()
	harness.NeedMount(t)
	var out []string
	root := harness.Root()
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && p != root || d.Name() == "build" || d.Name() == "integration") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		rel, _ := filepath.Rel(root, filepath.Dir(p))
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if found := pointLine.FindStringSubmatch(sc.Text()); found != nil {
				out = append(out, "nexusfs/"+rel+"/"+found[1])
			}
		}
		return nil
	}))
	if len(out) == 0 {
		t.Fatal("the sources have no failpoints")
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestFailpointMatrix crosses failpoints with operations: the daemon dies at
// the point while one operation is under way, and afterwards that operation is
// wholly there or wholly absent, and all earlier ones are there. An ordinary
// run takes a sample, a long one (NEXUSFS_LONG) and one that writes the table
// (NEXUSFS_MATRIX) take all.
func TestFailpointMatrix(t *testing.T) {
	points := failpoints(t)
	all := harness.Long() > 0 || os.Getenv("NEXUSFS_MATRIX") != ""
	address := freeAddress(t)
	m := harness.New(t, harness.Options{Failpoints: true, Env: []string{"GOFAIL_HTTP=" + address}})
	x := &matrix{t: t, m: m, address: address, crew: newCrew(t, m, 1), cells: map[[2]string]string{}}
	x.crew.all = x.crew.all[:1]
	for i, point := range points {
		for j, kind := range opKinds {
			if all || (i*7+j*3)%29 == 0 {
				x.cell(point, kind)
			}
		}
	}
	must(t, x.write(points, os.Getenv("NEXUSFS_MATRIX")))
}

type matrix struct {
	t       *testing.T
	m       *harness.Mount
	address string
	crew    *crew
	cells   map[[2]string]string
}

// cell prepares a folder in which an operation of the kind can be done, arms
// the failpoint, does it, and looks at what is left.
func (x *matrix) cell(point, kind string) {
	x.t.Helper()
	w := x.crew.all[0]
	for _, prepare := range []string{"mkdir", "write", "symlink", "write"} {
		must(x.t, w.perform(makers[prepare](w)))
	}
	var op *operation
	for op == nil { // makers choose at random and may miss what there is
		op = makers[kind](w)
	}
	x.arm(point, "panic")
	err := w.perform(op)
	if err == nil && !diedWithin(x.m, 20*time.Millisecond) {
		x.arm(point, "off")
		x.cells[[2]string{point, kind}] = "-"
		return
	}
	if err != nil && !diesWithDaemon(err) {
		x.t.Fatalf("%s during %s: %v", point, kind, err)
	}
	acknowledged := err == nil
	x.m.Wait(10 * time.Second)
	x.m.Restart()
	applied, verr := w.verify()
	if verr != nil {
		x.t.Fatalf("%s during %s: %v", point, kind, verr)
	}
	switch {
	case acknowledged:
		x.cells[[2]string{point, kind}] = "acked"
	case applied:
		x.cells[[2]string{point, kind}] = "there"
	default:
		x.cells[[2]string{point, kind}] = "absent"
	}
	x.m.CLI("fsck", x.m.Dir)
}

// arm sets a failpoint of the running daemon.
func (x *matrix) arm(point, term string) {
	x.t.Helper()
	req, err := http.NewRequest(http.MethodPut, "http://"+x.address+"/"+point, strings.NewReader(term))
	must(x.t, err)
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		x.t.Fatalf("arm %s: %v", point, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		x.t.Fatalf("arm %s: %s", point, resp.Status)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// write prints the table as markdown, into a file when one is named.
func (x *matrix) write(points []string, path string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "| failpoint | %s |\n|---|%s\n", strings.Join(opKinds, " | "), strings.Repeat("---|", len(opKinds)))
	for _, point := range points {
		fmt.Fprintf(&b, "| `%s` |", strings.TrimPrefix(point, "nexusfs/"))
		for _, kind := range opKinds {
			fmt.Fprintf(&b, " %s |", x.cells[[2]string{point, kind}])
		}
		b.WriteString("\n")
	}
	b.WriteString("\n`-`: the operation does not pass this point. `absent`, `there`: what became of the unacknowledged operation. " +
		"`acked`: the daemon died after the answer, and the operation was there.\n")
	if path == "" {
		x.t.Logf("a sample of the matrix:\n%s", b.String())
		return nil
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
