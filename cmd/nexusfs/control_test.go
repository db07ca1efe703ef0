package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nexusfs/meta"
)

// testStore makes a store without a mount, lets fill work in it, and closes it.
func testStore(t testing.TB, fill func(fs *meta.FS)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if out, code := command(t, "store", "create", dir); code != 0 {
		t.Fatalf("store create: %d %s", code, out)
	}
	e := openTestEngine(t, dir)
	if fill != nil {
		fill(e.fs)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openTestEngine(t testing.TB, dir string) *engine {
	t.Helper()
	e, err := openEngine(t.Context(), engineOptions{
		dir: storeDir(dir), mount: mountOptions{History: defaultHistory()}, log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// command runs one command line as a user would and returns what it printed.
func command(t testing.TB, args ...string) (string, int) {
	t.Helper()
	var out strings.Builder
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: env("NEXUSFS_CONFIG", emptyConfig(t))}
	code := a.run(args)
	return out.String(), code
}

func emptyConfig(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// put writes a file, through a handle as the kernel would.
func put(t testing.TB, fs *meta.FS, dir meta.Ino, name, text string) meta.Ino {
	t.Helper()
	ctx, c := t.Context(), meta.Caller{UID: 1000, GID: 1000, PID: 4242}
	a, h, err := fs.Create(ctx, c, dir, name, meta.CreateArgs{Mode: 0o644, Flags: meta.OpenFlags{Write: true, Trunc: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Write(ctx, c, 0, []byte(text), false); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(ctx, c); err != nil {
		t.Fatal(err)
	}
	h.Release(ctx)
	return a.Ino
}

func TestCommandsOnAStoreWithoutADaemon(t *testing.T) {
	odd := "new\nline\x1b\xff"
	store := testStore(t, func(fs *meta.FS) {
		ctx, c := t.Context(), meta.Caller{UID: 1000}
		d, err := fs.Mkdir(ctx, c, meta.RootIno, "docs", 0o755, 0)
		if err != nil {
			t.Fatal(err)
		}
		put(t, fs, d.Ino, "report", "one")
		put(t, fs, d.Ino, "report", "second")
		put(t, fs, d.Ino, "report@2", "a name with an at")
		put(t, fs, d.Ino, odd, "odd")
		put(t, fs, d.Ino, "gone", "precious")
		if err := fs.Unlink(ctx, c, d.Ino, "gone"); err != nil {
			t.Fatal(err)
		}
	})
	newest := func() string { out, _ := command(t, "cat", "--store", store, "docs/report"); return out }
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string // in the output
	}{
		{"status", []string{"status", store}, 0, "not mounted"},
		{"status as JSON", []string{"status", "--json", store}, 0, `"zone": "default"`},
		{"newest", []string{"cat", "-s", store, "docs/report"}, 0, "second"},
		{"a version apart", []string{"cat", "-s", store, "--version", "1", "/docs/report"}, 0, "one"},
		{"the name that exists wins", []string{"cat", "-s", store, "docs/report@2"}, 0, "a name with an at"},
		{"its own versions", []string{"cat", "-s", store, "docs/report@2@1"}, 0, "a name with an at"},
		{"a deleted one", []string{"cat", "-s", store, "docs/gone"}, 0, "precious"},
		{"a version that never was", []string{"cat", "-s", store, "docs/report@77"}, exitMissing, "77"},
		{"a path that never was", []string{"cat", "-s", store, "docs/never"}, exitMissing, "/docs/never"},
		{"below a file", []string{"versions", "-s", store, "docs/report/x"}, exitMissing, "/docs/report/x"},
		{"versions of a directory", []string{"cat", "-s", store, "docs"}, exitMissing, "no versions"},
		{"deleted", []string{"deleted", "-s", store, "docs"}, 0, "gone"},
		{"deleted in a file", []string{"deleted", "-s", store, "docs/report"}, exitFailed, "not a directory"},
		{"log of a deleted one", []string{"log", "-s", store, "docs/gone"}, 0, "unlink"},
		{"log names the actor", []string{"log", store}, 0, "uid 1000"},
		{"log limited", []string{"log", store, "-n", "1"}, 0, "unlink"},
		{"log in order", []string{"log", store, "--since", "0", "--until", "1"}, 0, "init"},
		{"log followed", []string{"log", store, "--follow"}, exitDaemon, "not mounted"},
		{"stats", []string{"stats", store}, exitDaemon, "not mounted"},
		{"table", []string{"sql", store, "select count(*) as n from files"}, 0, "n\n"},
		{"csv", []string{"sql", store, "--csv", "select 1 as a, 'x,y' as b, null as c"}, 0, "a,b,c\n1,\"x,y\",\n"},
		{"rows as JSON", []string{"sql", store, "--json", "select 9223372036854775807 as a, x'ff' as b, 0.5 as c, null as d"}, 0, `{"a":9223372036854775807,"b":{"base64":"/w=="},"c":0.5,"d":null}`},
		{"no writing by SQL", []string{"sql", store, "delete from files"}, exitFailed, "sql"},
		{"both outputs", []string{"sql", store, "--json", "--csv", "select 1"}, exitUsage, "exclude"},
		{"fsck", []string{"fsck", store}, 0, "is whole"},
		{"fsck as JSON", []string{"fsck", "--quick", "--json", store}, 0, `"findings":0`},
		{"sync", []string{"sync", store}, 0, "durable"},
		{"gc", []string{"gc", store}, 0, "let go"},
		{"restoring what is there", []string{"restore", "-s", store, "docs/report"}, exitUsage, "which version"},
		{"restore", []string{"restore", "-s", store, "docs/report", "--version", "1"}, 0, "version 1"},
		{"restore over a name", []string{"restore", "-s", store, "docs/gone", "--as", "report"}, exitFailed, "exists"},
		{"undelete", []string{"restore", "-s", store, "docs/gone", "--as", "back"}, 0, "/docs/back is back"},
		{"what came back", []string{"cat", "-s", store, "docs/back"}, 0, "precious"},
		{"purge wants a path", []string{"purge"}, exitUsage, "--all"},
		{"purge of everything by accident", []string{"purge", "-s", store, "/"}, exitUsage, "--all"},
		{"purge", []string{"purge", "-s", store, "docs/report"}, 0, "let go"},
		{"purge all", []string{"purge", "--all", store}, 0, "let go"},
		{"fsck after it all", []string{"fsck", store}, 0, "is whole"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := command(t, tc.args...)
			if code != tc.code || !strings.Contains(out, tc.want) {
				t.Errorf("%v: code %d, want %d; output %q, want it to contain %q", tc.args[0], code, tc.code, out, tc.want)
			}
			if strings.ContainsAny(out, "\x1b") && tc.args[0] != "cat" {
				t.Errorf("%v prints a terminal escape: %q", tc.args, out)
			}
		})
	}
	if got := newest(); got != "one" {
		t.Errorf("after the restore the file holds %q", got)
	}
}

// TestOfflineCommandsChangeNothing: what only reads leaves the store as it is.
func TestOfflineCommandsChangeNothing(t *testing.T) {
	store := testStore(t, func(fs *meta.FS) { put(t, fs, meta.RootIno, "f", "x") })
	before, err := os.ReadFile(storeDir(store).database())
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"status", store}, {"log", store}, {"fsck", store}, {"sql", store, "select 1"}, {"cat", "-s", store, "f"}} {
		if out, code := command(t, args...); code != 0 {
			t.Errorf("%v: %d %s", args, code, out)
		}
	}
	after, err := os.ReadFile(storeDir(store).database())
	if err != nil || string(before) != string(after) {
		t.Errorf("the database changed (%v)", err)
	}
}

func TestDamagedContentIsFound(t *testing.T) {
	text := strings.Repeat("nexusfs ", 8<<10)
	store := testStore(t, func(fs *meta.FS) {
		put(t, fs, meta.RootIno, "victim", text)
		put(t, fs, meta.RootIno, "healthy", "rides in SQL")
	})
	damaged := 0
	err := filepath.WalkDir(filepath.Join(store, "content"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if i := strings.Index(string(data), text[:64]); err == nil && i >= 0 {
			data[i+100] ^= 1
			damaged++
			return os.WriteFile(p, data, 0o600)
		}
		return err
	})
	if err != nil || damaged != 1 {
		t.Fatalf("damaged %d files, %v", damaged, err)
	}
	out, code := command(t, "fsck", store)
	if code != exitFailed || !strings.Contains(out, "damaged-blob /victim") || strings.Contains(out, "healthy") {
		t.Errorf("fsck: code %d, %q", code, out)
	}
	if out, code := command(t, "fsck", "--quick", store); code != 0 {
		t.Errorf("fsck --quick reads content: %d %q", code, out)
	}
	if out, code := command(t, "cat", "-s", store, "victim"); code == 0 || !strings.Contains(out, "damaged") {
		t.Errorf("cat of damaged content: code %d, %.200q", code, out)
	}
	if out, code := command(t, "cat", "-s", store, "healthy"); code != 0 || out != "rides in SQL" {
		t.Errorf("cat of a healthy file: %d %q", code, out)
	}
}

// daemonWithoutMount serves the control protocol as a daemon does.
func daemonWithoutMount(t testing.TB, store string) *engine {
	t.Helper()
	d := storeDir(store)
	lock, err := lockExclusive(t.Context(), d, holder{PID: os.Getpid(), Role: "mount", Mountpoint: "/nowhere", Control: d.file("control.sock")})
	if err != nil {
		t.Fatal(err)
	}
	e := openTestEngine(t, store)
	e.news = &news{}
	serveControl(t, e, d.file("control.sock"), func() { lock.Release() })
	return e
}

// serveControl answers commands on a socket until the test ends; then the engine
// is closed, and end is called.
func serveControl(t testing.TB, e *engine, socket string, end func()) {
	t.Helper()
	l, err := listenControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := (&control{engine: e, log: slog.New(slog.DiscardHandler)}).server()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		close(e.stopping)
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-served
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		end()
	})
}

// TestCommandsTalkToTheDaemon: P30.
func TestCommandsTalkToTheDaemon(t *testing.T) {
	store := testStore(t, nil)
	e := daemonWithoutMount(t, store)
	put(t, e.fs, meta.RootIno, "staged and committed", "x")
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status", store}, 0, "revision"},
		{[]string{"log", store}, 0, "staged and committed"},
		{[]string{"sql", store, "select path from files"}, 0, "/staged and committed"},
		{[]string{"sync", store}, 0, "durable up to revision 3"},
		{[]string{"fsck", store}, 0, "is whole"},
		{[]string{"stats", store, "-n", "1", "--interval", "100ms", "--json"}, 0, `"revision":3`},
		{[]string{"umount", store}, exitMount, "nothing is mounted"},
		{[]string{"mount", store, t.TempDir()}, exitStore, "/nowhere"},
	} {
		if out, code := command(t, tc.args...); code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%v: code %d, want %d; %q, want %q", tc.args, code, tc.code, out, tc.want)
		}
	}
}

