package integration

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
	"nexusfs/internal/pgtest"
)

// TestPostgreSQL runs a database cluster on the mount: initdb, pgbench, a crash
// of the server and its recovery, then a crash of nexusfs under load and the
// recovery of both.
func TestPostgreSQL(t *testing.T) {
	harness.NeedRoot(t)
	harness.NotShort(t)
	bin, err := pgtest.Bin()
	must(t, err)
	owner, err := user.Lookup("postgres")
	must(t, err)
	uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
	gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
	m := harness.New(t, harness.Options{Args: []string{"-o", "allow_other"}})
	pg := &cluster{t: t, bin: bin, uid: uint32(uid), gid: uint32(gid), base: filepath.Join(m.Dir, "pg"), sock: harness.Scratch(t)}
	for _, dir := range []string{mkdir(t, pg.base), pg.sock} {
		must(t, os.Chown(dir, int(uid), int(gid)))
	}
	pg.run("initdb", "-D", pg.data(), "-A", "trust", "-U", "postgres", "--no-locale")
	pg.start()
	pg.run("pgbench", "-h", pg.sock, "-U", "postgres", "-i", "-q", "-s", "2", "postgres")
	pg.run("pgbench", "-h", pg.sock, "-U", "postgres", "-n", "-c", "4", "-T", "3", "postgres")
	pg.consistent("after pgbench")
	pg.stop(unix.SIGQUIT) // no checkpoint: as after a crash
	pg.start()
	pg.consistent("after a crash of the server")

	load := make(chan harness.Result, 1)
	go func() {
		load <- harness.Try(pg.cmd("pgbench", "-h", pg.sock, "-U", "postgres", "-n", "-c", "4", "-T", "60", "postgres"))
	}()
	harness.Eventually(t, 30*time.Second, "pgbench works", func() bool {
		return strings.TrimSpace(pg.sql("select count(*) > 0 from pgbench_history where mtime > now() - interval '1 s'")) == "t"
	})
	m.Kill9()
	select { // the server panics by itself when its files are gone
	case <-pg.done:
	case <-time.After(20 * time.Second):
		pg.stop(unix.SIGQUIT)
	}
	<-load
	m.Restart()
	pg.start()
	pg.consistent("after a crash of nexusfs")
	pg.stop(unix.SIGINT)
}

// cluster is a PostgreSQL cluster below base.
type cluster struct {
	t        *testing.T
	bin      string
	uid, gid uint32
	base     string
	sock     string
	server   *os.Process
	done     <-chan struct{} // closed when the server has ended
}

func (c *cluster) data() string { return filepath.Join(c.base, "data") }

func (c *cluster) cmd(tool string, args ...string) harness.Cmd {
	return harness.Cmd{Dir: "/", UID: c.uid, GID: c.gid, Args: append([]string{filepath.Join(c.bin, tool)}, args...), Limit: 2 * time.Minute}
}

func (c *cluster) run(tool string, args ...string) string {
	c.t.Helper()
	return harness.RunCmd(c.t, c.cmd(tool, args...))
}

// start starts the server as our own child, so that a dead one leaves no
// process behind that only init could bury.
func (c *cluster) start() {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.sock, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(c.t, err)
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), "-D", c.data(), "-c", "listen_addresses=", "-c", "unix_socket_directories="+c.sock)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid}, Setpgid: true}
	must(c.t, cmd.Start())
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	c.server, c.done = cmd.Process, done
	c.t.Cleanup(func() { c.stop(unix.SIGKILL) })
	harness.Eventually(c.t, 60*time.Second, "the server answers", func() bool {
		select {
		case <-done:
			text, _ := os.ReadFile(log.Name())
			c.t.Fatalf("the server ended:\n%s", text)
		default:
		}
		return strings.TrimSpace(c.sql("select 1")) == "1"
	})
}

// stop ends the server by a signal: SIGINT in order, SIGQUIT as in a crash.
func (c *cluster) stop(sig unix.Signal) {
	c.t.Helper()
	_ = c.server.Signal(sig)
	select {
	case <-c.done:
	case <-time.After(60 * time.Second):
		c.t.Errorf("the server does not end by %v", sig)
		_ = c.server.Kill()
	}
}

func (c *cluster) sql(query string) string {
	c.t.Helper()
	return harness.Try(c.cmd("psql", "-h", c.sock, "-U", "postgres", "-Atc", query, "postgres")).Stdout
}

// consistent checks pgbench's invariant: all balances agree with the history.
func (c *cluster) consistent(when string) {
	c.t.Helper()
	got := strings.TrimSpace(c.sql(`select
		(select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta),0) from pgbench_history) and
		(select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta),0) from pgbench_history) and
		(select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta),0) from pgbench_history)`))
	if got != "t" {
		c.t.Errorf("%s pgbench's sums do not agree: %q", when, got)
	}
	c.run("psql", "-h", c.sock, "-U", "postgres", "-Atc", "create extension if not exists amcheck", "-c",
		"select bt_index_check(c.oid) from pg_class c join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relname like 'pgbench%'", "postgres")
}
