package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nexusfs/meta"
)

// TestMigrateEveryWay: from a directory to a database with content in S3, to
// another database with content in a directory, and back to a directory.
func TestMigrateEveryWay(t *testing.T) {
	bucket, one, two := testBucket(t), testDatabase(t), testDatabase(t)
	src := richStore(t, 100)
	want := everything(t, src)
	back := filepath.Join(t.TempDir(), "back")
	for _, step := range []struct {
		from, to, zone string
		args           []string
	}{
		{src, one("docs"), "docs", []string{"--content", bucket("docs")}},
		{one("docs"), two("team"), "team", []string{"--content", sharedDir(t)}},
		{two("team"), two("copy"), "copy", []string{"--content", bucket("copy")}},
		{two("copy"), back, "default", nil},
	} {
		args := append([]string{step.from, step.to}, step.args...)
		out, code := command(t, append([]string{"migrate", "--dry-run"}, args...)...)
		if code != 0 || !strings.Contains(out, "nothing stands in the way") {
			t.Fatalf("dry run to %s: %d %s", step.to, code, out)
		}
		mustMigrate(t, args...)
		if got := everythingOf(t, step.to, step.zone); got != want {
			t.Errorf("%s differs from the source:\n%s", step.to, firstDifference(got, want))
		}
		if out, code := command(t, append([]string{"migrate"}, args...)...); code != 0 || !strings.Contains(out, "already") {
			t.Errorf("a second run to %s: %d %s", step.to, code, out)
		}
	}
	e := openTestEngine(t, back)
	put(t, e.fs, meta.RootIno, "new", strings.Repeat("life goes on ", 5000))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code := command(t, "fsck", back); code != 0 {
		t.Errorf("fsck after a mount: %d %s", code, out)
	}
}

// TestTwoStoresInOneDatabase: both were called default. Each lives on under its
// new name, its chain verified, and goes back into a directory.
func TestTwoStoresInOneDatabase(t *testing.T) {
	database, content := testDatabase(t), sharedDir(t)
	for _, zone := range []string{"left", "right"} {
		mustMigrate(t, richStore(t, 20), database(zone), "--content", content)
	}
	for _, zone := range []string{"left", "right"} {
		e := openTestZone(t, database(zone), "", "")
		put(t, e.fs, meta.RootIno, "new in "+zone, strings.Repeat(zone, 20_000))
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if out, code := command(t, "fsck", database(zone)); code != 0 {
			t.Errorf("fsck of %s: %d %s", zone, code, out)
		}
	}
	want := everythingOf(t, database("right"), "right")
	back := filepath.Join(t.TempDir(), "back")
	mustMigrate(t, database("right"), back)
	if got := everything(t, back); got != want {
		t.Errorf("what came back differs:\n%s", firstDifference(got, want))
	}
	openTestEngine(t, back).Close()
	mustMigrate(t, back, filepath.Join(t.TempDir(), "again"))
	out, code := command(t, "sql", back, "--csv", "select count(*) from batches")
	if code != 0 || strings.TrimSpace(strings.TrimPrefix(out, "count(*)\n")) == "0" {
		t.Errorf("%d %s", code, out)
	}
}

// TestMigrateContentOfAZone: to S3, to another directory, and what is refused.
func TestMigrateContentOfAZone(t *testing.T) {
	bucket, database := testBucket(t), testDatabase(t)
	zone, first, second := database("docs"), sharedDir(t), sharedDir(t)
	mustMigrate(t, richStore(t, 20), zone, "--content", first)
	want := everything(t, zone)
	live := database("live")
	zoneDaemon(t, live, sharedDir(t))
	src := richStore(t, 1)
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a dry run", []string{zone, "--content", bucket("x"), "--dry-run"}, 0, "would move 5 blobs"},
		{"to S3", []string{zone, "--content", bucket("x")}, 0, "what is in " + filepath.Join(first, "docs-")},
		{"where it is", []string{zone, "--content", bucket("x")}, exitUsage, "already"},
		{"a dry run to a used prefix", []string{zone, "--content", bucket(""), "--dry-run"}, exitFailed, "not empty"},
		{"to another directory", []string{zone, "--content", second}, 0, "s3://bucket/x"},
		{"back to the first one", []string{zone, "--content", first}, 0, second},
		{"of a zone that is mounted", []string{live, "--content", second}, exitStore, "/nowhere on"},
		{"of a zone that is not there", []string{database("none"), "--content", second}, exitStore, "no zone"},
		{"a source that is mounted", []string{live, filepath.Join(t.TempDir(), "x")}, exitStore, "unmount it there first"},
		{"a dry run of that", []string{live, filepath.Join(t.TempDir(), "x"), "--dry-run"}, exitFailed, "unmount it there first"},
		{"a target that is there", []string{src, zone, "--content", second}, exitStore, "another zone="},
		{"a dry run of that", []string{src, zone, "--content", second, "--dry-run"}, exitFailed, "another zone="},
		{"no place for the content", []string{src, database("new")}, exitUsage, "--content"},
		{"no bucket", []string{src, database("new"), "--content", "s3://"}, exitUsage, "s3://bucket"},
		{"a bucket that is not there", []string{src, database("new"), "--content", strings.Replace(bucket("x"), "bucket", "nothing", 1), "--dry-run"}, exitFailed, "bucket"},
		{"an unknown kind of place", []string{src, database("new"), "--content", "ftp://x/y"}, exitUsage, "ftp://"},
		{"S3 for a directory", []string{src, filepath.Join(t.TempDir(), "x"), "--content", bucket("y")}, exitUsage, "a directory"},
		{"into itself", []string{zone, zone, "--content", second}, exitUsage, "one database"},
	} {
		if out, code := command(t, append([]string{"migrate"}, tc.args...)...); code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%s: code %d, want %d; %q, want it to contain %q", tc.name, code, tc.code, out, tc.want)
		}
	}
	if out, code := command(t, "fsck", zone); code != 0 {
		t.Errorf("fsck: %d %s", code, out)
	}
	if got := everything(t, zone); got != want {
		t.Errorf("the zone differs after its content moved:\n%s", firstDifference(got, want))
	}
}

