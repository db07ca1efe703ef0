package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nexusfs/meta"
)

// run is command with something on standard input and the two outputs apart.
func run(t testing.TB, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, getenv: env("NEXUSFS_CONFIG", emptyConfig(t))}
	code = a.run(args)
	return out.String(), errs.String(), code
}

// comparable leaves out of a dump what another store must have otherwise: its
// own numbers, and times that nobody can set.
func comparable(t testing.TB, dump string) string {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(dump) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		for _, key := range []string{"ino", "ctime", "btime", "revision", "root"} {
			delete(e, key)
		}
		out.Write(append(mustJSON(e), '\n'))
	}
	return out.String()
}

func mustDump(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, code := run(t, "", append([]string{"dump"}, args...)...)
	if code != 0 {
		t.Fatalf("dump %v: %d %s", args, code, errs)
	}
	return out
}

// TestDumpAndLoadGiveTheSameTree: through a daemon and without one; a second
// load changes nothing.
func TestDumpAndLoadGiveTheSameTree(t *testing.T) {
	src := richStore(t, 600)
	blobs := filepath.Join(t.TempDir(), "blobs")
	dump := mustDump(t, src, "--content", blobs)
	if got := mustDump(t, src, "--hash"); got != dump {
		t.Errorf("--hash and --content differ:\n%s", firstDifference(got, dump))
	}
	for _, tc := range []struct {
		name   string
		daemon bool
	}{{"without a daemon", false}, {"through a daemon", true}} {
		t.Run(tc.name, func(t *testing.T) {
			dst := testStore(t, nil)
			if tc.daemon {
				daemonWithoutMount(t, dst)
			}
			out, errs, code := run(t, dump, "load", dst, "--content", blobs)
			if code != 0 {
				t.Fatalf("load: %d %s%s", code, out, errs)
			}
			if got, want := comparable(t, mustDump(t, dst, "--hash")), comparable(t, dump); got != want {
				t.Errorf("the loaded tree differs:\n%s", firstDifference(got, want))
			}
			before, _ := command(t, "status", dst, "--json")
			out, errs, code = run(t, dump, "load", dst, "--content", blobs)
			if code != 0 || !strings.Contains(out, " 0 made, ") || !strings.Contains(out, " 0 replaced, 0 different, 0 failed") {
				t.Errorf("a second load: %d %s%s", code, out, errs)
			}
			if after, _ := command(t, "status", dst, "--json"); revisionOf(t, before) != revisionOf(t, after) {
				t.Errorf("a second load changed the store: revision %v, then %v", revisionOf(t, before), revisionOf(t, after))
			}
			if out, code := command(t, "fsck", dst); code != 0 {
				t.Errorf("fsck: %d %s", code, out)
			}
		})
	}
}

func revisionOf(t testing.TB, status string) int64 {
	t.Helper()
	var s struct{ Revision int64 }
	if err := json.Unmarshal([]byte(status), &s); err != nil {
		t.Fatal(err)
	}
	return s.Revision
}

// TestDumpOfASubtree counts paths from there.
func TestDumpOfASubtree(t *testing.T) {
	src := richStore(t, 3)
	for _, tc := range []struct {
		args []string
		want string // in the output
	}{
		{[]string{src, "docs"}, `{"path":"/versions","type":"file","size":60000`},
		{[]string{src, "docs"}, `"root":"/docs"`},
		{[]string{src, "docs/versions"}, `{"path":"/versions","type":"file"`},
		{[]string{src}, `{"path":"/link","type":"symlink","mode":"0777"`},
		{[]string{src}, `"rdev":"1:3"`},
		{[]string{src}, `"path":{"base64":"L2RvY3MvbmV3CmxpbmUb/w=="}`},
		{[]string{src}, `"xattrs":[{"name":"user.note","value":""}]`},
		{[]string{src}, `{"end":true,"entries":14,`},
	} {
		if got := mustDump(t, tc.args...); !strings.Contains(got, tc.want) {
			t.Errorf("dump %v has no %s:\n%s", tc.args, tc.want, got)
		}
	}
	if _, errs, code := run(t, "", "dump", src, "never"); code != exitMissing {
		t.Errorf("dump of nothing: %d %s", code, errs)
	}
}

