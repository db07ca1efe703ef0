package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
	"nexusfs/internal/pgtest"
)

// recovery is what a recovery's record says.
type recovery struct {
	Revision float64
	First    int64  `json:"first"`
	Reserved int64  `json:"reserved"`
	Cause    string `json:"cause"`
}

// recoveries asks SQL for the zone's recoveries.
func recoveries(t *testing.T, m *harness.Mount) (out []recovery) {
	t.Helper()
	for line := range strings.Lines(m.CLI("sql", "--json", m.Dir, "SELECT revision, after FROM operations WHERE kind = 'recovery' ORDER BY revision")) {
		var row struct {
			Revision float64 `json:"revision"`
			After    string  `json:"after"`
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		r := recovery{Revision: row.Revision}
		must(t, json.Unmarshal([]byte(row.After), &r))
		out = append(out, r)
	}
	return out
}

// revision is the newest that a mount has seen.
func revision(m *harness.Mount) float64 { return m.Status()["revision"].(float64) }

// mountOn mounts a zone that a test's own server has.
func mountOn(t *testing.T, url string) *harness.Mount {
	t.Helper()
	content := filepath.Join(harness.Scratch(t), "content")
	m := harness.Prepare(t, harness.Options{Store: url, Args: []string{"-o", "content=" + content}})
	must(t, m.Start())
	return m
}

// writesAgain returns when a mount takes changes again.
func writesAgain(t *testing.T, m *harness.Mount) {
	t.Helper()
	harness.Eventually(t, 60*time.Second, "the mount takes changes again", func() bool {
		return os.WriteFile(filepath.Join(m.Dir, "again"), []byte("x"), 0o644) == nil
	})
}

// TestP15SynchronousStandbyPromoted: the primary dies, the standby that confirmed
// every commit takes over under the second address: nothing that was
// acknowledged is missing, and no revision is issued twice.
func TestP15SynchronousStandbyPromoted(t *testing.T) {
	a := pgtest.Start(t, pgtest.Options{Fsync: true})
	db := a.Database(t)
	b := a.Standby(t, "b")
	a.MustSQL(t, pgtest.Superuser, "ALTER SYSTEM SET synchronous_standby_names = 'b'")
	a.MustSQL(t, pgtest.Superuser, "SELECT pg_reload_conf()")
	m := mountOn(t, a.Both(b, db))
	for i := range 30 {
		write(t, filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 100+i*300))
	}
	seen := revision(m)
	must(t, a.Kill())
	b.MustSQL(t, pgtest.Superuser, "ALTER SYSTEM SET synchronous_standby_names = ''")
	must(t, b.Promote())
	writesAgain(t, m)
	for i := range 30 {
		wantContent(t, filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 100+i*300))
	}
	if rs := recoveries(t, m); len(rs) != 1 || rs[0].First <= int64(seen) || rs[0].Revision <= seen {
		t.Errorf("the recoveries are %+v; revision %v was acknowledged", rs, seen)
	}
	must(t, m.Stop())
	must(t, m.Start())
	for i := range 30 {
		wantContent(t, filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 100+i*300))
	}
}

// TestP15AsynchronousStandbyPromoted: the standby that takes over lacks the
// tail. Two daemons find it, drop what they and their kernels cached, say what is
// gone, and go on by themselves above every revision that was seen.
func TestP15AsynchronousStandbyPromoted(t *testing.T) {
	a := pgtest.Start(t, pgtest.Options{Fsync: true})
	db := a.Database(t)
	b := a.Standby(t, "b")
	m := mountOn(t, a.Both(b, db))
	other := m.Beside(t)
	write(t, filepath.Join(m.Dir, "kept"), []byte("kept"))
	write(t, filepath.Join(m.Dir, "changed"), []byte("old"))
	b.CaughtUp(t, a)
	kept := revision(m)
	b.StopFollowing(t)
	write(t, filepath.Join(m.Dir, "lost"), []byte("lost"))
	write(t, filepath.Join(m.Dir, "changed"), []byte("newer"))
	write(t, filepath.Join(other.Dir, "lost too"), []byte("lost"))
	must(t, os.Mkdir(filepath.Join(m.Dir, "dir"), 0o755))
	wantContent(t, filepath.Join(other.Dir, "changed"), []byte("newer"))
	f := open(t, filepath.Join(m.Dir, "changed"), os.O_RDWR)
	seen := max(revision(m), revision(other))
	must(t, a.Kill())
	must(t, b.Promote())
	writesAgain(t, m)
	writesAgain(t, other)
	wantErrno(t, "fsync of what was written before", f.Sync(), unix.EIO)
	for _, d := range []*harness.Mount{m, other} {
		for _, name := range []string{"lost", "lost too", "dir"} {
			if _, err := os.Stat(filepath.Join(d.Dir, name)); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s shows %q, which is lost: %v", d.Dir, name, err)
			}
		}
		wantContent(t, filepath.Join(d.Dir, "changed"), []byte("old"))
		wantContent(t, filepath.Join(d.Dir, "kept"), []byte("kept"))
		lost, _ := d.Status()["lost"].(map[string]any)
		if lost["first"] != kept+1 || lost["last"].(float64) < kept+1 || lost["recovery"].(float64) <= seen {
			t.Errorf("status of %s says lost %v; kept %v, seen %v", d.Dir, lost, kept, seen)
		}
		if text := d.CLI("status", d.Dir); !strings.Contains(text, "LOST") {
			t.Errorf("status has no word of the loss:\n%s", text)
		}
		if !strings.Contains(d.Log(), "came back without its newest operations") {
			t.Errorf("the log of %s has no word of the loss", d.Dir)
		}
	}
	rs := recoveries(t, m)
	if len(rs) != 1 || rs[0].First != int64(kept)+1 || rs[0].Reserved < int64(seen) || rs[0].Revision <= seen {
		t.Errorf("the recoveries are %+v; kept %v, seen %v", rs, kept, seen)
	}
	write(t, filepath.Join(m.Dir, "lost"), []byte("made anew"))
	wantContent(t, filepath.Join(other.Dir, "lost"), []byte("made anew"))
	must(t, f.Close())
}

