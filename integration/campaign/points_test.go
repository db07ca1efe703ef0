package campaign

import (
	"bufio"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nexusfs/integration/harness"
)

var pointLine = regexp.MustCompile(`^\s*//\s*gofail:\s*var\s+(\w+)\b`)

// failpoints finds the names of the failpoints in the sources. Those of raftnode
// are passed by its own crash tests: a mount of one machine does not.
func failpoints(t *testing.T) []string {
	t.Helper()
	harness.NeedMount(t)
	var out []string
	root := harness.Root()
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && p != root || d.Name() == "build" || d.Name() == "integration" || d.Name() == "raftnode") {
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
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if found := pointLine.FindStringSubmatch(sc.Text()); found != nil {
				out = append(out, found[1])
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

// control speaks to the failpoints of a running daemon. A failpoint is used to
// hold the daemon at a point: it sleeps there until kill -9 comes, so that no
// deferred function runs and no panic is caught.
type control struct {
	t       *testing.T
	address string
}

func newControl(t *testing.T) *control {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return &control{t, l.Addr().String()}
}

// env is what the daemon needs in its environment.
func (c *control) env() string { return "GOFAIL_HTTP=" + c.address }

// hold makes the daemon stop at a point, after some passes.
func (c *control) hold(point string, passes int) {
	c.t.Helper()
	c.ask(http.MethodPut, point, strconv.Itoa(passes)+`*off->sleep("10m")`)
}

// release lets a point pass again.
func (c *control) release(point string) {
	c.t.Helper()
	c.ask(http.MethodPut, point, "off")
}

// count says how often the point was passed or is being held at since hold.
func (c *control) count(point string) int {
	c.t.Helper()
	n, err := strconv.Atoi(c.ask(http.MethodGet, point+"/count", ""))
	must(c.t, err)
	return n
}

// held waits until the daemon is held at the point, at most limit, or until
// done is closed. Done is looked at first.
func (c *control) held(point string, passes int, limit time.Duration, done <-chan struct{}) bool {
	c.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c.count(point) > passes {
			return true
		}
		select {
		case <-done:
			return c.count(point) > passes
		default:
		}
	}
	return false
}

func (c *control) ask(method, path, body string) string {
	c.t.Helper()
	req, err := http.NewRequest(method, "http://"+c.address+"/"+path, strings.NewReader(body))
	must(c.t, err)
	resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		c.t.Fatalf("failpoint %s %s: %v", path, body, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		c.t.Fatalf("failpoint %s %s: %s %s %v", path, body, resp.Status, text, err)
	}
	return string(text)
}