// TestLoadOfOtherExports: what stands for what is missing, and what is refused.
func TestLoadOfOtherExports(t *testing.T) {
	content := t.TempDir()
	for name, text := range map[string]string{"by-path": "by path\n", "deep/er": "deeper\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(content, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(content, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(content, "out")); err != nil {
		t.Fatal(err)
	}
	const hash = "0000000000000000000000000000000000000000000000000000000000000000"
	for _, tc := range []struct {
		name, lines string
		flags       string
		code        int
		want        string // in the output
		dump        string // in a dump of the target
	}{
		{"a path alone", `{"path":"a"}`, "", 0, "1 made", `{"path":"/a","type":"file","size":0,"mode":"0644"`},
		{"a directory by its slash", `{"path":"d/"}`, "", 0, "1 made", `{"path":"/d","type":"dir","mode":"0755"`},
		{"a link by its target", `{"path":"l","target":"t"}`, "", 0, "1 made", `"type":"symlink","mode":"0777"`},
		{"the letters of find", `{"path":".","type":"d"}` + "\n" + `{"path":"./a","type":"f","target":"","mtime":"2025-11-25T16:21:37.6335463430Z"}` + "\n" + `{"path":"./l","type":"l","target":"a"}`,
			"", 0, "2 made, 1 the same", `{"path":"/a","type":"file","size":0,"mode":"0644","uid":0,"gid":0,"mtime":"2025-11-25T16:21:37.633546343Z"`},
		{"missing directories", `{"path":"x/y/z"}`, "", 0, "1 made", `{"path":"/x/y/z","type":"file"`},
		{"a directory's line behind its file's", `{"path":"x/y"}` + "\n" + `{"path":"x","type":"dir","mode":"0700"}`, "", 0, "2 made", `{"path":"/x","type":"dir","mode":"0700"`},
		{"unknown fields", `{"path":"a","etag":"q","acl":[1,{}]}`, "", 0, "1 made", `"/a"`},
		{"a mode as a number", `{"path":"a","mode":384}`, "", 0, "1 made", `"mode":"0600"`},
		{"setuid and an owner", `{"path":"a","mode":"4755","uid":5,"gid":6}`, "", 0, "1 made", `"mode":"4755","uid":5,"gid":6`},
		{"times as text and as numbers", `{"path":"a","mtime":"2001-02-03T04:05:06.789+01:00","atime":1}`, "", 0, "1 made", `"mtime":"2001-02-03T03:05:06.789000000Z","atime":"1970-01-01T00:00:00.000000001Z"`},
		{"a device", `{"path":"a","type":"block","rdev":"259:70000"}`, "", 0, "1 made", `"rdev":"259:70000"`},
		{"blank lines count", "\n\n" + `{"path":1}` + "\n", "", 1, "line 3: ", ""},
		{"content by path", `{"path":"by-path"}` + "\n" + `{"path":"deep/er","size":7}`, "content", 0, "2 made", `{"path":"/deep/er","type":"file","size":7`},
		{"content that leads out", `{"path":"out","size":5}`, "content", 1, "content was not given", ""},
		{"another hash", `{"path":"by-path","hash":"` + hash + `"}`, "content", 1, "not the line's", ""},
		{"another size", `{"path":"by-path","size":9}`, "content", 1, "it says 9 bytes, its content has 8", ""},
		{"no content", `{"path":"a","size":9}` + "\n" + `{"path":"b"}`, "", 1, "line 1: a: failed: its content was not given: use --content DIR, or --sparse", `{"path":"/b","type":"file"`},
		{"sparse", `{"path":"a","size":99999999999,"mtime":7}`, "--sparse", 0, "1 made", `"size":99999999999,"mode":"0644","uid":0,"gid":0,"mtime":"1970-01-01T00:00:00.000000007Z"`},
		{"above the root", `{"path":"../../etc/passwd"}`, "", 1, "holds ..", ""},
		{"a NUL", `{"path":"a\u0000b"}`, "", 1, "NUL", ""},
		{"no path", `{"type":"file"}`, "", 1, "no path", ""},
		{"no JSON", `path=a`, "", 1, "line 1: ", ""},
		{"an unknown type", `{"path":"a","type":"door"}`, "", 1, "not known", ""},
		{"a device without number", `{"path":"a","type":"char"}`, "", 1, "rdev", ""},
		{"a negative size", `{"path":"a","size":-1}`, "", 1, "negative", ""},
		{"a mode that is none", `{"path":"a","mode":"rwx"}`, "", 1, "permission bits", ""},
		{"a time that is none", `{"path":"a","mtime":"yesterday"}`, "", 1, "time", ""},
		{"a name too long", `{"path":"` + strings.Repeat("n", 256) + `"}` + "\n" + `{"path":"b"}`, "", 1, "too long", `"/b"`},
		{"below a file", `{"path":"a"}` + "\n" + `{"path":"a/b"}`, "", 1, "line 2: a/b: failed: its directory", `"/a"`},
		{"a cut dump", `{"nexusfs_dump":1}` + "\n" + `{"path":"a"}`, "", 1, "was cut", `"/a"`},
		{"a newer dump", `{"nexusfs_dump":99}`, "", 1, "use a newer nexusfs", ""},
		{"hard links", `{"path":"a","ino":7,"nlink":2}` + "\n" + `{"path":"b","ino":7,"nlink":2}`, "", 0, "2 made", `"nlink":2}` + "\n{\"end"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := testStore(t, nil)
			args := []string{"load", store}
			switch tc.flags {
			case "content":
				args = append(args, "--content", content)
			case "":
			default:
				args = append(args, tc.flags)
			}
			out, errs, code := run(t, tc.lines, args...)
			if code != tc.code || !strings.Contains(out+errs, tc.want) {
				t.Errorf("code %d, want %d; %q, want it to contain %q", code, tc.code, out+errs, tc.want)
			}
			if got := mustDump(t, store); !strings.Contains(got, tc.dump) {
				t.Errorf("the target has no %s:\n%s", tc.dump, got)
			}
			if out, code := command(t, "fsck", store); code != 0 {
				t.Errorf("fsck: %d %s", code, out)
			}
		})
	}
}

