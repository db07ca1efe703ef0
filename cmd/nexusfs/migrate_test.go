package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nexusfs/content/local"
	"nexusfs/meta"
	"nexusfs/sqlssot/sqlite"
	"nexusfs/sqlssot/transfer"
)

// richStore makes a store that has something in every table: small, middle and
// large files, versions, links, attributes, odd names, what was deleted, what
// was pruned, several sessions.
func richStore(t testing.TB, files int) string {
	t.Helper()
	ctx, c := t.Context(), meta.Caller{UID: 1000, GID: 1000, PID: 77}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "store")
	if out, code := command(t, "store", "create", dir); code != 0 {
		t.Fatalf("store create: %d %s", code, out)
	}
	e := openTestEngine(t, dir)
	docs, err := e.fs.Mkdir(ctx, c, meta.RootIno, "docs", 0o755, 0)
	ok(err)
	for i := range files {
		put(t, e.fs, docs.Ino, "file"+string(rune('a'+i%26))+time.Duration(i).String(), strings.Repeat("x", i%1000)+time.Duration(i).String())
	}
	for _, text := range []string{"one", "two", strings.Repeat("three ", 10_000)} {
		put(t, e.fs, docs.Ino, "versions", text)
	}
	odd := put(t, e.fs, docs.Ino, "new\nline\x1b\xff", "odd")
	ok(e.fs.SetXattr(ctx, c, odd, "user.note", []byte("value\x00"), 0))
	ok(e.fs.SetXattr(ctx, c, odd, "user.note", []byte{}, 0))
	_, err = e.fs.Link(ctx, c, odd, docs.Ino, "another name")
	ok(err)
	_, err = e.fs.Symlink(ctx, c, meta.RootIno, "link", "docs/versions")
	ok(err)
	_, err = e.fs.Mknod(ctx, c, meta.RootIno, "null", meta.ModeChar|0o666, 0, 1<<8|3)
	ok(err)
	for i, n := range []int{20 << 10, 2 << 20, 9 << 20} {
		big := make([]byte, n)
		for j := range big {
			big[j] = byte(j * (i + 3) >> 7)
		}
		put(t, e.fs, meta.RootIno, "big"+string(rune('0'+i)), string(big))
	}
	put(t, e.fs, docs.Ino, "gone", "precious")
	ok(e.fs.Unlink(ctx, c, docs.Ino, "gone"))
	ok(e.Close())
	e = openTestEngine(t, dir) // another session
	_, err = e.fs.SetAttr(ctx, c, docs.Ino, meta.SetAttr{Valid: meta.SetMode, Mode: 0o750})
	ok(err)
	put(t, e.fs, docs.Ino, "purged", "a")
	purged := put(t, e.fs, docs.Ino, "purged", "b")
	_, err = e.fs.Purge(ctx, c, purged)
	ok(err)
	ok(e.history.LateAnswer(ctx, 3, "for the test"))
	ok(e.Close())
	return dir
}

// everything is what a user can see of a store: the tree, its content, the log.
func everything(t testing.TB, store string) string {
	t.Helper()
	return everythingOf(t, store, defaultZone)
}

// everythingOf is everything of a zone, shown as if it were called default, and
// as if views in PostgreSQL could show bytes that are no UTF-8.
func everythingOf(t testing.TB, store, zone string) string {
	t.Helper()
	var out strings.Builder
	from := func(view string) string { return "select * from " + view + " where zone = '" + zone + "' " }
	for _, args := range [][]string{
		{"log", store, "--json", "--oldest-first"},
		{"sql", store, "--csv", from("files") + "order by path"},
		{"sql", store, "--csv", from("versions") + "order by ino, version"},
		{"sql", store, "--csv", from("history") + "order by parent, name, first_revision"},
		{"sql", store, "--csv", from("content") + "order by ino, \"offset\", first_revision"},
		{"sql", store, "--csv", from("sessions") + "order by session"},
		{"sql", store, "--csv", from("usage") + "order by scope, id"},
		{"sql", store, "--csv", from("operations") + "order by revision"},
		{"sql", store, "--csv", from("deleted") + "order by parent, name, revision"},
		{"sql", store, "--csv", from("batches") + "order by revision"},
		{"sql", store, "--json", strings.Replace(from("operations"), "*", "revision, time, kind, ino, parent, uid, size, session, not_acknowledged", 1) + "order by revision"},
		{"sql", store, "--json", "select sum(size) as a, avg(uid) > 1 as b, count(*) as c, min(mtime) as d, max(mode) as e, null as f from files where zone = '" + zone + "'"},
		{"cat", "-s", store, "big2"}, {"cat", "-s", store, "docs/gone"}, {"cat", "-s", store, "docs/versions@3"},
	} {
		text, code := command(t, args...)
		if code != 0 {
			t.Fatalf("%v: %d %s", args, code, text)
		}
		text = strings.ReplaceAll(text, "\n"+zone+",", "\n"+defaultZone+",")
		out.WriteString(strings.ReplaceAll(text, "\\377", "\xff"))
	}
	return out.String()
}