// TestMigrateShowsNoPassword, whatever goes wrong.
func TestMigrateShowsNoPassword(t *testing.T) {
	s := server(t)
	url := func(database, zone string) string { return s.URL("postgres", "s3cret", database) + "&zone=" + zone }
	name := s.Database(t)
	src := richStore(t, 1)
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"a migration", []string{"migrate", src, url(name, "docs"), "--content", sharedDir(t)}, 0},
		{"as JSON", []string{"migrate", url(name, "docs"), url(name, "again"), "--content", sharedDir(t), "--json"}, 0},
		{"of content", []string{"migrate", url(name, "docs"), "--content", sharedDir(t), "--json"}, 0},
		{"a dry run", []string{"migrate", url(name, "docs"), filepath.Join(t.TempDir(), "x"), "--dry-run"}, 0},
		{"no database", []string{"migrate", src, url("none", "docs"), "--content", sharedDir(t)}, exitStore},
		{"no zone", []string{"migrate", url(name, "none"), filepath.Join(t.TempDir(), "x")}, exitStore},
		{"a malformed URL", []string{"migrate", src, "postgres://u:s3cret@host:port/x", "--content", sharedDir(t)}, exitUsage},
		{"doctor", []string{"doctor", url(name, "docs")}, -1},
		{"doctor without a database", []string{"doctor", url("none", "docs")}, exitFailed},
	} {
		out, code := command(t, tc.args...)
		if tc.code >= 0 && code != tc.code || strings.Contains(out, "s3cret") || out == "" {
			t.Errorf("%s: code %d, want %d: %s", tc.name, code, tc.code, out)
		}
	}
}

// killed runs a command again and again, killed later each time, until it comes
// to its end; whole is about how long it takes.
func killed(t *testing.T, whole time.Duration, bin string, args ...string) {
	t.Helper()
	kills := 0
	for after := whole / 10; ; after += whole / 15 {
		cmd := exec.Command(bin, append([]string{"--config", emptyConfig(t)}, args...)...)
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
			t.Fatalf("%v after %d kills: %v\n%s", args, kills, err, out.String())
		}
		if kills++; kills > 100 {
			t.Fatal("it never comes to its end")
		}
	}
	t.Logf("%d kills; undisturbed it takes %v", kills, whole)
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
}