// TestLoadOverWhatIsThere: equal is left alone, different is named or replaced.
func TestLoadOverWhatIsThere(t *testing.T) {
	content := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(content, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("f", "old")
	write("big", strings.Repeat("old", 200_000))
	const tree = `{"path":"f","mode":"0640","mtime":5}
{"path":"big"}
{"path":"l","target":"old"}
{"path":"n","type":"char","rdev":"1:3"}
{"path":"d/","mode":"0750","mtime":9}
{"path":"d/in"}
`
	for _, tc := range []struct {
		name, line string
		change     func()
		overwrite  bool
		code       int
		want       string
		dump       string
	}{
		{"the same", `{"path":"f","mode":"0640","mtime":5}`, nil, false, 0, "1 the same", `"mode":"0640"`},
		{"says less", `{"path":"f"}`, nil, false, 0, "1 the same", `"mode":"0640"`},
		{"another mode", `{"path":"f","mode":"0600"}`, nil, false, 1, "line 1: f: different: other mode here", `"mode":"0640"`},
		{"another mode, overwritten", `{"path":"f","mode":"4711","uid":7}`, nil, true, 0, "1 replaced", `"mode":"4711","uid":7`},
		{"other content", `{"path":"f"}`, func() { write("f", "new") }, false, 1, "other content here", `"size":3`},
		{"other content, overwritten", `{"path":"f","mtime":6}`, func() { write("f", "newer") }, true, 0, "1 replaced", `"size":5,"mode":"0640","uid":0,"gid":0,"mtime":"1970-01-01T00:00:00.000000006Z"`},
		{"other large content, overwritten", `{"path":"big"}`, func() { write("big", strings.Repeat("new", 400_000)) }, true, 0, "1 replaced", `"size":1200000`},
		{"another target, overwritten", `{"path":"l","target":"new"}`, nil, true, 0, "1 replaced", `"target":"new"`},
		{"another device, overwritten", `{"path":"n","type":"char","rdev":"1:5"}`, nil, true, 0, "1 replaced", `"rdev":"1:5"`},
		{"another type", `{"path":"l","type":"dir"}`, nil, false, 1, "it is a symlink here", `"target":"old"`},
		{"another type, overwritten", `{"path":"l","type":"dir"}`, nil, true, 0, "1 replaced", `{"path":"/l","type":"dir"`},
		{"a full directory is not overwritten", `{"path":"d","type":"file"}`, nil, true, 1, "not empty", `{"path":"/d/in"`},
		{"a directory that differs keeps its time", `{"path":"d/","mode":"0700","mtime":77}`, nil, false, 1, "other mode here", `"mode":"0750","uid":0,"gid":0,"mtime":"1970-01-01T00:00:00.000000009Z"`},
		{"a name of another file", `{"path":"f","ino":3,"nlink":2}` + "\n" + `{"path":"big","ino":3,"nlink":2}`, nil, false, 1, "not the same file", ``},
		{"a size without content, overwritten", `{"path":"f","size":9}`, func() { os.Remove(filepath.Join(content, "f")) }, true, 1, "half replaced", ``},
	} {
		t.Run(tc.name, func(t *testing.T) {
			write("f", "old")
			write("big", strings.Repeat("old", 200_000))
			store := testStore(t, nil)
			if out, errs, code := run(t, tree, "load", store, "--content", content); code != 0 {
				t.Fatalf("the first load: %d %s%s", code, out, errs)
			}
			if tc.change != nil {
				tc.change()
			}
			args := []string{"load", store, "--content", content}
			if tc.overwrite {
				args = append(args, "--overwrite")
			}
			out, errs, code := run(t, tc.line, args...)
			if code != tc.code || !strings.Contains(out+errs, tc.want) {
				t.Errorf("code %d, want %d; %q, want it to contain %q", code, tc.code, out+errs, tc.want)
			}
			if got := mustDump(t, store); !strings.Contains(got, tc.dump) {
				t.Errorf("the target has no %s:\n%s", tc.dump, got)
			}
			if out, code := command(t, "fsck", store); code != 0 {
				t.Errorf("fsck: %d %s", code, out)
			}
		})
	}
}

// TestLoadNamesWhoLoaded: the owner is the line's, the record the loader's.
func TestLoadNamesWhoLoaded(t *testing.T) {
	store := testStore(t, nil)
	if out, errs, code := run(t, `{"path":"a","uid":4321,"gid":99}`, "load", store); code != 0 {
		t.Fatalf("%d %s%s", code, out, errs)
	}
	out, _ := command(t, "log", store, "--json", "-n", "1")
	var r recordInfo
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Actor.UID != uint32(os.Getuid()) || int(r.Actor.PID) != os.Getpid() {
		t.Errorf("the record names %+v", r.Actor)
	}
}

// TestOneVersionForEachLoadedFile: however its content came.
func TestOneVersionForEachLoadedFile(t *testing.T) {
	content := t.TempDir()
	var lines strings.Builder
	for _, n := range []int{0, 1, meta.InlineMax, meta.InlineMax + 1, loadBuffered, loadBuffered + 1, 5 << 20} {
		name := fmt.Sprint(n)
		if err := os.WriteFile(filepath.Join(content, name), bytes.Repeat([]byte{7}, n), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "{\"path\":%q}\n", name)
	}
	store := testStore(t, nil)
	if out, errs, code := run(t, lines.String(), "load", store, "--content", content); code != 0 {
		t.Fatalf("%d %s%s", code, out, errs)
	}
	out, _ := command(t, "sql", store, "--csv", "select f.path, f.size, count(*) from files f join versions v on v.ino = f.ino where f.type = 'file' group by f.path, f.size order by f.size")
	want := "path,size,count(*)\n/0,0,1\n/1,1,1\n/16384,16384,1\n/16385,16385,1\n/262144,262144,1\n/262145,262145,1\n/5242880,5242880,1\n"
	if out != want {
		t.Errorf("got %swant %s", out, want)
	}
}

// TestDumpLinesReadBack: what appendEntry writes, parseEntry reads.
func TestDumpLinesReadBack(t *testing.T) {
	for _, name := range []string{"a", "ä", "\xff\x01", "quote\"back\\slash", "<&>", "new\nline", "\u2028"} {
		a := meta.Attr{Ino: 7, Mode: meta.ModeBlock | 0o4711, UID: 1, GID: 2, Nlink: 3, Rdev: 0x12345678,
			Mtime: -1, Atime: 1<<63 - 1, Ctime: 5, Btime: time.Now().UnixNano()}
		e := dumpEntry{Path: bytesName("/" + name), Type: typeText(a.Mode), Xattrs: []dumpXattr{{bytesName(name), []byte(name)}}}
		line := appendEntry(nil, &e, &a)
		got, clean, mode, err := parseEntry(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		if clean != name || mode != a.Mode || uint32(*got.Rdev) != a.Rdev || int64(*got.Mtime) != a.Mtime || int64(*got.Btime) != a.Btime ||
			*got.UID != 1 || *got.GID != 2 || got.Nlink != 3 || got.Ino != 7 || string(got.Xattrs[0].Name) != name || string(got.Xattrs[0].Value) != name {
			t.Errorf("%q was read as %+v, path %q, mode %o", line, got, clean, mode)
		}
	}
}

// FuzzParseEntry: no line makes it fall over, and a path stays below the root.
func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(`{"path":"a/b","type":"file","size":3,"mode":"0644","mtime":"2001-02-03T04:05:06Z"}`))
	f.Add([]byte(`{"path":{"base64":"/w=="},"rdev":"1:2","xattrs":[{"name":"a","value":""}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		_, clean, _, err := parseEntry(line)
		if err == nil && (strings.HasPrefix(clean, "/") || strings.Contains("/"+clean+"/", "/../")) {
			t.Errorf("%q has the path %q", line, clean)
		}
	})
}

func benchmarkTree(b *testing.B, files int) string {
	b.Helper()
	var lines strings.Builder
	lines.WriteString("{\"path\":\"/\",\"type\":\"dir\"}\n")
	for i := range files {
		if i%100 == 0 {
			fmt.Fprintf(&lines, "{\"path\":\"/d%d\",\"type\":\"dir\",\"mode\":\"0755\",\"uid\":0,\"gid\":0,\"mtime\":\"2001-02-03T04:05:06.000000000Z\"}\n", i/100)
			continue
		}
		fmt.Fprintf(&lines, "{\"path\":\"/d%d/file%d\",\"type\":\"file\",\"size\":0,\"mode\":\"0644\",\"uid\":0,\"gid\":0,\"mtime\":\"2001-02-03T04:05:06.000000000Z\"}\n", i/100, i)
	}
	return lines.String()
}

// BenchmarkLoad loads 100,000 names without content, and BenchmarkDump dumps them.
func BenchmarkLoad(b *testing.B) {
	const files = 100_000
	lines := benchmarkTree(b, files)
	n := 0
	for b.Loop() {
		b.StopTimer()
		store := testStore(b, nil)
		b.StartTimer()
		if out, errs, code := run(b, lines, "load", store); code != 0 {
			b.Fatalf("%d %s%s", code, out, errs)
		}
		n++
	}
	b.ReportMetric(files*float64(n)/b.Elapsed().Seconds(), "inodes/s")
}

func BenchmarkDump(b *testing.B) {
	const files = 100_000
	store := testStore(b, nil)
	if out, errs, code := run(b, benchmarkTree(b, files), "load", store); code != 0 {
		b.Fatalf("%d %s%s", code, out, errs)
	}
	n := 0
	for b.Loop() {
		mustDump(b, store)
		n++
	}
	b.ReportMetric(files*float64(n)/b.Elapsed().Seconds(), "inodes/s")
}