func TestMigrateCopiesEverything(t *testing.T) {
	src := richStore(t, 100)
	dst := filepath.Join(t.TempDir(), "copy")
	if out, code := command(t, "migrate", src, dst, "--dry-run"); code != 0 || !strings.Contains(out, "nothing stands in the way") || exists(dst) {
		t.Errorf("dry run: %d %s", code, out)
	}
	before, err := os.ReadFile(storeDir(src).database())
	if err != nil {
		t.Fatal(err)
	}
	out, code := command(t, "migrate", src, dst, "--json")
	if code != 0 {
		t.Fatalf("migrate: %d %s", code, out)
	}
	var rep struct {
		Result struct {
			Tables []struct {
				Table  string
				Rows   int64
				SHA256 string
			}
			Blobs int64
		}
	}
	if err := json.Unmarshal([]byte(out), &rep); err != nil {
		t.Fatal(err)
	}
	for _, tab := range rep.Result.Tables {
		if tab.SHA256 == "" || tab.Rows == 0 && tab.Table != "xattr_history" && tab.Table != "chain_seals" && tab.Table != "record_index" && tab.Table != "zone_names" {
			t.Errorf("table %s: %d rows, digest %q: the source has nothing to prove it by", tab.Table, tab.Rows, tab.SHA256)
		}
	}
	if rep.Result.Blobs < 4 {
		t.Errorf("%d blobs were copied", rep.Result.Blobs)
	}
	if after, err := os.ReadFile(storeDir(src).database()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the source changed (%v)", err)
	}
	if out, code := command(t, "fsck", dst); code != 0 {
		t.Errorf("fsck of the target: %d %s", code, out)
	}
	if got, want := everything(t, dst), everything(t, src); got != want {
		t.Errorf("the target differs from the source:\n%s", firstDifference(got, want))
	}
	// Once more: nothing is left to do. After it was mounted it is another store.
	if out, code := command(t, "migrate", src, dst); code != 0 || !strings.Contains(out, "already") {
		t.Errorf("a second run: %d %s", code, out)
	}
	e := openTestEngine(t, dst)
	put(t, e.fs, meta.RootIno, "new", "life goes on")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code := command(t, "fsck", dst); code != 0 {
		t.Errorf("fsck after a mount of the target: %d %s", code, out)
	}
	if out, code := command(t, "migrate", src, dst); code != exitStore || !strings.Contains(out, "is a store already") {
		t.Errorf("into a store that lives: %d %s", code, out)
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer"
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestMigrateRefuses: what must not be copied, and where it must not go.
func TestMigrateRefuses(t *testing.T) {
	src := richStore(t, 1)
	mounted := testStore(t, nil)
	daemonWithoutMount(t, mounted)
	other := testStore(t, nil)
	junk := t.TempDir()
	if err := os.WriteFile(filepath.Join(junk, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		from, to string
		code     int
		want     string
	}{
		{"a mounted source", mounted, filepath.Join(t.TempDir(), "x"), exitStore, "/nowhere"},
		{"a target that is a store", src, other, exitStore, "is a store already"},
		{"a target that is something else", src, junk, exitStore, "not a nexusfs store"},
		{"no source", filepath.Join(t.TempDir(), "none"), filepath.Join(t.TempDir(), "x"), exitStore, "there is no store"},
		{"into itself", src, filepath.Join(src, "content", "copy"), exitUsage, "inside of each other"},
	} {
		for _, dry := range []bool{true, false} {
			args := []string{"migrate", tc.from, tc.to}
			code := tc.code
			if dry {
				args = append(args, "--dry-run")
				if code != exitUsage {
					code = exitFailed
				}
			}
			if out, got := command(t, args...); got != code || !strings.Contains(out, tc.want) {
				t.Errorf("%s (dry %v): code %d, want %d; %q, want %q", tc.name, dry, got, code, out, tc.want)
			}
		}
	}
}

// TestMigrateRefusesWhatAKilledDaemonLeft: its successor may have to take
// something back first.
func TestMigrateRefusesWhatAKilledDaemonLeft(t *testing.T) {
	alive := testStore(t, nil)
	e := openTestEngine(t, alive)
	killed := filepath.Join(t.TempDir(), "killed") // what is on the disk when a daemon is killed
	if err := os.CopyFS(killed, os.DirFS(alive)); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code := command(t, "migrate", killed, filepath.Join(t.TempDir(), "x")); code != exitStore || !strings.Contains(out, "did not end in order") {
		t.Errorf("before its successor: %d %s", code, out)
	}
	openTestEngine(t, killed).Close()
	if out, code := command(t, "migrate", killed, filepath.Join(t.TempDir(), "x")); code != 0 {
		t.Errorf("after its successor: %d %s", code, out)
	}
}

// TestMigrateContent: to another directory, of a new store or of the same one,
// and back, and what is refused.
func TestMigrateContent(t *testing.T) {
	src := richStore(t, 20)
	want := everything(t, src)
	base := t.TempDir()
	copied, outside, second := filepath.Join(base, "copy"), filepath.Join(base, "outside"), filepath.Join(base, "second")
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mounted := testStore(t, nil)
	daemonWithoutMount(t, mounted)
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"nothing to do", []string{src}, exitUsage, "--content PLACE"},
		{"into itself", []string{src, "--content", filepath.Join(src, "x")}, exitUsage, "inside of each other"},
		{"into what is full", []string{src, "--content", full}, exitStore, "is not empty"},
		{"a copy into what is full", []string{src, copied + "x", "--content", full}, exitStore, "is not empty"},
		{"of a mount", []string{mounted, "--content", second}, exitStore, "/nowhere"},
		{"a dry run", []string{src, copied, "--content", outside, "--dry-run"}, 0, "nothing stands in the way"},
		{"a copy", []string{src, copied, "--content", outside}, 0, "verified"},
		{"another copy there", []string{src, copied + "2", "--content", outside}, exitStore, "is not empty"},
		{"a dry run of moving", []string{copied, "--content", second, "--dry-run"}, 0, "would move"},
		{"moving", []string{copied, "--content", second}, 0, outside},
		{"moving where it is", []string{copied, "--content", second}, exitUsage, "already"},
	} {
		if out, code := command(t, append([]string{"migrate"}, tc.args...)...); code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%s: code %d, want %d; %q, want it to contain %q", tc.name, code, tc.code, out, tc.want)
		}
	}
	if err := os.RemoveAll(outside); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(copied, "content")) {
		t.Error("the copy has content in its directory, too")
	}
	if out, code := command(t, "fsck", copied); code != 0 {
		t.Errorf("fsck: %d %s", code, out)
	}
	if got := everything(t, copied); got != want {
		t.Errorf("the copy differs:\n%s", firstDifference(got, want))
	}
	e := openTestEngine(t, copied)
	put(t, e.fs, meta.RootIno, "new", strings.Repeat("life goes on ", 5000))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code := command(t, "gc", copied); code != 0 {
		t.Errorf("gc: %d %s", code, out)
	}
	if out, code := command(t, "fsck", copied); code != 0 {
		t.Errorf("fsck after a mount: %d %s", code, out)
	}
}