// TestMigrateToADatabaseSurvivesKills, and so does moving its content; in
// between nobody can use the zone.
func TestMigrateToADatabaseSurvivesKills(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "nexusfs")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	bucket, database := testBucket(t), testDatabase(t)
	src := richStore(t, 3000)
	want := everything(t, src)
	timed := func(args ...string) time.Duration {
		start := time.Now()
		if out, err := exec.Command(bin, append([]string{"--config", emptyConfig(t)}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return time.Since(start)
	}
	whole := timed("migrate", src, database("straight"), "--content", sharedDir(t))
	zone := database("killed")
	killed(t, whole, bin, "migrate", src, zone, "--content", sharedDir(t))
	whole = timed("migrate", database("straight"), "--content", bucket("straight"))
	killed(t, whole, bin, "migrate", zone, "--content", bucket("killed"))
	whole = timed("migrate", database("straight"), filepath.Join(t.TempDir(), "straight"))
	back := filepath.Join(t.TempDir(), "back")
	killed(t, whole, bin, "migrate", zone, back)
	for store, name := range map[string]string{zone: "killed", back: "default"} {
		if out, code := command(t, "fsck", store); code != 0 {
			t.Errorf("fsck of %s: %d %s", store, code, out)
		}
		if got := everythingOf(t, store, name); got != want {
			t.Errorf("%s differs:\n%s", store, firstDifference(got, want))
		}
	}
}

// TestAMigrationIsNoZoneUntilItsEnd: what began and did not end cannot be used.
func TestAMigrationIsNoZoneUntilItsEnd(t *testing.T) {
	src, zone, content := richStore(t, 200), testDatabase(t)("docs"), sharedDir(t)
	interruptInto(t, src, zone, content, "inodes")
	for _, args := range [][]string{{"log", zone}, {"dump", zone}, {"migrate", zone, filepath.Join(t.TempDir(), "x")}} {
		if out, code := command(t, args...); code != exitStore || !strings.Contains(out, "has not come to its end") {
			t.Errorf("%s of an unfinished zone: %d %s", args[0], code, out)
		}
	}
	if e, err := tryTestZone(t, zone, content, ""); err == nil || !strings.Contains(err.Error(), "has not come to its end") {
		t.Errorf("an unfinished zone was mounted: %v, %v", e, err)
	}
	if out, code := command(t, "migrate", richStore(t, 1), zone, "--content", content); code != exitFailed || !strings.Contains(out, "another source") {
		t.Errorf("another source: %d %s", code, out)
	}
	if out, code := command(t, "migrate", src, zone, "--content", content+"x"); code != exitStore || !strings.Contains(out, "give the same place") {
		t.Errorf("another place: %d %s", code, out)
	}
	other := richStore(t, 1)
	if out, code := command(t, "migrate", other, filepath.Join(t.TempDir(), "x"), "--restart"); code != exitUsage || !strings.Contains(out, "remove the directory") {
		t.Errorf("a directory is begun again: %d %s", code, out)
	}
	if out, code := command(t, "migrate", other, zone, "--content", content, "--restart"); code != 0 {
		t.Errorf("another source from the start: %d %s", code, out)
	}
	if got, want := everythingOf(t, zone, "docs"), everything(t, other); got != want {
		t.Errorf("the zone differs from the other source:\n%s", firstDifference(got, want))
	}
	if out, code := command(t, "fsck", zone); code != 0 {
		t.Errorf("fsck: %d %s", code, out)
	}
	if out, code := command(t, "migrate", src, zone, "--content", content, "--restart"); code != exitStore || !strings.Contains(out, "another zone=") {
		t.Errorf("a zone that is whole was thrown away: %d %s", code, out)
	}
	zone = testDatabase(t)("docs")
	interruptInto(t, src, zone, content, "inodes")
	if out, code := command(t, "migrate", src, zone, "--content", content); code != 0 || !strings.Contains(out, "had been copied before") {
		t.Errorf("the same source: %d %s", code, out)
	}
	if got, want := everythingOf(t, zone, "docs"), everything(t, src); got != want {
		t.Errorf("the zone differs from its source:\n%s", firstDifference(got, want))
	}
}

// TestASourceThatIsMountedMeanwhile leaves the target unfinished.
func TestASourceThatIsMountedMeanwhile(t *testing.T) {
	database, dst := testDatabase(t), filepath.Join(t.TempDir(), "copy")
	zone := database("docs")
	mustMigrate(t, richStore(t, 50), zone, "--content", sharedDir(t))
	mounted := false
	err := migrating(t, t.Context(), zone, dst, "", func(p progress) {
		if p.Phase == "verifying" && !mounted {
			mounted = true
			if err := openTestZone(t, zone, "", "").Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if meta.KindOf(err) != meta.KindConflict || !mounted {
		t.Errorf("got %v (mounted %v)", err, mounted)
	}
	if out, code := command(t, "log", dst); code != exitStore {
		t.Errorf("the target can be used: %d %s", code, out)
	}
}

// BenchmarkMigrateToPostgreSQL copies a store of 100,000 files of 100 bytes into
// a database that syncs to the disk, and back.
func BenchmarkMigrateToPostgreSQL(b *testing.B) {
	const files = 100_000
	src, zone := richStore(b, files), durableDatabase(b)
	n := 0
	for b.Loop() {
		n++
		start := time.Now()
		to := zone("copy" + strings.Repeat("x", n))
		if out, code := command(b, "migrate", src, to, "--content", filepath.Join(b.TempDir(), "content")); code != 0 {
			b.Fatalf("migrate: %d %s", code, out)
		}
		there := time.Now()
		if out, code := command(b, "migrate", to, filepath.Join(b.TempDir(), "back")); code != 0 {
			b.Fatalf("migrate: %d %s", code, out)
		}
		b.ReportMetric(files/there.Sub(start).Seconds(), "files/s-to")
		b.ReportMetric(files/time.Since(there).Seconds(), "files/s-back")
	}
}