func TestFollowSeesWhatHappens(t *testing.T) {
	store := testStore(t, nil)
	e := daemonWithoutMount(t, store)
	c := dialDaemon(storeDir(store).file("control.sock"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan recordInfo, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- c.stream(ctx, http.MethodGet, "log", url.Values{"follow": {"true"}, "since": {"0"}}, streamSink{item: func(raw json.RawMessage) error {
			var r recordInfo
			if err := json.Unmarshal(raw, &r); err != nil {
				return err
			}
			seen <- r
			return nil
		}}, nil)
	}()
	if r := <-seen; r.Op != "init" {
		t.Errorf("the first record is %+v", r)
	}
	if _, err := e.fs.Mkdir(t.Context(), meta.Caller{}, meta.RootIno, "d", 0o755, 0); err != nil {
		t.Fatal(err)
	}
	if err := e.news.Apply(t.Context(), nil); err != nil { // as the commit path does
		t.Fatal(err)
	}
	if r := <-seen; r.Op != "mkdir" || r.Path != "/d" {
		t.Errorf("the next record is %+v", r)
	}
	cancel()
	if err := <-ended; exitCode(err) != exitSignal {
		t.Errorf("following ended with %v", err)
	}
}

// TestCutAnswers: a daemon that dies in the middle is no empty result.
func TestCutAnswers(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/stream" {
			io.WriteString(w, `{"item":1}`+"\n")
			return
		}
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, `{"a":`)
	})
	c := inProcess(h, func() error { return nil })
	defer c.Close()
	items := 0
	err := c.stream(t.Context(), http.MethodGet, "stream", nil, streamSink{item: func(json.RawMessage) error { items++; return nil }}, nil)
	if exitCode(err) != exitDaemon || items != 1 {
		t.Errorf("a cut stream: %v after %d items", err, items)
	}
	var out map[string]any
	if err := c.get(t.Context(), "object", nil, &out); exitCode(err) != exitDaemon {
		t.Errorf("a cut object: %v", err)
	}
}

func TestOtherProtocolVersionIsRefused(t *testing.T) {
	e := daemonWithoutMount(t, testStore(t, nil))
	h := (&control{engine: e, log: slog.New(slog.DiscardHandler)}).handler()
	r := httptest.NewRequest(http.MethodGet, "/v1/status", nil)
	r.Header.Set(versionHeader, "0")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var got apiError
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Exit != exitDaemon || w.Code == http.StatusOK {
		t.Errorf("got %d %s, %v", w.Code, w.Body, err)
	}
}