// TestMovingContentSurvivesKills: until a move has come to its end the store
// cannot be used, and the same command goes on.
func TestMovingContentSurvivesKills(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "nexusfs")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	src := testStore(t, func(fs *meta.FS) {
		for i := range 300 {
			put(t, fs, meta.RootIno, fmt.Sprint(i), strings.Repeat(fmt.Sprint("content ", i), 20_000))
		}
	})
	copied := filepath.Join(t.TempDir(), "copy")
	start := time.Now()
	if out, err := exec.Command(bin, "--config", emptyConfig(t), "migrate", src, copied).CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	whole := time.Since(start)
	dst := filepath.Join(t.TempDir(), "moved")
	kills, refused := 0, false
	for after := whole / 10; ; after += whole / 20 {
		cmd := exec.Command(bin, "--config", emptyConfig(t), "migrate", src, "--content", dst)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			if strings.Contains(out.String(), "already") {
				break // killed behind its last step
			}
			t.Fatalf("migrate after %d kills: %v\n%s", kills, err, out.String())
		}
		if text, code := command(t, "log", src); code == exitStore && strings.Contains(text, "on its way to") {
			refused = true
		}
		if kills++; kills > 200 {
			t.Fatal("it never comes to its end")
		}
	}
	t.Logf("%d kills; undisturbed a copy takes %v", kills, whole)
	if kills < 2 || !refused {
		t.Errorf("%d kills, refused in between: %v", kills, refused)
	}
	if err := os.RemoveAll(filepath.Join(src, "content")); err != nil {
		t.Fatal(err)
	}
	if out, code := command(t, "fsck", src); code != 0 {
		t.Errorf("fsck: %d %s", code, out)
	}
	if got, want := mustDump(t, src, "--hash"), mustDump(t, copied, "--hash"); got != want {
		t.Errorf("the store differs from its copy:\n%s", firstDifference(got, want))
	}
}

