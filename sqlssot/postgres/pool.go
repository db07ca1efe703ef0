package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"nexusfs/meta"
)

// answerGrace is how much longer than the server's own time-out the client
// waits for an answer before it gives the connection up.
const answerGrace = 5 * time.Second

// Pauses between two attempts to reach the server.
const (
	firstPause   = 20 * time.Millisecond
	longestPause = time.Second
)

// pools are the store's connections, apart from each other so that readers
// cannot keep a commit waiting, nor scans a reader.
type pools struct {
	commit, read, long *pgxpool.Pool
}

// openPools makes the pools. Connections are made when they are needed.
func openPools(o *Options, t *trips) (*pools, error) {
	p := &pools{}
	for _, x := range []struct {
		pool  **pgxpool.Pool
		kind  poolKind
		conns int
	}{{&p.commit, poolCommit, commitConns}, {&p.read, poolRead, o.Conns}, {&p.long, poolLong, longConns}} {
		c, err := o.poolConfig(x.kind, x.conns, t)
		if err == nil {
			*x.pool, err = pgxpool.NewWithConfig(context.Background(), c)
		}
		if err != nil {
			p.close()
			return nil, classify("open", 0, "", err)
		}
	}
	return p, nil
}

func (p *pools) close() {
	for _, pool := range []*pgxpool.Pool{p.commit, p.read, p.long} {
		if pool != nil {
			pool.Close()
		}
	}
}

// borrow runs fn on a connection of a pool. When the connection breaks, or the
// server cannot be reached, that is tried again for Options.Connect: a server
// that is being restarted gets the time to come back. So fn may run more than
// once and must be harmless to repeat.
func (s *Store) borrow(ctx context.Context, pool *pgxpool.Pool, fn func(c *pgx.Conn) error) error {
	once := func(ctx context.Context) error {
		c, err := s.acquire(ctx, pool)
		if err != nil {
			return err
		}
		defer c.Release()
		return fn(c.Conn())
	}
	err := once(ctx)
	if err == nil || !gone(err) {
		return err
	}
	pool.Reset() // the others are as broken
	bounded, cancel := context.WithTimeout(ctx, s.o.Connect)
	defer cancel()
	return patiently(bounded, pool, gone, func() error { return once(ctx) })
}

// patiently repeats fn, with growing pauses, while its errors are worth it. It
// ends with fn's last error when ctx ends.
func patiently(ctx context.Context, pool *pgxpool.Pool, worth func(error) bool, fn func() error) error {
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		err := fn()
		if err == nil || !worth(err) || pause(ctx, wait) != nil {
			return err
		}
		pool.Reset()
	}
}

// pause waits, or returns ctx's error when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// acquire takes a connection. Waiting for one is bounded, by ctx if that has a
// deadline: a pool that is empty for so long is reported.
func (s *Store) acquire(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	if s.closed.Load() {
		return nil, meta.E("connect", 0, "", meta.KindShutdown, nil)
	}
	if _, ok := ctx.Deadline(); !ok {
		bounded, cancel := context.WithTimeout(ctx, s.o.Statement)
		defer cancel()
		ctx = bounded
	}
	c, err := pool.Acquire(ctx)
	if err != nil && errors.Is(err, context.DeadlineExceeded) && pool.Stat().AcquiredConns() == pool.Stat().MaxConns() {
		return nil, errPoolBusy
	}
	return c, err
}

// read runs a statement that a request waits for. Once it was sent it is not
// interrupted: it takes less than giving up the connection would.
func (s *Store) read(ctx context.Context, op string, ino meta.Ino, name string, fn func(ctx context.Context, c *pgx.Conn) error) error {
	if err := interrupted(ctx, op); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.Statement+answerGrace)
	defer cancel()
	return classify(op, ino, name, s.borrow(bounded, s.pools.read, func(c *pgx.Conn) error { return fn(bounded, c) }))
}

// errStop ends an iteration that the caller wanted to end.
var errStop = errors.New("stop")

// scan reads in one read-only transaction that sees one state, for as long as
// it takes; it is interrupted when ctx ends. A connection that breaks is not
// replaced in the middle: fn may have handed rows on.
func (s *Store) scan(ctx context.Context, op string, ino meta.Ino, fn func(tx pgx.Tx) error) error {
	if err := interrupted(ctx, op); err != nil {
		return err
	}
	var tx pgx.Tx
	begin := func(c *pgx.Conn) (err error) {
		tx, err = c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err != nil {
			return err
		}
		defer func() {
			if rerr := tx.Rollback(context.WithoutCancel(ctx)); err == nil && !errors.Is(rerr, pgx.ErrTxClosed) {
				err = rerr
			}
		}()
		return fn(tx)
	}
	c, err := s.fresh(ctx, s.pools.long)
	if err == nil {
		err = begin(c.Conn())
		c.Release()
	}
	if errors.Is(err, errStop) {
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		return meta.E(op, ino, "", meta.KindInterrupted, ctx.Err())
	}
	return classify(op, ino, "", err)
}

// fresh takes a connection that is known to be alive.
func (s *Store) fresh(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	for attempt := 0; ; attempt++ {
		c, err := s.acquire(ctx, pool)
		if err != nil {
			return nil, err
		}
		if err = c.Ping(ctx); err == nil {
			return c, nil
		}
		c.Release()
		if attempt > 0 || ctx.Err() != nil {
			return nil, err
		}
		pool.Reset()
	}
}

// each runs a query and hands its rows to fn.
func each(ctx context.Context, tx pgx.Tx, sql string, fn func(r pgx.Rows) error, args ...any) error {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// number returns the single integer that a query yields.
func number(ctx context.Context, tx pgx.Tx, sql string, args ...any) (n int64, err error) {
	err = tx.QueryRow(ctx, sql, args...).Scan(&n)
	return n, err
}

// exec runs a statement and returns how many rows it changed.
func exec(ctx context.Context, tx pgx.Tx, sql string, args ...any) (int, error) {
	tag, err := tx.Exec(ctx, sql, args...)
	return int(tag.RowsAffected()), err
}
