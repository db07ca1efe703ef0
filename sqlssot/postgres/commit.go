package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"nexusfs/meta"
)

// The commit.
//
//  1. encode turns the batch into rows, per kind of row one array, and splits it
//     into waves: runs of changes of which no two touch the same row.
//  2. One statement calls commit_batch with all of it (migrations/0002): it
//     locks the zone, applies wave by wave with a few statements each, takes the
//     revisions, chains the records and notes the outcome in the session's row.
//     The statement is its own transaction: one round trip.
//  3. A guard that fails ends the transaction. The batch is sent again and each
//     change gets a subtransaction, so that a refused one costs nobody else.
//     Guards fail rarely, subtransactions cost every change: hence two ways.
//  4. When the answer is lost the outcome is settled (P5): settle_batch waits
//     for the transaction, then finds its outcome or makes it impossible.
//
// Every batch of a session has a number; the session's row holds the newest one
// that is settled. commit_batch goes on from exactly the number before, so a
// batch is applied once or never, a fenced session commits nothing (P20), and a
// server that lost its tail is noticed (P15): the statement does nothing where
// the server does not vouch for what it has (loss.go), or is behind what the
// daemon has seen.

// commitSQL is prepared on each connection of the commit pool.
const (
	commitName = "nexusfs_commit"
	commitSQL  = `SELECT nexusfs.commit_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13) WHERE ` + unbroken + `
		AND $14 <= (SELECT rev FROM nexusfs.counters WHERE zone = $1 AND kind = 0 AND id = 0)`
	settleSQL = `SELECT settle_batch($1,$2,$3,$4)`
)

// maxRetries bounds how often a batch is sent again: after deadlocks,
// serialization failures and lost connections after which it was not applied.
const maxRetries = 8

// reasons are why a change is refused, by commit_batch's numbers.
var reasons = map[int64]string{
	1: "the inode exists", 2: "the inode changed meanwhile", 3: "the directory is gone, not empty, or changed meanwhile",
	4: "the directory is gone", 5: "the name refers to something else", 6: "the name exists", 7: "a blob is missing or condemned",
	8: "there is no such version", 9: "the version exists", 10: "the content changed meanwhile", 11: "something changed twice",
	12: "other attributes changed meanwhile", 13: "the directory would lie below itself",
}

// reasonInvalid is a change that no state could accept.
const reasonInvalid = 100

// batchState is where the numbers of a session's batches stand.
type batchState struct {
	session, epoch int64
	seq            int64  // the newest number that is settled
	doubt          *doubt // a batch whose outcome is not known
}

// doubt is a batch whose outcome could not be settled in time.
type doubt struct{ seq int64 }

// Commit implements meta.Store. It blocks on the server, at most for the
// statement's time-out and, when the connection breaks, Options.Settle; then it
// gives KindIO, and the batch may have happened: the next call finds out and
// records it as a late answer (P6). KindLost when the server has lost commits,
// until a new session has begun.
func (s *Store) Commit(ctx context.Context, b *meta.Batch) ([]meta.Outcome, error) {
	if err := interrupted(ctx, "commit"); err != nil {
		return nil, err
	}
	if err := s.writable("commit"); err != nil {
		return nil, err
	}
	if len(b.Changes) == 0 {
		return nil, nil
	}
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	out, err := s.commit(context.WithoutCancel(ctx), b)
	if codeOf(err) == codeFenced {
		err = s.whyFenced(context.WithoutCancel(ctx), "commit", b.Session, b.Epoch)
	}
	return out, classify("commit", 0, "", err)
}

func (s *Store) commit(ctx context.Context, b *meta.Batch) ([]meta.Outcome, error) {
	if err := s.resume(ctx, b); err != nil {
		return nil, err
	}
	e := &s.enc
	if err := e.encode(b, false); err != nil {
		return nil, err
	}
	if len(e.index) == 0 {
		return e.out, nil
	}
	raw, err := s.send(ctx, b, false)
	if code := codeOf(err); code == codeGuard || code == codeUnique {
		if err := e.encode(b, true); err != nil {
			return nil, err
		}
		raw, err = s.send(ctx, b, true)
	}
	if err != nil {
		return nil, err
	}
	return s.outcomes(b, raw)
}