// TestMigrateKilledBehindItsLastTransaction: the database is whole, the
// directory's mark is not written.
func TestMigrateKilledBehindItsLastTransaction(t *testing.T) {
	src, dst := testStore(t, nil), filepath.Join(t.TempDir(), "copy")
	if out, code := command(t, "migrate", src, dst); code != 0 {
		t.Fatalf("migrate: %d %s", code, out)
	}
	if err := storeDir(dst).markMigrating(time.Now(), ""); err != nil {
		t.Fatal(err)
	}
	if out, code := command(t, "log", dst); code != exitStore {
		t.Errorf("before the second run: %d %s", code, out)
	}
	if out, code := command(t, "migrate", src, dst); code != 0 || !strings.Contains(out, "already") {
		t.Errorf("the second run: %d %s", code, out)
	}
	if out, code := command(t, "log", dst); code != 0 {
		t.Errorf("after it: %d %s", code, out)
	}
}

// TestMigrateBesideOtherZones: in a database with other zones the copy gets
// other numbers, and from there it goes back into a database of its own.
func TestMigrateBesideOtherZones(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	shared := filepath.Join(dir, "shared.db")
	other, err := sqlite.Create(ctx, sqlite.Options{Path: shared, Zone: "other", Mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	src, err := openSource(ctx, &target{store: storeDir(richStore(t, 50))}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	var rows transfer.Source = src.rows
	content := src.content
	for i, path := range []string{shared, filepath.Join(dir, "alone.db")} {
		to, err := sqlite.OpenTarget(ctx, sqlite.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		blobs, err := local.Open(ctx, local.Options{Dir: path + ".content"})
		if err != nil {
			t.Fatal(err)
		}
		defer blobs.Close()
		res, err := transfer.Run(ctx, transfer.Options{Source: rows, Target: to, From: content, To: blobs})
		if err = errors.Join(err, to.Close()); err != nil {
			t.Fatalf("to %s: %v", path, err)
		}
		if res.Rows == 0 || res.Copied.Rows != res.Rows {
			t.Errorf("to %s: %+v", path, res)
		}
		db, err := sqlite.Open(ctx, sqlite.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Verify(ctx, func(f meta.Finding) { t.Errorf("in %s: %+v", path, f) }); err != nil {
			t.Error(err)
		}
		if o, err := db.Origin(ctx); err != nil || !o.Same(src.origin) || o.Numbers.Zone != 1 {
			t.Errorf("copy %d: %+v, %v; want the origin %+v in zone 1", i, o, err, src.origin)
		}
		rows, content = db, blobs
	}
}

// BenchmarkMigrate copies a store of 100,000 files of 100 bytes.
func BenchmarkMigrate(b *testing.B) {
	const files = 100_000
	src := richStore(b, files)
	for b.Loop() {
		if out, code := command(b, "migrate", src, filepath.Join(b.TempDir(), "copy")); code != 0 {
			b.Fatalf("migrate: %d %s", code, out)
		}
	}
	b.ReportMetric(files*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// TestMigrateFindsDamage: a blob that does not match its hash is not copied,
// and the target stays unusable.
func TestMigrateFindsDamage(t *testing.T) {
	src := richStore(t, 1)
	damaged := 0
	err := filepath.WalkDir(filepath.Join(src, "content"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if i := bytes.Index(data, []byte("three three")); err == nil && i >= 0 {
			data[i+100] ^= 1
			damaged++
			return os.WriteFile(p, data, 0o600)
		}
		return err
	})
	if err != nil || damaged == 0 {
		t.Fatalf("damaged %d, %v", damaged, err)
	}
	dst := filepath.Join(t.TempDir(), "copy")
	if out, code := command(t, "migrate", src, dst); code != exitFailed || !strings.Contains(out, "damaged") {
		t.Errorf("migrate of a damaged source: %d %s", code, out)
	}
	for _, args := range [][]string{{"log", dst}, {"mount", dst, t.TempDir()}, {"store", "create", dst}} {
		if out, code := command(t, args...); code != exitStore || !strings.Contains(out, "has not come to its end") {
			t.Errorf("%s of an unfinished target: %d %s", args[0], code, out)
		}
	}
}

// TestMigrateGoesOnWithItsOwnSourceOnly: a source that was mounted in between,
// or another one, is refused; the same one is gone on with.
func TestMigrateGoesOnWithItsOwnSourceOnly(t *testing.T) {
	src, other := richStore(t, 200), richStore(t, 1)
	dst := filepath.Join(t.TempDir(), "copy")
	interrupt(t, src, dst, "inodes")
	if out, code := command(t, "migrate", other, dst); code != exitFailed || !strings.Contains(out, "another source") {
		t.Errorf("another source: %d %s", code, out)
	}
	out, code := command(t, "migrate", src, dst)
	if code != 0 || !strings.Contains(out, "had been copied before") {
		t.Errorf("the same source: %d %s", code, out)
	}
	if got, want := everything(t, dst), everything(t, src); got != want {
		t.Errorf("the target differs from the source:\n%s", firstDifference(got, want))
	}
	dst = filepath.Join(t.TempDir(), "copy")
	interrupt(t, src, dst, "blobs")
	openTestEngine(t, src).Close()
	if out, code := command(t, "migrate", src, dst); code != exitFailed || !strings.Contains(out, "changed since") {
		t.Errorf("the same source after a mount: %d %s", code, out)
	}
}

// interrupt ends a migration when it begins with a table.
func interrupt(t *testing.T, src, dst, table string) {
	t.Helper()
	interruptInto(t, src, dst, "", table)
}

// interruptInto is interrupt with a place for the content.
func interruptInto(t *testing.T, src, dst, content, table string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := migrating(t, ctx, src, dst, content, func(p progress) {
		if p.Phase == "rows" && (table == "blobs" || p.Done > 250) || p.Phase == "content" && table == "blobs" {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("the migration came to its end")
	}
}

// migrating runs a migration and shows how far it is.
func migrating(t *testing.T, ctx context.Context, src, dst, content string, show func(progress)) error {
	t.Helper()
	a, log := &app{getenv: env("NEXUSFS_CONFIG", emptyConfig(t))}, slog.New(slog.DiscardHandler)
	from, to, err := a.migrationEnds(src, dst)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSource(ctx, from, log)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	_, err = runMigration(ctx, s, destination{target: to, content: content}, log, show)
	return err
}

// TestMigrateSurvivesKills: a process is killed again and again until it has
// nothing left to do; then the target equals that of an undisturbed one.
func TestMigrateSurvivesKills(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "nexusfs")
	build := exec.Command("go", "build", "-o", bin, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	src := richStore(t, 3000)
	straight := filepath.Join(t.TempDir(), "straight")
	start := time.Now()
	if out, err := exec.Command(bin, "--config", emptyConfig(t), "migrate", src, straight).CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	whole := time.Since(start)
	dst := filepath.Join(t.TempDir(), "killed")
	kills := 0
	for after := whole / 20; ; after += whole / 20 {
		cmd := exec.Command(bin, "--config", emptyConfig(t), "migrate", src, dst)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			t.Fatalf("migrate after %d kills: %v\n%s", kills, err, out.String())
		}
		if kills++; kills > 200 {
			t.Fatal("it never comes to its end")
		}
	}
	t.Logf("%d kills; undisturbed it takes %v", kills, whole)
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
	if out, code := command(t, "fsck", dst); code != 0 {
		t.Errorf("fsck: %d %s", code, out)
	}
	if got, want := everything(t, dst), everything(t, straight); got != want {
		t.Errorf("the target differs:\n%s", firstDifference(got, want))
	}
}
