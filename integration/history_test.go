package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func decode(t testing.TB, text string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	return out
}

// record is a line of `nexusfs log --json`.
type record struct {
	Rev     int64
	Op      string
	Path    string
	NewPath string `json:"new_path"`
	Version int64
	Size    int64
	Actor   struct {
		UID   uint32
		PID   uint32
		Exe   string
		Agent string `json:"declared_agent"`
		Task  string `json:"declared_task"`
	}
	Before, After map[string]any
}

func records(t *testing.T, m *harness.Mount, args ...string) []record {
	t.Helper()
	var out []record
	text := m.CLI(append([]string{"log", "--json"}, args...)...)
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		var r record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			t.Fatalf("log --json: %v\n%s", err, sc.Text())
		}
		out = append(out, r)
	}
	return out
}

// TestI9EveryChangeHasItsRecord: one record for each operation, in revision
// order without gaps, with the kernel-attested actor and the declared agent.
func TestI9EveryChangeHasItsRecord(t *testing.T) {
	m := harness.New(t, harness.Options{Args: []string{"--agent", "tester", "--task", "t-1"}})
	since := fmt.Sprint(int64(m.Status()["revision"].(float64)))
	p := func(s string) string { return filepath.Join(m.Dir, s) }
	mkdir(t, p("d"))
	write(t, p("d/f"), []byte("one"))
	must(t, os.Rename(p("d/f"), p("d/g")))
	must(t, unix.Chmod(p("d/g"), 0o600))
	must(t, os.Link(p("d/g"), p("h")))
	must(t, os.Symlink("h", p("l")))
	must(t, unix.Setxattr(p("h"), "user.a", []byte("1"), 0))
	must(t, os.Truncate(p("h"), 1))
	must(t, os.Remove(p("l")))
	must(t, os.Remove(p("d/g")))
	must(t, os.Remove(p("d")))
	got := records(t, m, "--since", since, m.Dir)
	var ops []string
	self, err := os.Executable()
	must(t, err)
	for i, r := range got {
		ops = append(ops, r.Op)
		if i > 0 && r.Rev != got[i-1].Rev+1 {
			t.Errorf("revision %d follows %d", r.Rev, got[i-1].Rev)
		}
		if int(r.Actor.PID) != os.Getpid() || r.Actor.Exe != self || int(r.Actor.UID) != os.Getuid() || r.Actor.Agent != "tester" || r.Actor.Task != "t-1" {
			t.Errorf("actor of %s: %+v, want pid %d exe %s agent tester task t-1", r.Op, r.Actor, os.Getpid(), self)
		}
	}
	want := []string{"mkdir", "create", "write", "rename", "chmod", "link", "symlink", "setxattr", "truncate", "unlink", "unlink", "rmdir"}
	for i, op := range want {
		if op == "chmod" {
			want[i] = "setattr"
		}
	}
	if !slices.Equal(ops, want) {
		t.Errorf("records: got %q, want %q", ops, want)
	}
	count := strings.TrimSpace(m.CLI("sql", m.Dir, "select count(*) from operations where revision > "+since))
	if !strings.Contains(count, fmt.Sprint(len(want))) {
		t.Errorf("count of operations by SQL: %q, want %d", count, len(want))
	}
	// Another process's operation carries that process's executable.
	harness.Run(t, m.Dir, "touch", "touched")
	last := records(t, m, "--since", fmt.Sprint(got[len(got)-1].Rev), m.Dir)
	if len(last) == 0 || !strings.HasSuffix(last[0].Actor.Exe, "touch") && !strings.HasSuffix(last[0].Actor.Exe, "coreutils") {
		t.Errorf("record of touch: %+v", last)
	}
}

func TestVersionsAndRestore(t *testing.T) {
	m := harness.New(t, harness.Options{})
	p := filepath.Join(m.Dir, "notes")
	var contents [][]byte
	for i := range 5 {
		data := pattern(uint64(i), 1+i*30000)
		contents = append(contents, data)
		write(t, p, data)
	}
	versions := decode(t, m.CLI("versions", "--json", p))["versions"].([]any)
	var newest float64
	found := 0
	for _, v := range versions {
		n := v.(map[string]any)["version"].(float64)
		newest = max(newest, n)
		got := m.CLI("cat", fmt.Sprintf("%s@%d", p, int(n)))
		if i := slices.IndexFunc(contents, func(c []byte) bool { return string(c) == got }); i >= 0 {
			found++
			wantContent(t, fmt.Sprintf("%s/.nexusfs/versions/notes/%d", m.Dir, int(n)), contents[i])
		} else if len(got) != 0 {
			t.Errorf("version %d has %d bytes that were never written", int(n), len(got))
		}
	}
	if found != len(contents) {
		t.Errorf("%d of %d contents are found among the versions %v", found, len(contents), versions)
	}
	_, err := os.ReadFile(fmt.Sprintf("%s/.nexusfs/versions/notes/%d", m.Dir, int(newest)+5))
	wantErrno(t, "a version that never was", err, unix.ENOENT)
	if err := os.WriteFile(fmt.Sprintf("%s/.nexusfs/versions/notes/%d", m.Dir, int(newest)), []byte("x"), 0); err == nil {
		t.Errorf("a version can be written")
	}
	// Going back makes a new version and loses nothing.
	first := firstWith(t, m, p, versions, contents[1])
	m.CLI("restore", fmt.Sprintf("%s@%d", p, first))
	wantContent(t, p, contents[1])
	if got := m.CLI("cat", "--version", fmt.Sprint(int(newest)), p); got != string(contents[4]) {
		t.Errorf("the version before the restore is not what it was")
	}
	// A name that exists as written wins over @N.
	literal := p + "@2"
	write(t, literal, []byte("I am a file"))
	if got := m.CLI("cat", literal); got != "I am a file" {
		t.Errorf("cat of a file named with @: %.20q", got)
	}
}

