package sqlite

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

var ctx = context.Background()

// TestMain lets the test binary play a second process.
func TestMain(m *testing.M) {
	switch os.Getenv("SQLITE_TEST_CHILD") {
	case "open":
		s, err := Open(ctx, Options{Path: os.Getenv("SQLITE_TEST_PATH"), ReadOnly: os.Getenv("SQLITE_TEST_RO") != ""})
		if err != nil {
			fmt.Println(meta.KindOf(err), err)
			os.Exit(1)
		}
		s.Close()
		os.Exit(0)
	case "commit":
		childCommits(os.Getenv("SQLITE_TEST_PATH"))
	}
	// Defaults for rapid; the command line goes before them.
	checks := "40"
	if raceDetector {
		checks = "8"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// child runs this test binary as another process.
func child(t *testing.T, mode, path string, env ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), append(env, "SQLITE_TEST_CHILD="+mode, "SQLITE_TEST_PATH="+path)...)
	return c
}

func wantKind(t testing.TB, err error, k meta.Kind) {
	t.Helper()
	var e *meta.Error
	if !errors.As(err, &e) || e.Kind != k {
		t.Fatalf("got error %v, want kind %q", err, k)
	}
}

// files reads a folder's files.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func foreign(t *testing.T, path, script string) {
	t.Helper()
	c, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := sqlitex.ExecuteScript(c, script, nil); err != nil {
		t.Fatal(err)
	}
}

// What is not a store, or not one for this version, is refused with a
// sentence and stays as it is.
func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T, path string)
		kind meta.Kind
		text string
	}{
		"nothing":           {func(*testing.T, string) {}, meta.KindNotExist, "no store here"},
		"empty file":        {func(t *testing.T, p string) { os.WriteFile(p, nil, 0o644) }, meta.KindInvalid, "not a nexusfs database"},
		"text":              {func(t *testing.T, p string) { os.WriteFile(p, []byte("hello"), 0o644) }, meta.KindInvalid, "not a nexusfs database"},
		"folder":            {func(t *testing.T, p string) { os.Mkdir(p, 0o755) }, meta.KindInvalid, "not a nexusfs database"},
		"other application": {func(t *testing.T, p string) { foreign(t, p, "create table t(a); pragma application_id=77") }, meta.KindInvalid, "belongs to another application"},
		"plain database":    {func(t *testing.T, p string) { foreign(t, p, "create table t(a); pragma user_version=1") }, meta.KindInvalid, "not made by nexusfs"},
		"newer schema": {func(t *testing.T, p string) {
			foreign(t, p, fmt.Sprintf("create table t(a); pragma application_id=%d; pragma user_version=99", applicationID))
		}, meta.KindInvalid, "use the newer nexusfs"},
	} {
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/readonly=%v", name, readOnly), func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "meta.db")
				c.make(t, path)
				if fi, err := os.Stat(path); err == nil && fi.IsDir() {
					_, err := Open(ctx, Options{Path: path, ReadOnly: readOnly})
					wantKind(t, err, c.kind)
					return
				}
				before := files(t, dir)
				_, err := Open(ctx, Options{Path: path, ReadOnly: readOnly})
				wantKind(t, err, c.kind)
				if !strings.Contains(err.Error(), c.text) {
					t.Errorf("the message is %q", err)
				}
				if c.kind == meta.KindInvalid && before["meta.db"] != "" {
					_, err = Create(ctx, Options{Path: path})
					wantKind(t, err, c.kind)
				}
				after := files(t, dir)
				delete(after, "meta.db-wal") // empty ones may stay
				delete(after, "meta.db-shm")
				if fmt.Sprint(before) != fmt.Sprint(after) {
					t.Errorf("the folder was changed: %d files, then %d", len(before), len(after))
				}
			})
		}
	}
}

func TestZoneMissingAndTwice(t *testing.T) {
	w := newWorld(t)
	_, err := Open(ctx, Options{Path: w.path, Zone: "other"})
	wantKind(t, err, meta.KindNotExist)
	_, err = Create(ctx, Options{Path: w.path})
	wantKind(t, err, meta.KindExist)
}

// A store that one process has open is refused to every other one, with a
// sentence, whatever it wants.
func TestSecondProcess(t *testing.T) {
	w := newWorld(t)
	w.commit(w.create(false))
	for _, env := range []string{"SQLITE_TEST_RO=", "SQLITE_TEST_RO=1"} {
		out, err := child(t, "open", w.path, env).CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "busy ") || !strings.Contains(string(out), "another process has this store open") {
			t.Errorf("%s: %v, %q", env, err, out)
		}
	}
	w.commit(w.create(false))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := child(t, "open", w.path).CombinedOutput(); err != nil {
		t.Errorf("after close: %v, %q", err, out)
	}
}

