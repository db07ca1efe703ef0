package sqlite

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// conn is one SQLite connection with its prepared statements. It is used by
// one goroutine at a time.
type conn struct {
	*sqlite.Conn
	prepared [stmtCount]*sqlite.Stmt
}

// stmt returns a prepared statement, reset.
func (c *conn) stmt(id stmtID) (*sqlite.Stmt, error) {
	if s := c.prepared[id]; s != nil {
		return s, nil
	}
	s, err := c.Prepare(statements[id])
	if err != nil {
		return nil, fmt.Errorf("statement %d: %w", id, err)
	}
	c.prepared[id] = s
	return s, nil
}

// exec runs a statement that returns no rows and whose parameters are all
// integers; it returns the number of rows changed.
func (c *conn) exec(id stmtID, args ...int64) (int, error) {
	s, err := c.stmt(id)
	if err != nil {
		return 0, err
	}
	for i, a := range args {
		s.BindInt64(i+1, a)
	}
	return c.run(s)
}

// run steps a bound statement that returns no rows.
func (c *conn) run(s *sqlite.Stmt) (int, error) {
	if _, err := s.Step(); err != nil {
		return 0, err
	}
	n := c.Changes()
	return n, s.Reset()
}

// step runs a statement for its effect only.
func (c *conn) do(id stmtID) error {
	s, err := c.stmt(id)
	if err != nil {
		return err
	}
	if _, err := s.Step(); err != nil {
		return err
	}
	return s.Reset()
}

// query runs a statement with integer parameters and calls row for each row
// until it returns false.
func (c *conn) query(id stmtID, row func(*sqlite.Stmt) bool, args ...int64) error {
	s, err := c.stmt(id)
	if err != nil {
		return err
	}
	for i, a := range args {
		s.BindInt64(i+1, a)
	}
	return rows(s, row)
}

// rows steps a bound statement and resets it.
func rows(s *sqlite.Stmt, row func(*sqlite.Stmt) bool) error {
	for {
		ok, err := s.Step()
		if err != nil {
			return err
		}
		if !ok || !row(s) {
			return s.Reset()
		}
	}
}

// script runs SQL that need not be fast: parameters by position.
func (c *conn) script(sql string, args ...any) error {
	return sqlitex.Execute(c.Conn, sql, &sqlitex.ExecOptions{Args: args})
}

// each runs SQL that need not be fast and calls row for each row.
func (c *conn) each(sql string, row func(*sqlite.Stmt) error, args ...any) error {
	return sqlitex.Execute(c.Conn, sql, &sqlitex.ExecOptions{Args: args, ResultFunc: row})
}

// number runs SQL that returns one integer (0 when there is no row).
func (c *conn) number(sql string, args ...any) (n int64, err error) {
	err = c.each(sql, func(s *sqlite.Stmt) error { n = s.ColumnInt64(0); return nil }, args...)
	return n, err
}

// colBytes returns a copy of a column's bytes, nil only for NULL.
func colBytes(s *sqlite.Stmt, col int) []byte {
	n := s.ColumnLen(col)
	if n == 0 {
		if s.ColumnIsNull(col) {
			return nil
		}
		return []byte{}
	}
	b := make([]byte, n)
	s.ColumnBytes(col, b)
	return b
}

// colHash copies a 32-byte column.
func colHash(s *sqlite.Stmt, col int) (h [32]byte) {
	s.ColumnBytes(col, h[:])
	return h
}

// bindName binds a name as a blob, the empty name as NULL.
func bindName(s *sqlite.Stmt, param int, name string) {
	if name == "" {
		s.BindNull(param)
		return
	}
	var buf [meta.NameMax + 1]byte
	s.BindBytes(param, append(buf[:0], name...))
}

// bindText binds text, the empty one as NULL.
func bindText(s *sqlite.Stmt, param int, text string) {
	if text == "" {
		s.BindNull(param)
		return
	}
	s.BindText(param, text)
}

// busyWait bounds how long a statement waits for a lock that another process
// holds. Connections of one store never wait for each other this way.
const busyWait = 10 * time.Second

// openWait is the same while a store is being opened: who has it open will
// keep it, unless it is just ending.
const openWait = 500 * time.Millisecond

// dbURI names the database for SQLite. A store that may write uses our VFS, with
// which this process locks the file against every other one.
func dbURI(path string, readOnly, immutable bool) string {
	esc := strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
	switch {
	case immutable:
		return "file:" + esc + "?mode=ro&immutable=1"
	case readOnly:
		return "file:" + esc + "?mode=ro"
	}
	return "file:" + esc + "?vfs=" + vfsName
}

// openConn opens one connection with the store's settings.
func (s *Store) openConn(flags sqlite.OpenFlags, cacheKiB int, wait time.Duration) (*conn, error) {
	raw, err := sqlite.OpenConn(s.uri, flags|sqlite.OpenURI)
	if err != nil {
		return nil, err
	}
	raw.SetBusyTimeout(wait)
	c := &conn{Conn: raw}
	for _, p := range []string{
		"PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=0", "PRAGMA foreign_keys=OFF",
		"PRAGMA temp_store=MEMORY", fmt.Sprintf("PRAGMA cache_size=-%d", cacheKiB),
		fmt.Sprintf("PRAGMA journal_size_limit=%d", logBound),
	} {
		if err := c.script(p); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
	}
	return c, nil
}

// openReader opens a connection that refuses to write.
func (s *Store) openReader(flags sqlite.OpenFlags) (*conn, error) {
	c, err := s.openConn(flags, readerCacheKiB, busyWait)
	if err != nil || s.readOnly {
		return c, err
	}
	return c, c.script("PRAGMA query_only=1")
}

// readers is a bounded pool of read connections; who finds none free waits.
type readers struct {
	open func() (*conn, error)
	free chan *conn
	most int

	mu   sync.Mutex
	made int // guarded by mu
}

// Connections of one store besides the writer's and the checkpointer's.
const (
	maxReaders  = 3
	maxScanners = 2
)

func (r *readers) init(most int) {
	r.most = most
	r.free = make(chan *conn, most)
}

// adopt takes over a connection that was opened elsewhere.
func (r *readers) adopt(c *conn) {
	r.made++
	r.put(c)
}

// get borrows a connection.
func (r *readers) get(ctx context.Context) (*conn, error) {
	select {
	case c, ok := <-r.free:
		return c, closedErr(ok)
	default:
	}
	if c, err := r.grow(); c != nil || err != nil {
		return c, err
	}
	select {
	case c, ok := <-r.free:
		return c, closedErr(ok)
	case <-ctx.Done():
		return nil, meta.E("read", 0, "", meta.KindInterrupted, ctx.Err())
	}
}

func closedErr(ok bool) error {
	if ok {
		return nil
	}
	return meta.E("read", 0, "", meta.KindShutdown, nil)
}

// grow opens another connection if the bound allows it.
func (r *readers) grow() (*conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made >= r.most || r.open == nil {
		return nil, nil
	}
	c, err := r.open()
	if err != nil {
		return nil, classify("open", 0, "", err)
	}
	r.made++
	return c, nil
}

func (r *readers) put(c *conn) { r.free <- c }

// close waits for every borrowed connection and closes them all.
func (r *readers) close() error {
	r.mu.Lock()
	n := r.made
	r.made, r.open = r.most, nil
	r.mu.Unlock()
	var errs []error
	for range n {
		c := <-r.free
		errs = append(errs, c.Close())
	}
	close(r.free)
	return errors.Join(errs...)
}