func firstWith(t *testing.T, m *harness.Mount, p string, versions []any, want []byte) int {
	t.Helper()
	for _, v := range versions {
		n := int(v.(map[string]any)["version"].(float64))
		if m.CLI("cat", fmt.Sprintf("%s@%d", p, n)) == string(want) {
			return n
		}
	}
	t.Fatal("no version holds the content")
	return 0
}

func TestDeletedAndRestored(t *testing.T) {
	m := harness.New(t, harness.Options{})
	d := mkdir(t, filepath.Join(m.Dir, "docs"))
	odd := "new\nline \x1b[31m"
	write(t, filepath.Join(d, "report"), []byte("precious"))
	write(t, filepath.Join(d, odd), []byte("odd"))
	must(t, os.Remove(filepath.Join(d, "report")))
	must(t, os.Remove(filepath.Join(d, odd)))
	text := m.CLI("deleted", d)
	if !strings.Contains(text, "report") || strings.Contains(text, "\x1b") || strings.Contains(text, odd) {
		t.Errorf("deleted: %q", text)
	}
	m.CLI("restore", filepath.Join(d, "report"))
	wantContent(t, filepath.Join(d, "report"), []byte("precious"))
	m.CLI("restore", filepath.Join(d, odd), "--as", "plain")
	wantContent(t, filepath.Join(d, "plain"), []byte("odd"))
	m.Remount()
	wantContent(t, filepath.Join(d, "report"), []byte("precious"))
	res := m.TryCLI("restore", filepath.Join(d, "never-was"))
	if res.Code != 6 {
		t.Errorf("restore of nothing: code %d, %q", res.Code, res.Stderr)
	}
	must(t, os.RemoveAll(d))
	m.CLI("restore", "--recursive", d)
	wantContent(t, filepath.Join(d, "report"), []byte("precious"))
}

// TestListingsEscapeNames: no listing prints a control character of a name.
func TestListingsEscapeNames(t *testing.T) {
	m := harness.New(t, harness.Options{})
	name := "a\nb\x1b]0;title\x07\xff"
	p := filepath.Join(m.Dir, name)
	write(t, p, []byte("1"))
	write(t, p, []byte("2"))
	for _, args := range [][]string{
		{"log", m.Dir}, {"log", p}, {"versions", p}, {"sql", m.Dir, "select path from files"}, {"status", m.Dir},
	} {
		out := m.CLI(args...)
		if strings.ContainsAny(out, "\x1b\x07") {
			t.Errorf("%v prints a terminal escape: %q", args[0], out)
		}
	}
	must(t, os.Remove(p))
	if out := m.CLI("deleted", m.Dir); strings.ContainsAny(out, "\x1b\x07") {
		t.Errorf("deleted prints a terminal escape: %q", out)
	}
	if res := m.TryCLI("cat", p+"@99"); res.Code == 0 || strings.ContainsAny(res.Stderr, "\x1b\x07") {
		t.Errorf("an error prints a terminal escape: %q", res.Stderr)
	}
}

// TestSQL: documented views, full paths, read-only.
func TestSQL(t *testing.T) {
	m := harness.New(t, harness.Options{})
	must(t, os.MkdirAll(filepath.Join(m.Dir, "a/b"), 0o755))
	write(t, filepath.Join(m.Dir, "a/b/big"), make([]byte, 5000))
	write(t, filepath.Join(m.Dir, "a/small"), make([]byte, 5))
	out := m.CLI("sql", m.Dir, "select path, size from files where size > 1000")
	if !strings.Contains(out, "/a/b/big") || !strings.Contains(out, "5000") || strings.Contains(out, "small") {
		t.Errorf("files: %q", out)
	}
	for _, view := range []string{"files", "history", "operations"} {
		if got := m.CLI("sql", m.Dir, "select count(*) from "+view); got == "" {
			t.Errorf("view %s gives nothing", view)
		}
	}
	for _, bad := range []string{"delete from files", "drop view files", "insert into operations(revision) values(1)", "pragma journal_mode=delete", "attach '/tmp/x.db' as x", "select nonsense", ""} {
		if res := m.TryCLI("sql", m.Dir, bad); res.Code == 0 {
			t.Errorf("sql %q succeeds: %q", bad, res.Stdout)
		}
	}
	write(t, filepath.Join(m.Dir, "after"), []byte("still works"))
	must(t, m.Stop())
	if out := m.CLI("sql", m.Store, "select path from files where path = '/after'"); !strings.Contains(out, "/after") {
		t.Errorf("sql on an unmounted store: %q", out)
	}
	m.Restart()
}