// TestP15StandbyTakesThePort: the mount knows one address, and the standby, which
// lacks the tail, comes up under it. A daemon that only reads notices too.
func TestP15StandbyTakesThePort(t *testing.T) {
	a := pgtest.Start(t, pgtest.Options{Fsync: true})
	db := a.Database(t)
	b := a.Standby(t, "b")
	m := mountOn(t, a.URL(pgtest.Superuser, "", db))
	write(t, filepath.Join(m.Dir, "kept"), []byte("kept"))
	b.CaughtUp(t, a)
	b.StopFollowing(t)
	write(t, filepath.Join(m.Dir, "lost"), []byte("lost"))
	seen := revision(m)
	must(t, b.Stop())
	must(t, a.Kill())
	b.TakePort(a)
	must(t, b.Start())
	must(t, b.Promote())
	harness.Eventually(t, 60*time.Second, "the lost name is gone, though nothing is written", func() bool {
		_, err := os.Stat(filepath.Join(m.Dir, "lost"))
		return errors.Is(err, unix.ENOENT)
	})
	wantContent(t, filepath.Join(m.Dir, "kept"), []byte("kept"))
	write(t, filepath.Join(m.Dir, "after"), []byte("after"))
	if rs := recoveries(t, m); len(rs) != 1 || rs[0].Revision <= seen {
		t.Errorf("the recoveries are %+v; seen %v", rs, seen)
	}
}

// TestP15RelaxedAndKilled: at level relaxed a server that is killed loses what it
// had not flushed: fsync says so, and what an fsync covered is there.
func TestP15RelaxedAndKilled(t *testing.T) {
	s, m := ownServer(t, pgtest.Options{Settings: []string{"autovacuum=off"}}, pgtest.Superuser, "", "-o", "durability=relaxed")
	must(t, m.Start())
	f := open(t, filepath.Join(m.Dir, "synced"), os.O_RDWR|os.O_CREATE)
	_, err := f.WriteString("synced")
	must(t, err)
	must(t, f.Sync())
	s.HoldLog(t)
	// The barrier of each second and the heartbeats flush too: until the last of
	// these names was made nothing is known to be lost, but the newest may be.
	seen := revision(m)
	for i := range 200 {
		write(t, filepath.Join(m.Dir, fmt.Sprint("f", i)), []byte("x"))
	}
	seen = max(seen, revision(m))
	write(t, filepath.Join(m.Dir, "newest"), []byte("x"))
	must(t, s.Kill())
	must(t, s.Start())
	writesAgain(t, m)
	rs := recoveries(t, m)
	if len(rs) != 1 || rs[0].Revision <= seen || !strings.Contains(rs[0].Cause, "relaxed") {
		t.Errorf("the recoveries are %+v; seen %v", rs, seen)
	}
	wantErrno(t, "fsync of a file that was open", f.Sync(), unix.EIO)
	must(t, f.Sync())
	must(t, f.Close())
	wantContent(t, filepath.Join(m.Dir, "synced"), []byte("synced"))
	if _, err := os.Stat(filepath.Join(m.Dir, "newest")); err == nil {
		t.Log("the newest name was flushed before the kill")
	}
}