// resume makes sure that the batch's session goes on from a known number.
func (s *Store) resume(ctx context.Context, b *meta.Batch) error {
	st := &s.batches
	if st.session == b.Session && st.epoch == b.Epoch {
		if st.doubt == nil {
			return nil
		}
		return s.resolveDoubt(ctx)
	}
	var seq int64
	err := s.borrow(ctx, s.pools.commit, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT seq FROM session_rows WHERE session = $1 AND epoch = $2`, s.k(b.Session), b.Epoch).Scan(&seq)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return s.whyFenced(ctx, "commit", b.Session, b.Epoch)
	}
	if err != nil {
		return err
	}
	s.batches = batchState{session: b.Session, epoch: b.Epoch, seq: seq}
	return nil
}

// resolveDoubt settles a batch that an earlier call left open. Its callers were
// told EIO; what was committed after all is recorded as such.
func (s *Store) resolveDoubt(ctx context.Context) error {
	st := &s.batches
	raw, committed, err := s.settle(ctx, st.doubt.seq)
	if err != nil {
		return err
	}
	st.seq, st.doubt = st.doubt.seq, nil
	if !committed {
		return nil
	}
	for i := 0; i+1 < len(raw); i += 2 {
		if raw[i] > 0 {
			if err := s.LateAnswer(ctx, meta.Rev(unk(raw[i])), "commit: the connection broke before the answer"); err != nil {
				return err
			}
		}
	}
	return nil
}

// send has the encoded batch applied, exactly once. What the server answers
// with an error was not written; it is sent again when that is worth it.
func (s *Store) send(ctx context.Context, b *meta.Batch, careful bool) ([]int64, error) {
	st := &s.batches
	for try := 0; ; try++ {
		seq := st.seq + 1
		raw, err := s.call(ctx, b, seq, careful)
		switch {
		case err == nil:
			if accepted(raw) { // else nothing was written, not even the number
				st.seq = seq
			}
			return raw, nil
		case errors.Is(err, errBroken):
			if err := s.lookAfter(ctx, "commit", b.Known); err != nil {
				return nil, err
			}
		case !answered(err):
			var committed bool
			raw, committed, err = s.settle(ctx, seq)
			if err != nil {
				st.doubt = &doubt{seq}
				return nil, meta.E("commit", 0, "", meta.KindIO, fmt.Errorf("the connection broke and the outcome is not known yet; it may have happened: %w", err))
			}
			st.seq = seq
			if committed {
				return raw, nil
			}
			err = meta.E("commit", 0, "", meta.KindIO, errors.New("the connection to PostgreSQL breaks again and again"))
		case !again(err):
			return nil, err
		}
		if try == maxRetries {
			return nil, err
		}
	}
}

// accepted reports whether a batch's outcome has an accepted change.
func accepted(raw []int64) bool {
	for i := 0; i < len(raw); i += 2 {
		if raw[i] > 0 {
			return true
		}
	}
	return false
}

// answered reports whether an error leaves no doubt that nothing was written:
// the server refused the statement, or nothing was sent to it. A FATAL message
// can come after the commit.
func answered(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.SeverityUnlocalized != "FATAL" && pg.SeverityUnlocalized != "PANIC"
	}
	return errors.Is(err, errNotSent) || pgconn.SafeToRetry(err)
}

// errBroken says that the server does not vouch for what it has: the batch was
// not applied.
var errBroken = errors.New("the server may have lost commits")

// errNotSent wraps what went wrong before a batch was sent.
var errNotSent = errors.New("nothing was sent")

// again reports whether the same batch may succeed at once.
func again(err error) bool {
	switch codeOf(err) {
	case codeSerialization, codeDeadlock:
		return true
	case "":
		return pgconn.SafeToRetry(err)
	}
	return false
}

// call sends the encoded batch as the session's batch seq.
func (s *Store) call(ctx context.Context, b *meta.Batch, seq int64, careful bool) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Statement+answerGrace)
	defer cancel()
	c, err := s.connected(ctx)
	if err != nil {
		return nil, errors.Join(errNotSent, err)
	}
	defer c.Release()
	return s.callOn(ctx, c.Conn().PgConn(), b, seq, careful)
}

// callOn is call on a connection, in the transaction that it may be in.
func (s *Store) callOn(ctx context.Context, c *pgconn.PgConn, b *meta.Batch, seq int64, careful bool) ([]int64, error) {
	types, ok := c.CustomData()[typesKey].(*batchTypes)
	if !ok {
		return nil, errors.Join(errNotSent, errors.New("the connection was not prepared for commits"))
	}
	e := &s.enc
	params := [][]byte{
		encodeInt(s.zone), encodeInt(s.k(b.Session)), encodeInt(b.Epoch), encodeInt(s.batches.seq), encodeInt(seq), encodeInt(int64(len(e.index))),
		e.sets[rowWave].appendArray(nil, types.rows[rowWave]), encodeBool(careful), encodeBool(s.o.Strict), encodeInt(s.k(int64(b.Barrier))), s.chained, e.digests, e.batch(types), encodeInt(s.k(int64(b.Known))),
	}
	s.trips.n.Add(1)
	r := c.ExecPrepared(ctx, commitName, params, []int16{pgx.BinaryFormatCode}, []int16{pgx.BinaryFormatCode}).Read()
	if r.Err != nil {
		return nil, r.Err
	}
	if len(r.Rows) == 0 {
		return nil, errBroken
	}
	raw, err := decodeInts(r.Rows[0][0])
	if err == nil && len(raw) != 2*len(e.index) {
		err = errFormat
	}
	return raw, err
}

// batch puts the rows together as one composite value.
func (e *encoder) batch(t *batchTypes) []byte {
	size := 4
	for i := range rowSets {
		size += 8 + arrayHeader + len(e.sets[i].b)
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, size), rowSets)
	for i := range rowSets {
		out = e.sets[i].appendTo(out, t.rows[i])
	}
	return out
}

// outcomes turns the server's numbers into what became of each change.
func (s *Store) outcomes(b *meta.Batch, raw []int64) ([]meta.Outcome, error) {
	e := &s.enc
	for j, i := range e.index {
		o, rec := &e.out[i], &b.Changes[i].Record
		rev := raw[2*j]
		switch {
		case rev > 0:
			o.Rev, o.Bytes = meta.Rev(unk(rev)), raw[2*j+1]
			if e.made[j] != 0 {
				o.Bytes = e.made[j]
			}
		case rev == -reasonInvalid:
			o.Err = meta.E("commit", rec.Ino, rec.Name, meta.KindInvalid, nil)
		default:
			o.Err = conflict(rec.Ino, rec.Name, reasons[-rev])
		}
	}
	if accepted(raw) {
		s.actors.learn(e.fresh, e.ids)
	}
	return e.out, nil
}

// settle ends the doubt about a batch, within Options.Settle: committed with
// its outcome, or impossible for ever.
func (s *Store) settle(ctx context.Context, seq int64) (raw []int64, committed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Settle)
	defer cancel()
	st := &s.batches
	err = patiently(ctx, s.pools.commit, unreachable, func() error {
		c, err := s.acquire(ctx, s.pools.commit)
		if err != nil {
			return err
		}
		defer c.Release()
		return c.QueryRow(ctx, settleSQL, s.zone, s.k(st.session), st.epoch, seq).Scan(&raw)
	})
	return raw, raw != nil, err
}

// connected takes a connection of the commit pool, as patiently as borrow.
func (s *Store) connected(ctx context.Context) (c *pgxpool.Conn, err error) {
	if c, err = s.acquire(ctx, s.pools.commit); err == nil || !gone(err) {
		return c, err
	}
	bounded, cancel := context.WithTimeout(ctx, s.o.Connect)
	defer cancel()
	err = patiently(bounded, s.pools.commit, gone, func() error {
		c, err = s.acquire(ctx, s.pools.commit)
		return err
	})
	return c, err
}
