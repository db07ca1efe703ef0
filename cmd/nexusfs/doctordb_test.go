package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"nexusfs/internal/pgtest"
	"nexusfs/sqlssot/postgres"
)

// TestDoctorOnZones: a healthy one, and what keeps one from working.
func TestDoctorOnZones(t *testing.T) {
	s, bucket := server(t), testBucket(t)
	healthy := func(t *testing.T, content string) string {
		zone := testDatabase(t)("docs")
		mustMigrate(t, richStore(t, 3), zone, "--content", content)
		return zone
	}
	// as logs a user with some roles into a healthy zone's database. Roles are the
	// whole server's, so it is one of its own.
	guarded := pgtest.Start(t, pgtest.Options{})
	as := func(t *testing.T, roles string) string {
		s := guarded
		name := s.Database(t)
		s.MustSQL(t, name, postgres.RolesScript)
		user := "u_" + name
		s.MustSQL(t, name, "CREATE USER "+user+" "+roles)
		mustMigrate(t, richStore(t, 1), s.SocketURL(name)+"&zone=docs", "--content", sharedDir(t))
		return s.URL(user, "", name) + "&zone=docs"
	}
	for _, tc := range []struct {
		name  string
		make  func(t *testing.T) string
		args  []string
		check string
		state health
		want  string
	}{
		{"the server", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, nil, "server", healthOK, "answers in"},
		{"the schema", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, nil, "schema", healthOK, "version "},
		{"the zone's content", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, nil, "database", healthOK, "was read and verified"},
		{"a piece is stored", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, []string{"--write"}, "database", healthOK, "stored, read and removed"},
		{"S3", func(t *testing.T) string { return healthy(t, bucket("a")) }, []string{"--write"}, "database", healthOK, "stored, read and removed"},
		{"the bucket", func(t *testing.T) string { return healthy(t, bucket("b")) }, nil, "content", healthOK, "is this zone's"},
		{"fsync is off", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, nil, "durability", healthFail, "fsync is off"},
		{"connections", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, nil, "connections", healthOK, "of 200"},
		{"nobody", func(t *testing.T) string { return healthy(t, sharedDir(t)) }, nil, "sessions", healthOK, "nobody"},
		{"a daemon", func(t *testing.T) string {
			zone := testDatabase(t)("docs")
			zoneDaemon(t, zone, sharedDir(t))
			return zone
		}, nil, "sessions", healthOK, "/nowhere on"},
		{"a silent daemon", func(t *testing.T) string {
			name := s.Database(t)
			zone := s.SocketURL(name) + "&zone=docs"
			e := openTestZone(t, zone, sharedDir(t), "")
			t.Cleanup(func() { _ = e.Close() }) // it is told that it was fenced, or not
			s.MustSQL(t, name, "UPDATE nexusfs.session_rows SET until = 1")
			return zone
		}, nil, "sessions", healthWarn, "silent"},
		{"an empty database", func(t *testing.T) string { return testDatabase(t)("docs") }, nil, "schema", healthWarn, "no store in this database yet"},
		{"no such zone", func(t *testing.T) string {
			return strings.Replace(healthy(t, sharedDir(t)), "zone=docs", "zone=none", 1)
		}, nil, "zone", healthWarn, "no zone none"},
		{"no such database", func(t *testing.T) string { return s.SocketURL("none") + "&zone=docs" }, nil, "server", healthFail, "createdb"},
		{"no server", func(t *testing.T) string { return "postgres://u@127.0.0.1:1/x?zone=docs" }, nil, "server", healthFail, "cannot be reached"},
		{"the owner", func(t *testing.T) string { return as(t, "IN ROLE nexusfs_owner, nexusfs_daemon") }, nil, "rights", healthOK, "bring the schema up to date"},
		{"a daemon's role", func(t *testing.T) string { return as(t, "IN ROLE nexusfs_daemon") }, nil, "rights", healthOK, "a member of nexusfs_owner has to mount first"},
		{"a reader", func(t *testing.T) string { return as(t, "IN ROLE nexusfs_reader") }, nil, "rights", healthFail, "the views and nothing else"},
		{"a stranger", func(t *testing.T) string { return as(t, "") }, nil, "rights", healthFail, "no rights"},
		{"few connections", func(t *testing.T) string { return as(t, "IN ROLE nexusfs_daemon CONNECTION LIMIT 12") }, nil, "connections", healthWarn, "12 at once"},
		{"the directory is not here", func(t *testing.T) string {
			dir := sharedDir(t)
			zone := healthy(t, dir)
			if err := os.Rename(dir, dir+"-elsewhere"); err != nil {
				t.Fatal(err)
			}
			return zone
		}, nil, "content", healthFail, "cannot be reached from this machine"},
		{"wrong keys", func(t *testing.T) string {
			zone := healthy(t, bucket("c"))
			t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
			return zone
		}, nil, "content", healthFail, "keys"},
		{"a migration's target", func(t *testing.T) string {
			zone, content := testDatabase(t)("docs"), sharedDir(t)
			interruptInto(t, richStore(t, 200), zone, content, "inodes")
			return zone
		}, nil, "zone", healthFail, "has not come to its end"},
		{"moving content", func(t *testing.T) string {
			name := s.Database(t)
			zone := s.SocketURL(name) + "&zone=docs"
			mustMigrate(t, richStore(t, 1), zone, "--content", sharedDir(t))
			s.MustSQL(t, name, "INSERT INTO nexusfs.content_moves(zone,dest) SELECT zone,'/there' FROM nexusfs.zones")
			return zone
		}, nil, "zone", healthFail, "on its way to /there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Now()
			found, _ := doctored(t, append(tc.args, tc.make(t))...)
			if d := found[tc.check]; d.State != tc.state || !strings.Contains(d.Found+d.Do, tc.want) {
				t.Errorf("check %s: %+v, want %s and %q; all: %+v", tc.check, d, tc.state, tc.want, found)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestDatabaseChecks: what no server of a test has.
func TestDatabaseChecks(t *testing.T) {
	type x = postgres.Examination
	sound := x{Fsync: true, FullPages: true, MaxConns: 100, LimitConns: -1}
	with := func(change func(*x)) *x {
		out := sound
		change(&out)
		return &out
	}
	for _, tc := range []struct {
		name string
		got  diagnosis
		want health
		text string
	}{
		{"clocks agree", serverClockCheck(3*time.Millisecond, time.Millisecond), healthOK, "3ms"},
		{"the server is far", serverClockCheck(-2*time.Second, 3*time.Second), healthOK, "-2s"},
		{"clocks differ", serverClockCheck(-2*time.Second, time.Millisecond), healthWarn, "-2s"},
		{"a clock is wrong", serverClockCheck(time.Hour, time.Millisecond), healthFail, "1h"},
		{"durable", durabilityCheck(&sound), healthOK, "this server's disk"},
		{"durable on standbys", durabilityCheck(with(func(x *x) { x.SyncStandbys = "*" })), healthOK, "synchronous standbys (*)"},
		{"torn pages", durabilityCheck(with(func(x *x) { x.FullPages = false })), healthFail, "full_page_writes"},
		{"no standby", standbyCheck(&sound), healthOK, "only copy"},
		{"an asynchronous one", standbyCheck(with(func(x *x) { x.Standbys = []postgres.Standby{{Name: "b", State: "streaming", Sync: "async"}} })), healthWarn, "b async"},
		{"a synchronous one", standbyCheck(with(func(x *x) {
			x.SyncStandbys, x.Standbys = "b", []postgres.Standby{{Name: "b", State: "streaming", Sync: "sync"}}
		})), healthOK, "b sync"},
		{"one that is missing", standbyCheck(with(func(x *x) { x.SyncStandbys = "b" })), healthFail, "wait for standbys"},
		{"standbys that may not be seen", standbyCheck(with(func(x *x) { x.SyncStandbys, x.Standbys = "b", []postgres.Standby{{Name: "b"}} })), healthOK, "b"},
		{"room", connectionCheck(&sound), healthOK, "0 of 100"},
		{"no room", connectionCheck(with(func(x *x) { x.UsedConns = 95 })), healthWarn, "95 of 100"},
	} {
		if tc.got.State != tc.want || !strings.Contains(tc.got.Found, tc.text) || tc.want != healthOK && tc.got.Do == "" {
			t.Errorf("%s: %+v, want %s and %q", tc.name, tc.got, tc.want, tc.text)
		}
	}
}