// TestP1Versions: a close that changed content makes a version; fsyncs of an
// open handle move one on; reading and closing makes none.
func TestP1Versions(t *testing.T) {
	m := harness.New(t, harness.Options{})
	p := filepath.Join(m.Dir, "f")
	count := func() int { return len(decode(t, m.CLI("versions", "--json", p))["versions"].([]any)) }
	write(t, p, []byte("one"))
	first := count()
	wantContent(t, p, []byte("one"))
	r := open(t, p, os.O_RDWR)
	must(t, r.Close())
	if n := count(); n != first {
		t.Errorf("opening and closing made a version: %d, were %d", n, first)
	}
	f := open(t, p, os.O_WRONLY)
	for i := range 10 {
		_, err := f.WriteAt([]byte{byte(i)}, int64(i))
		must(t, err)
		must(t, f.Sync())
	}
	must(t, f.Close())
	if n := count(); n != first+1 {
		t.Errorf("ten fsyncs and a close made %d versions, want 1", n-first)
	}
	must(t, os.Truncate(p, 2))
	if n := count(); n != first+2 {
		t.Errorf("a truncate by path made %d versions, want 1", n-first-1)
	}
	// stat shows staged data at once, also by another handle.
	g := open(t, p, os.O_WRONLY)
	_, err := g.WriteAt(make([]byte, 100), 50)
	must(t, err)
	if st := stat(t, p); st.Size != 150 {
		t.Errorf("stat shows %d bytes of staged data, want 150", st.Size)
	}
}

// TestP26Retention: what a mount is told to keep, gc keeps, and no more.
func TestP26Retention(t *testing.T) {
	m := harness.New(t, harness.Options{Args: []string{"-o", "history=3v"}})
	p := filepath.Join(m.Dir, "f")
	for i := range 10 {
		write(t, p, pattern(uint64(i), 100000))
	}
	m.CLI("gc", m.Dir)
	n := len(decode(t, m.CLI("versions", "--json", p))["versions"].([]any))
	if n < 1 || n > 4 {
		t.Errorf("%d versions are kept, want about 3", n)
	}
	wantContent(t, p, pattern(9, 100000))
	m.CLI("purge", p)
	wantContent(t, p, pattern(9, 100000))
}

// TestCopySharesExtents: copy_file_range copies no bytes.
func TestCopySharesExtents(t *testing.T) {
	m := harness.New(t, harness.Options{})
	src := filepath.Join(m.Dir, "src")
	write(t, src, pattern(1, 32<<20))
	m.CLI("sync", m.Dir)
	before := diskUse(t, m.Content)
	in, out := open(t, src, os.O_RDONLY), open(t, filepath.Join(m.Dir, "dst"), os.O_RDWR|os.O_CREATE)
	copyRange(t, in, 0, out, 0, 32<<20)
	must(t, out.Close())
	m.CLI("sync", m.Dir)
	if grown := diskUse(t, m.Content) - before; grown > 8<<20 {
		t.Errorf("a copy of 32 MiB takes %d bytes on the disk", grown)
	}
	wantContent(t, filepath.Join(m.Dir, "dst"), pattern(1, 32<<20))
}

// diskUse sums the blocks of everything below dir.
func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var total int64
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil {
			total += st.Blocks * 512
		}
		return err
	}))
	return total
}

// TestRemoveTreeByCommand: rmr removes what rm -r would, the kernel knows at
// once, and each name has its record and can be brought back.
func TestRemoveTreeByCommand(t *testing.T) {
	m := harness.New(t, harness.Options{})
	top := filepath.Join(m.Dir, "build")
	for d := range 5 {
		dir := filepath.Join(top, fmt.Sprintf("d%d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 20 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f\n%d", f)), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept := open(t, filepath.Join(top, "d0", "f\n0"), os.O_RDONLY)
	if out := m.CLI("rmr", top); !strings.Contains(out, "106 names removed") {
		t.Errorf("rmr says %q", out)
	}
	if _, err := os.Lstat(top); !os.IsNotExist(err) {
		t.Errorf("the kernel still knows the directory: %v", err)
	}
	if b, err := io.ReadAll(kept); string(b) != "x" || err != nil {
		t.Errorf("a file that is open reads %q, %v", b, err)
	}
	out := m.CLI("sql", "--json", m.Dir, "select count(*) as n from operations where kind in ('unlink','rmdir')")
	if n := decode(t, out)["n"]; n != 106.0 {
		t.Errorf("%v records of 106 names", n)
	}
	if r := m.TryCLI("rmr", top); r.Code == 0 {
		t.Error("removing what is gone succeeds")
	}
}
