package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nexusfs/internal/pgtest"
	"nexusfs/internal/s3test"
)

// server is the PostgreSQL server of this test binary, a database of it per test.
var server, endServer = pgtest.Shared(pgtest.Options{Settings: []string{"max_connections=200"}})

func TestMain(m *testing.M) {
	code := m.Run()
	if err := endServer(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testDatabase makes an empty database and returns the URL of a zone of it.
func testDatabase(t testing.TB) func(zone string) string {
	t.Helper()
	s := server(t)
	name := s.Database(t)
	return func(zone string) string { return s.SocketURL(name) + "&zone=" + zone }
}

// testBucket starts an S3 server and returns the URL of a prefix of its bucket.
func testBucket(t testing.TB) func(prefix string) string {
	t.Helper()
	s := s3test.Start(t, "bucket")
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	return func(prefix string) string {
		return fmt.Sprintf("s3://bucket/%s?endpoint=http://%s&path_style=true", prefix, s.Addr)
	}
}

// openTestZone opens a zone as a mount does, which makes it when it is missing.
func openTestZone(t testing.TB, url, content, agent string) *engine {
	t.Helper()
	e, err := tryTestZone(t, url, content, agent)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func tryTestZone(t testing.TB, url, content, agent string) (*engine, error) {
	t.Helper()
	r, err := parseRemote(url)
	if err != nil {
		t.Fatal(err)
	}
	r.Content = content
	return openEngine(t.Context(), engineOptions{
		dir: storeDir(t.TempDir()), remote: r, mountpoint: "/nowhere", log: slog.New(slog.DiscardHandler),
		mount: mountOptions{Durability: "strict", History: defaultHistory(), Agent: agent},
	})
}

// zoneDaemon serves a zone as a mount does, but for the kernel's side. state is
// the directory where its node is.
func zoneDaemon(t testing.TB, url, content string) (e *engine, state string) {
	t.Helper()
	state = t.TempDir()
	a := &app{getenv: env("NEXUSFS_STATE", state)}
	r, err := parseRemote(url)
	if err != nil {
		t.Fatal(err)
	}
	d, err := a.nodeDir(r, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	lock, err := openForMount(t.Context(), &target{store: d, remote: r}, holder{PID: os.Getpid(), Role: "mount", Mountpoint: "/nowhere", Control: d.file("control.sock")})
	if err != nil {
		t.Fatal(err)
	}
	e = openTestZone(t, url, content, "")
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	serveControl(t, e, d.file("control.sock"), func() { lock.Release() })
	t.Cleanup(func() { // first: the session is kept until its engine closes
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return e, state
}

// mustMigrate runs migrate and checks what it made.
func mustMigrate(t testing.TB, args ...string) {
	t.Helper()
	if out, code := command(t, append([]string{"migrate"}, args...)...); code != 0 {
		t.Fatalf("migrate %v: %d %s", args, code, out)
	}
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		args = args[1:]
	}
	if out, code := command(t, "fsck", args[0]); code != 0 {
		t.Fatalf("fsck %s: %d %s", args[0], code, out)
	}
}

// durableDatabase is testDatabase on a server that syncs to the disk.
func durableDatabase(t testing.TB) func(zone string) string {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{Fsync: true})
	name := s.Database(t)
	return func(zone string) string { return s.SocketURL(name) + "&zone=" + zone }
}

// sharedDir is a place for content that is not there yet.
func sharedDir(t testing.TB) string { return filepath.Join(t.TempDir(), "content") }