func TestReopen(t *testing.T) {
	w := newWorld(t)
	for range 50 {
		w.commit(w.create(false), w.create(true))
	}
	want, err := w.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	_, err = w.Inode(ctx, 1)
	wantKind(t, err, meta.KindShutdown)
	_, err = w.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{w.create(false)}})
	wantKind(t, err, meta.KindShutdown)
	if got := files(t, filepath.Dir(w.path)); len(got) != 1 {
		t.Errorf("closing leaves %d files", len(got))
	}
	before := files(t, filepath.Dir(w.path))["meta.db"]
	for _, readOnly := range []bool{true, false} {
		s, err := Open(ctx, Options{Path: w.path, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Head(ctx); err != nil || got != want {
			t.Errorf("the head is %+v, want %+v (%v)", got, want, err)
		}
		if readOnly {
			readsOnlyStore(t, s)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if readOnly && files(t, filepath.Dir(w.path))["meta.db"] != before {
			t.Error("a read-only store wrote to the database")
		}
	}
}

// readsOnlyStore checks that a read-only store reads and refuses to write.
func readsOnlyStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Verify(ctx, func(f meta.Finding) { t.Errorf("fsck: %+v", f) }); err != nil {
		t.Error(err)
	}
	_, err := s.Commit(ctx, &meta.Batch{Changes: []*meta.Change{{}}})
	wantKind(t, err, meta.KindReadOnly)
	_, err = s.Inos(ctx, 1)
	wantKind(t, err, meta.KindReadOnly)
	_, _, _, err = s.Begin(ctx, meta.SessionInfo{})
	wantKind(t, err, meta.KindReadOnly)
	if err := s.Checkpoint(ctx, true); err != nil {
		t.Error(err)
	}
	if err := s.Sync(ctx); err != nil {
		t.Error(err)
	}
}

// A read-only store sees what an unclean stop left in the log, and two of them
// read at once.
func TestReadOnlyAfterCrash(t *testing.T) {
	w := newWorld(t)
	w.commit(w.create(false))
	dir := t.TempDir()
	path := filepath.Join(dir, "meta.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(w.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+suffix, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before := files(t, dir)
	var stores []*Store
	for range 2 {
		s, err := Open(ctx, Options{Path: path, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
		if head, err := s.Head(ctx); err != nil || head.Rev != 2 {
			t.Errorf("the head is %+v, %v", head, err)
		}
		readsOnlyStore(t, s)
	}
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	after := files(t, dir)
	for _, f := range []string{"meta.db", "meta.db-wal"} {
		if before[f] != after[f] {
			t.Errorf("%s was changed", f)
		}
	}
}

// The log is moved into the database and starts again instead of growing.
func TestCheckpointBoundsLog(t *testing.T) {
	w := newWorld(t)
	size := func() int64 {
		fi, err := os.Stat(w.path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	for size() <= logBound {
		var batch []*meta.Change
		for range 8 {
			c := w.create(false)
			data := bytes.Repeat([]byte{byte(c.Record.Ino), byte(c.Record.Ino >> 8)}, 8000)
			b := meta.Blob{ID: meta.BlobID{byte(c.Record.Ino), byte(c.Record.Ino >> 8)}, Size: int64(len(data))}
			c.Content = &meta.ContentChange{Ino: c.Record.Ino, Fresh: true, Blobs: []meta.NewBlob{{Blob: b, Data: data}},
				Ranges: []meta.RangeChange{{Len: b.Size, Extents: []meta.Extent{{Len: b.Size, Blob: b}}}}}
			c.Inodes[0].After.Size = b.Size
			batch = append(batch, c)
		}
		w.commit(batch...)
	}
	w.checkpoint()
	for range 200 {
		w.commit(w.create(true))
	}
	if n := size(); n > logBound+1<<20 {
		t.Errorf("the log has %d bytes", n)
	}
	for range 5 {
		w.checkpoint()
		for range 200 {
			w.commit(w.create(true))
		}
	}
	if n := size(); n > logBound+1<<20 {
		t.Errorf("the log has %d bytes", n)
	}
	clean(t, w.Store)
}

// A file costs little room, and no more in a full directory than in a new one.
func TestBytesPerFile(t *testing.T) {
	w := newWorld(t)
	const n = 20000
	for range n {
		w.commit(w.create(false))
	}
	w.checkpoint()
	st, err := w.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if per := st.FileBytes / n; per > 500 {
		t.Errorf("%d bytes for each of %d files", per, n)
	}
}

// No statement of the hot path reads more than its rows.
func TestStatementsUseKeys(t *testing.T) {
	w := newWorld(t)
	w.writeMu.Lock()
	defer w.writeMu.Unlock()
	for id, sql := range statements {
		if stmtID(id) <= stRollbackTo {
			continue
		}
		st, _, err := w.w.PrepareTransient("EXPLAIN QUERY PLAN " + sql)
		if err != nil {
			t.Fatal(err)
		}
		err = rows(st, func(st *sqlite.Stmt) bool {
			if plan := st.ColumnText(3); strings.HasPrefix(plan, "SCAN") && !strings.Contains(plan, "CONSTANT") || strings.Contains(plan, "TEMP B-TREE") {
				t.Errorf("%s\n\t%s", sql, plan)
			}
			return true
		})
		st.Finalize()
		if err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// The index of records says the same as the records.
func TestRecordIndex(t *testing.T) {
	w := newWorld(t)
	var inos []meta.Ino
	for range 3000 {
		c := w.create(false)
		inos = append(inos, c.Record.Ino)
		w.commit(c)
	}
	read := func() (out []meta.Rev) {
		for _, ino := range append(inos[:5:5], inos[2990], meta.RootIno) {
			if err := w.Records(ctx, meta.RecordFilter{Ino: ino, Limit: 2000}, func(r *meta.Record) bool {
				out = append(out, r.Rev)
				return true
			}); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	want := read()
	w.indexLag = 100
	w.checkpoint()
	w.writeMu.Lock()
	n, err := w.w.number("SELECT count(*) FROM record_index")
	w.writeMu.Unlock()
	if err != nil || n < 5000 {
		t.Fatalf("%d rows were indexed (%v)", n, err)
	}
	if got := read(); !slices.Equal(got, want) || len(got) != 2006 {
		t.Errorf("with the index %d records, without %d", len(got), len(want))
	}
	p := meta.Retention{Before: time.Now().Add(time.Hour).UnixNano(), Barrier: 2500}
	for done := false; !done; {
		var err error
		if _, done, err = w.Prune(ctx, p, 512); err != nil {
			t.Fatal(err)
		}
	}
	w.writeMu.Lock()
	left, err := w.w.number("SELECT count(*) FROM record_index WHERE rev<=2000")
	w.writeMu.Unlock()
	if err != nil || left != 0 {
		t.Errorf("%d entries of pruned records are left (%v)", left, err)
	}
	clean(t, w.Store)
}

// Names that a shell or a terminal would trip over survive the way to SQL text.
func TestQueryNames(t *testing.T) {
	w := newWorld(t)
	c := w.create(false)
	c.Names[0].Name, c.Record.Name = "a\n'b\"\x1b[2J", "a\n'b\"\x1b[2J"
	w.commit(c)
	got := ""
	if err := w.Query(ctx, "select path from files where ino > 1", nil, func([]string) error { return nil }, func(v []any) error {
		got = v[0].(string)
		return nil
	}); err != nil || got != "/"+c.Record.Name {
		t.Errorf("path %q, %v", got, err)
	}
	if err := w.Query(ctx, "select 1", nil, func([]string) error { return io.EOF }, nil); !errors.Is(err, io.EOF) {
		t.Errorf("an error of the caller becomes %v", err)
	}
}

// The log is moved when it has grown, or when the store is idle, and then
// begins anew instead of growing for ever.
func TestCheckpointKeepsLogShort(t *testing.T) {
	w := newWorld(t)
	w.commit(w.create(false))
	if err := w.Checkpoint(ctx, false); err != nil {
		t.Fatal(err)
	}
	if w.ckptEnd != 0 {
		t.Error("a short log was moved though the store is not idle")
	}
	highest := int64(0)
	for range 60 {
		batch := make([]*meta.Change, 500)
		for i := range batch {
			batch[i] = w.create(false)
		}
		for half := range slices.Chunk(batch, 25) {
			w.commit(half...)
		}
		if err := w.Checkpoint(ctx, false); err != nil {
			t.Fatal(err)
		}
		highest = max(highest, w.logEnd.Load())
	}
	if highest <= ckptAt {
		t.Fatalf("the log grew to %d bytes only: this shows nothing", highest)
	}
	if highest > logBound+ckptAt {
		t.Errorf("the log grew to %d bytes, its bound is %d", highest, logBound)
	}
	clean(t, w.Store)
}
