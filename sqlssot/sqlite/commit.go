package sqlite

import (
	"context"
	"errors"
	"fmt"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
	"zombiezen.com/go/sqlite"
)

// tx is one batch being written. Its fields describe what was accepted so far;
// nothing of it survives unless the transaction commits.
type tx struct {
	s   *Store
	c   *conn
	b   *meta.Batch
	out []meta.Outcome

	accepted  []int // indexes of the changes that hold
	actorIDs  []int64
	usage     []usageDelta
	history   int64 // change of the bytes held only by history
	inodes    int64
	bytes     int64
	topology  int64
	newActors []meta.Actor // inserted by this transaction
	uses      []blobUse    // scratch of the change being applied
}

// usageDelta is what a batch changes in one user's counters.
type usageDelta struct{ uid, inodes, bytes int64 }

func (s *Store) newTx(b *meta.Batch) *tx {
	return &tx{s: s, c: s.w, b: b, out: make([]meta.Outcome, len(b.Changes))}
}

// Commit implements meta.Store.
//
// The fast path writes the changes one after the other. When a guard fails,
// everything is rolled back and repeated with a savepoint around each change,
// so that one wrong belief costs its own operation only (P2). Guards fail
// rarely, savepoints cost every operation: hence two paths.
func (s *Store) Commit(ctx context.Context, b *meta.Batch) ([]meta.Outcome, error) {
	if err := interrupted(ctx, "commit"); err != nil {
		return nil, err
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.writable("commit"); err != nil {
		return nil, err
	}
	if len(b.Changes) == 0 {
		return nil, nil
	}
	out, err := s.attempt(b, false)
	if k := meta.KindOf(err); err != nil && (k == meta.KindConflict || k == meta.KindInvalid) {
		out, err = s.attempt(b, true)
	}
	return out, classify("commit", 0, "", err)
}

// writable refuses writes that cannot or must not happen. writeMu is held.
func (s *Store) writable(op string) error {
	if s.readOnly {
		return meta.E(op, 0, "", meta.KindReadOnly, nil)
	}
	if s.w == nil {
		return meta.E(op, 0, "", meta.KindShutdown, nil)
	}
	return s.syncer.failure()
}

// attempt runs the batch in one transaction.
func (s *Store) attempt(b *meta.Batch, savepoints bool) ([]meta.Outcome, error) {
	t := s.newTx(b)
	if err := s.w.do(stBegin); err != nil {
		return nil, err
	}
	err := t.run(savepoints)
	if err == nil && len(t.accepted) > 0 {
		if err = s.w.do(stCommit); err == nil {
			s.committed(t)
			return t.out, nil
		}
	}
	if rerr := s.rollback(t); rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	if err != nil {
		return nil, err
	}
	return t.out, nil // every change was refused
}

// run checks the session, applies every change and writes the batch's rows.
func (t *tx) run(savepoints bool) error {
	if err := t.s.checkSession(t.b.Session, t.b.Epoch); err != nil {
		return err
	}
	for i := range t.b.Changes {
		if !savepoints {
			if err := t.apply(i); err != nil {
				return err
			}
			continue
		}
		if err := t.applySafely(i); err != nil {
			return err
		}
	}
	if len(t.accepted) == 0 {
		return nil
	}
	return t.finish()
}

// applySafely applies one change under a savepoint. A failed guard becomes the
// change's outcome.
func (t *tx) applySafely(i int) error {
	keep := *t
	keep.usage = append([]usageDelta(nil), t.usage...)
	if err := t.c.do(stSavepoint); err != nil {
		return err
	}
	if err := t.apply(i); err != nil {
		if meta.KindOf(err) != meta.KindConflict && meta.KindOf(err) != meta.KindInvalid {
			return err
		}
		t.s.actors.forget(t.newActors[len(keep.newActors):])
		out := t.out
		*t = keep
		t.out = out
		t.out[i] = meta.Outcome{Err: err}
		if err := t.c.do(stRollbackTo); err != nil {
			return err
		}
	}
	return t.c.do(stRelease)
}

// rev is the revision of the change being applied.
func (t *tx) rev() int64 { return t.s.head.rev + int64(len(t.accepted)) + 1 }

// apply writes one change. The order lets each step still see what it needs:
// versions and content look at the inode's old row.
func (t *tx) apply(i int) error {
	c := t.b.Changes[i]
	rev := t.s.k(t.rev())
	actor, err := t.actor(&c.Record.Actor)
	if err != nil {
		return err
	}
	if c.Version != nil {
		if err := t.version(c, rev, actor); err != nil {
			return err
		}
	}
	var delta int64
	if c.Content != nil {
		if delta, err = t.content(c.Content, rev); err != nil {
			return err
		}
	}
	if err := t.inodeChanges(i, c, rev, delta); err != nil {
		return err
	}
	if c.Topology {
		if err := t.reachRoot(c); err != nil {
			return err
		}
	}
	for j := range c.Names {
		if err := t.name(c, &c.Names[j], rev); err != nil {
			return err
		}
	}
	for _, d := range c.Dirs {
		n, err := t.c.exec(stDirDelta, t.s.k(int64(d.Ino)), d.Entries, d.Nlink, d.Time, rev)
		if err != nil {
			return err
		}
		if n == 0 {
			return conflict(d.Ino, "", "the directory is gone")
		}
	}
	for j := range c.Xattrs {
		if err := t.xattr(&c.Xattrs[j], rev); err != nil {
			return err
		}
	}
	if c.Topology {
		t.topology++
	}
	t.out[i].Rev = meta.Rev(t.rev())
	t.accepted = append(t.accepted, i)
	t.actorIDs = append(t.actorIDs, actor)
	return nil
}

// finish writes what a batch has once: its records, with the chain head on the
// last one, the usage counters and the zone's head.
func (t *tx) finish() error {
	s := t.s
	digests := make([]chain.Hash, len(t.accepted))
	for i, n := range t.accepted {
		r := &t.b.Changes[n].Record
		if r.Digest == (chain.Hash{}) {
			digests[i] = meta.RecordDigest(r, t.b.Session)
		} else {
			digests[i] = r.Digest
		}
	}
	first := s.head.rev + 1
	head := chain.Next(s.head.hash, s.zoneName, first, digests)
	for i, n := range t.accepted {
		var sealed *chain.Hash
		if i == len(t.accepted)-1 {
			sealed = &head
		}
		if err := t.record(&t.b.Changes[n].Record, first+int64(i), t.actorIDs[i], &digests[i], sealed); err != nil {
			return fmt.Errorf("record: %w", unguarded(err))
		}
	}
	if err := t.writeUsage(); err != nil {
		return unguarded(err)
	}
	return unguarded(t.writeHead(first+int64(len(t.accepted))-1, &head))
}

// unguarded keeps a constraint that is not a guard from being taken for one:
// outside of apply it means that the store is damaged.
func unguarded(err error) error {
	if err != nil && kindOf(err) == meta.KindConflict {
		return meta.E("commit", 0, "", meta.KindDamaged, err)
	}
	return err
}

func (t *tx) writeHead(last int64, head *chain.Hash) error {
	s := t.s
	st, err := t.c.stmt(stHeadUpdate)
	if err != nil {
		return err
	}
	st.BindInt64(1, s.zone)
	st.BindInt64(2, s.k(last))
	st.BindBytes(3, head[:])
	st.BindInt64(4, s.k(int64(t.b.Barrier)))
	st.BindInt64(5, t.topology)
	st.BindInt64(6, t.inodes)
	st.BindInt64(7, t.bytes)
	st.BindInt64(8, t.history)
	st.BindInt64(9, s.k(s.head.rev))
	st.BindInt64(10, s.head.sessions)
	n, err := t.c.run(st)
	if err != nil {
		return err
	}
	if n != 1 {
		return meta.E("commit", 0, "", meta.KindDamaged, errors.New("the zone's counters were changed by someone else"))
	}
	s.head.rev, s.head.hash = last, *head
	s.head.barrier = max(s.head.barrier, int64(t.b.Barrier))
	return nil
}

// committed keeps what the transaction made true.
func (s *Store) committed(t *tx) {
	s.session = sessionState{t.b.Session, t.b.Epoch, s.head.sessions}
}

// rollback undoes the transaction and everything that memory knows of it. If
// the outcome of a COMMIT is not known it is read from the database, so the
// state is well-defined: an error means that nothing was written.
func (s *Store) rollback(t *tx) error {
	s.actors.forget(t.newActors)
	if !s.w.AutocommitEnabled() {
		if err := s.w.do(stRollback); err != nil {
			return err
		}
	}
	return s.loadHead()
}

// addUsage books inodes and bytes of a user.
func (t *tx) addUsage(uid, inodes, bytes int64) {
	t.inodes += inodes
	t.bytes += bytes
	for i := range t.usage {
		if t.usage[i].uid == uid {
			t.usage[i].inodes += inodes
			t.usage[i].bytes += bytes
			return
		}
	}
	t.usage = append(t.usage, usageDelta{uid, inodes, bytes})
}

func (t *tx) writeUsage() error {
	for _, u := range t.usage {
		if u.inodes == 0 && u.bytes == 0 {
			continue
		}
		n, err := t.c.exec(stUsageUpdate, t.s.zone, u.uid, u.inodes, u.bytes)
		if err == nil && n == 0 {
			_, err = t.c.exec(stUsageInsert, t.s.zone, u.uid, u.inodes, u.bytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// record inserts an operation record; head is set on a batch's last one.
func (t *tx) record(r *meta.Record, rev, actor int64, digest, head *chain.Hash) error {
	st, err := t.c.stmt(stRecordInsert)
	if err != nil {
		return err
	}
	s := t.s
	st.BindInt64(1, s.k(rev))
	st.BindInt64(2, int64(r.Kind))
	st.BindInt64(3, s.k(int64(r.Ino)))
	st.BindInt64(4, s.k(int64(r.Parent)))
	bindName(st, 5, r.Name)
	st.BindInt64(6, s.k(int64(r.NewParent)))
	bindName(st, 7, r.NewName)
	st.BindInt64(8, r.Time)
	st.BindInt64(9, actor)
	st.BindInt64(10, r.Version)
	st.BindInt64(11, r.Size)
	st.BindInt64(12, t.b.Session)
	st.BindInt64(13, r.Seq)
	bindText(st, 14, r.Before)
	bindText(st, 15, r.After)
	st.BindBytes(16, digest[:])
	if head == nil {
		st.BindNull(17)
		st.BindNull(18)
	} else {
		st.BindInt64(17, int64(len(t.accepted)))
		st.BindBytes(18, head[:])
	}
	_, err = t.c.run(st)
	return err
}

// maxActors bounds the memory of actors that have a row already.
const maxActors = 4096

// actorTable knows the rows of actors that this process has used lately. An
// actor that was forgotten gets another row; rows are never changed.
type actorTable struct {
	ids  map[meta.Actor]int64
	next int64
	last meta.Actor
	id   int64 // of last; 0: none
}

func (a *actorTable) forget(actors []meta.Actor) {
	for _, x := range actors {
		delete(a.ids, x)
		if a.last == x {
			a.id = 0
		}
	}
}

// actor returns the id of an actor's row, inserting it if need be.
func (t *tx) actor(a *meta.Actor) (int64, error) {
	tab := &t.s.actors
	if tab.id != 0 && tab.last == *a {
		return tab.id, nil
	}
	if id, ok := tab.ids[*a]; ok {
		tab.last, tab.id = *a, id
		return id, nil
	}
	if tab.next == 0 {
		n, err := t.c.number("SELECT coalesce(max(actor),?1) FROM actors WHERE actor BETWEEN ?1 AND ?2", t.s.base, t.s.base|keyMask)
		if err != nil {
			return 0, err
		}
		tab.next = n + 1
	}
	id := tab.next
	if err := t.insertActor(id, a); err != nil {
		return 0, err
	}
	tab.next++
	if len(tab.ids) >= maxActors || tab.ids == nil {
		tab.ids = make(map[meta.Actor]int64)
	}
	tab.ids[*a] = id
	tab.last, tab.id = *a, id
	t.newActors = append(t.newActors, *a)
	return id, nil
}

func (t *tx) insertActor(id int64, a *meta.Actor) error {
	st, err := t.c.stmt(stActorInsert)
	if err != nil {
		return err
	}
	st.BindInt64(1, id)
	st.BindInt64(2, int64(a.UID))
	st.BindInt64(3, int64(a.GID))
	st.BindInt64(4, int64(a.PID))
	st.BindInt64(5, int64(a.StartTime))
	for i, text := range [...]string{a.Exe, a.Cgroup, a.Node, a.Agent, a.Task} {
		st.BindText(6+i, text)
	}
	_, err = t.c.run(st)
	return unguarded(err)
}

// checkSession refuses batches of sessions that ended or were fenced (P20).
// writeMu is held and a transaction is open.
func (s *Store) checkSession(session, epoch int64) error {
	if s.session == (sessionState{session, epoch, s.head.sessions}) {
		return nil
	}
	ok := false
	err := s.w.each("SELECT 1 FROM session_rows WHERE session=? AND epoch=? AND NOT fenced AND ended IS NULL",
		func(*sqlite.Stmt) error { ok = true; return nil }, s.k(session), epoch)
	if err == nil && !ok {
		return meta.E("commit", 0, "", meta.KindFenced, fmt.Errorf("session %d has ended or was fenced", session))
	}
	return err
}
