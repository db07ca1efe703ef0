package meta

import (
	"context"
	"slices"
	"sync"
)

// The commit path. Every change of a zone goes through FS.commit, nothing else
// calls Store.Commit.
//
//  1. The caller hands in a rule (plan): a function that looks at the state and
//     returns the operation as rows, or the errno that POSIX names. Content was
//     stored before (I6).
//  2. Concurrent callers form a batch by themselves: the first one becomes the
//     leader and commits on its own goroutine, so a single caller pays no
//     hand-over and never waits for company; who arrives meanwhile queues up
//     for the next batch. The leader commits that too, a few times, then the
//     one who has waited longest leads.
//  3. The leader runs the rules one after the other on the newest state: the
//     cache, overlaid with what earlier operations of the batch will make of
//     it. So there is one winner per name, and what a rule saw cannot have
//     changed when its rows are written.
//  4. One Store.Commit: metadata, history, version, record, revision and chain
//     head in one transaction (I1, P2-P4). Guards in the rows let the store
//     refuse a single operation whose belief was wrong (another daemon); it is
//     then read again and repeated, a bounded number of times.
//  5. The results are applied to the cache (I5), announced, and handed to the
//     hooks, in revision order.
//  6. Leadership passes on; at level strict the batch then waits for the disk,
//     shared with everybody else who waits. Then the callers are answered.
//
// Invariants: queue.leading is true exactly while one goroutine is between
// becoming leader and handing over; revisions are applied in order because only
// the leader applies; nothing is answered before its COMMIT returned.
//
// Rejected: a committer goroutine of its own (two scheduler hand-overs per
// operation, 10 us of 60); locks per inode around rule and commit (a directory
// in which eight callers create would commit one at a time); acknowledging from
// memory before COMMIT (kill -9 would lose acknowledged names).

// plan is a rule: it looks at the state and returns what is to be written. A
// nil Change without error means that nothing has to change.
type plan func(v *view) (*Change, error)

// request is one caller waiting for its operation.
type request struct {
	plan   plan // nil: nothing but to look
	look   bool // the newest state of the store must be known before plan runs
	actor  Actor
	origin Origin
	wake   chan struct{} // capacity 1
	lead   bool          // woken to lead the next batch; guarded by queue.mu
	change *Change
	rev    Rev
	bytes  int64
	err    error
	tries  int
}

var requests = sync.Pool{New: func() any { return &request{wake: make(chan struct{}, 1)} }}

// reset empties a request that was used before.
func (r *request) reset() { *r = request{wake: r.wake} }

// queue is where requests gather.
type queue struct {
	mu      sync.Mutex
	pending []*request // guarded by mu
	leading bool       // guarded by mu
}

// Result is what a caller learns of its committed operation.
type Result struct {
	Rev    Rev
	Change *Change // nil: nothing had to change
}

// commit runs one operation to its end. The rule may run more than once; only
// its last run counts. Errors are the rule's own, KindNoSpace, KindIO,
// KindFenced, KindReadOnly or KindShutdown; then nothing was changed (I8).
func (fs *FS) commit(ctx context.Context, c Caller, origin Origin, p plan) (Result, error) {
	r := fs.request(c, origin, p)
	fs.enqueue(ctx, r)
	res, err := Result{Rev: r.rev, Change: r.change}, r.err
	r.reset()
	requests.Put(r)
	return res, err
}

// commitAll runs several operations of one caller, queued at once, so that they
// share transactions. It returns their errors in order.
func (fs *FS) commitAll(ctx context.Context, c Caller, origin Origin, plans []plan) []error {
	list, errs := make([]*request, len(plans)), make([]error, len(plans))
	for i, p := range plans {
		list[i] = fs.request(c, origin, p)
	}
	fs.enqueue(ctx, list...)
	for i, r := range list {
		errs[i] = r.err
		r.reset()
		requests.Put(r)
	}
	return errs
}

// request makes a request of an operation.
func (fs *FS) request(c Caller, origin Origin, p plan) *request {
	r := requests.Get().(*request)
	r.reset()
	r.plan, r.origin = p, origin
	if c.Origin != OriginKernel {
		r.origin = c.Origin
	}
	r.actor = c.Actor()
	r.actor.Node, r.actor.Agent, r.actor.Task = fs.o.Node, fs.o.Agent, fs.o.Task
	return r
}

// enqueue blocks until all of list are answered, leading batches where nobody
// else does.
func (fs *FS) enqueue(ctx context.Context, list ...*request) {
	q := &fs.queue
	q.mu.Lock()
	q.pending = append(q.pending, list...)
	lead := !q.leading
	q.leading = true
	q.mu.Unlock()
	for i, r := range list {
		if !lead || i > 0 {
			<-r.wake
			q.mu.Lock()
			lead = r.lead
			q.mu.Unlock()
		}
		if lead {
			fs.lead(ctx, r)
		}
	}
}

// leadTurns is how many batches a leader commits in a row while others wait. To
// wake the next leader takes longer than a small batch, so handing over each
// time would leave the store idle in between; its own caller waits meanwhile.
const leadTurns = 4

// lead commits batches, in the first of which own is, and hands leadership on.
func (fs *FS) lead(ctx context.Context, own *request) {
	for turn := 1; ; turn++ {
		batch := fs.queue.take()
		fs.runBatch(context.WithoutCancel(ctx), batch)
		last := fs.queue.pass(turn == leadTurns || fs.o.Strict)
		if fs.o.Strict {
			fs.strictBarrier(batch)
		}
		for _, r := range batch {
			if r != own {
				r.wake <- struct{}{}
			}
		}
		if last {
			return
		}
	}
}

// take returns the next batch. Its caller is the leader.
func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.pending), maxBatch)
	batch := append([]*request(nil), q.pending[:n]...)
	q.pending = append(q.pending[:0], q.pending[n:]...)
	return batch
}

// pass ends the leadership of its caller when nobody waits, or hands it to who
// waits longest if the caller must end it; it reports whether it did.
func (q *queue) pass(must bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		q.leading = false
		return true
	}
	if must {
		next := q.pending[0]
		next.lead = true
		next.wake <- struct{}{}
	}
	return must
}

// strictBarrier makes the batch durable, if it changed anything.
func (fs *FS) strictBarrier(batch []*request) {
	changed := func(r *request) bool { return r.err == nil && r.change != nil }
	if !slices.ContainsFunc(batch, changed) {
		return
	}
	if err := fs.sync.wait(); err != nil {
		for _, r := range batch {
			if changed(r) {
				r.err = err
			}
		}
	}
}

// runBatch answers every request of the batch. Requests whose belief was wrong
// are planned again with fresh reads.
func (fs *FS) runBatch(ctx context.Context, batch []*request) {
	for todo := batch; len(todo) > 0; {
		todo = fs.tryBatch(ctx, todo)
	}
}

// tryBatch plans and commits once and returns what must be repeated.
func (fs *FS) tryBatch(ctx context.Context, batch []*request) (again []*request) {
	batch = fs.lookFirst(ctx, batch)
	known, own := Rev(fs.head.Load()), fs.session.Load()
	v := view{fs: fs, ctx: ctx, now: fs.now().UnixNano(), next: known + 1, overlay: len(batch) > 1}
	planned := make([]*request, 0, len(batch))
	for _, r := range batch {
		r.change, r.err = nil, nil
		switch r.err = fs.planOne(&v, r); {
		case r.err == nil && r.change != nil:
			planned = append(planned, r)
		case !r.look && fs.peers.sharing.Load(): // what refused it may be another daemon's past
			r.look = true
			again = append(again, r)
		}
	}
	if len(planned) == 0 {
		return again
	}
	b := Batch{Session: own.number, Epoch: own.epoch, Barrier: fs.sync.durable(), Known: known, Changes: make([]*Change, len(planned))}
	for i, r := range planned {
		b.Changes[i] = r.change
	}
	// gofail: var beforeCommit struct{}
	outcomes, err := fs.o.Store.Commit(ctx, &b)
	// gofail: var afterCommit struct{}
	if err != nil {
		return append(again, fs.refused(ctx, planned, err)...)
	}
	return append(again, fs.settle(ctx, planned, outcomes)...)
}

// refused answers the requests of a batch that the store did not take, and
// returns those to repeat: after a loss they are planned again on what is left.
func (fs *FS) refused(ctx context.Context, planned []*request, err error) (again []*request) {
	switch KindOf(err) {
	case KindFenced:
		fs.fenced(err)
	case KindLost:
		if rerr := fs.rejoin(ctx); rerr != nil {
			err = rerr
			break
		}
		for _, r := range planned {
			if r.change = nil; r.tries < maxRetries {
				r.tries++
				again = append(again, r)
			} else {
				r.err = err
			}
		}
		return again
	}
	for _, r := range planned {
		r.err, r.change = err, nil
	}
	return nil
}

// planOne runs a request's rule and completes its record.
func (fs *FS) planOne(v *view, r *request) error {
	ch, err := r.plan(v)
	if err != nil || ch == nil {
		return err
	}
	rec := &ch.Record
	rec.Actor, rec.Seq = r.actor, fs.seq.Add(1)
	if rec.Time == 0 {
		rec.Time = v.now
	}
	rec.Digest = rec.digest(fs.session.Load().number)
	r.change = ch
	if v.overlay {
		v.add(ch)
	}
	v.next++
	return nil
}

// settle applies what was committed and returns the requests to repeat.
func (fs *FS) settle(ctx context.Context, planned []*request, outcomes []Outcome) (again []*request) {
	fs.overtaken(ctx, outcomes)
	done := make([]Committed, 0, len(planned))
	for i, r := range planned {
		o := outcomes[i]
		if o.Err != nil {
			fs.forget(r.change)
			r.look = true
			fs.counters.conflicts.Add(1)
			if r.tries++; KindOf(o.Err) == KindConflict && r.tries < maxRetries {
				again = append(again, r)
			} else {
				r.err = E(r.change.Record.Kind.String(), r.change.Record.Ino, r.change.Record.Name, conflictKind(o.Err), o.Err)
			}
			r.change = nil
			continue
		}
		r.rev, r.bytes = o.Rev, o.Bytes
		done = append(done, Committed{Rev: o.Rev, Change: r.change, Attrs: fs.apply(r.change, o), Origin: r.origin})
	}
	if len(done) == 0 {
		return again
	}
	fs.counters.ops.Add(int64(len(done)))
	fs.counters.batches.Add(1)
	fs.head.Store(int64(done[len(done)-1].Rev))
	if fs.o.Durable {
		fs.sync.safe.Store(fs.head.Load())
	}
	fs.sync.dirty()
	fs.publish(ctx, done)
	return again
}

// overtaken applies what others committed between the newest revision known
// here and the batch. When the store does not say, everything is dropped.
func (fs *FS) overtaken(ctx context.Context, outcomes []Outcome) {
	i := slices.IndexFunc(outcomes, func(o Outcome) bool { return o.Err == nil })
	if i < 0 {
		return
	}
	known, before := Rev(fs.head.Load()), outcomes[i].Rev-1
	if before == known {
		return
	}
	if err := fs.follow(ctx, known, before); err != nil {
		fs.log.Warn("what other daemons changed is not known: everything is dropped", "err", err)
		if err := fs.dropAll(ctx, before); err != nil {
			fs.log.Error("dropping the kernel's caches failed; unmount", "err", err)
		}
	}
}

// conflictKind hides KindConflict, which means nothing to a caller.
func conflictKind(err error) Kind {
	if k := KindOf(err); k != KindConflict {
		return k
	}
	return KindBusy
}

// publish announces committed operations and runs the hooks in order. What
// fails here does not undo anything: the store has it, and says so (P6).
func (fs *FS) publish(ctx context.Context, ops []Committed) {
	if fs.o.Announcer != nil {
		// gofail: var beforeAnnounce struct{}
		if err := fs.o.Announcer.Announce(ctx, ops); err != nil {
			fs.late(ctx, ops, "announce", err)
		}
	}
	for _, h := range fs.o.Hooks {
		// gofail: var beforeHook struct{}
		if err := h.Apply(ctx, ops); err != nil {
			fs.late(ctx, ops, h.Name(), err)
		}
	}
}

// late records operations that were committed and could not be passed on.
func (fs *FS) late(ctx context.Context, ops []Committed, where string, err error) {
	fs.log.Error("committed, not passed on", "rev", ops[0].Rev, "last", ops[len(ops)-1].Rev, "where", where, "err", err)
	for _, op := range ops {
		if lerr := fs.o.History.LateAnswer(ctx, op.Rev, where+": "+err.Error()); lerr != nil {
			fs.log.Error("late answer not recorded", "rev", op.Rev, "err", lerr)
		}
	}
}

// apply puts a committed change into the cache and returns the after-images of
// its inodes.
func (fs *FS) apply(ch *Change, o Outcome) []Attr {
	attrs := make([]Attr, len(ch.Inodes))
	for i := range ch.Inodes {
		a := new(Attr)
		*a = ch.Inodes[i].After
		a.Rev = o.Rev
		if a.ContentRev == RevPending {
			a.ContentRev = o.Rev
		}
		if ch.Content != nil && ch.Content.Ino == a.Ino {
			a.Bytes = o.Bytes
		} else if ch.Inodes[i].Before != nil { // only the store knew what an operation before it in the batch made of it
			if old, ok := fs.cache.attr(a.Ino).get(a.Ino); ok {
				a.Bytes = old.Bytes
			}
		}
		attrs[i] = *a
		fs.cache.attr(a.Ino).apply(a.Ino, a)
	}
	for _, d := range ch.Dirs {
		s := fs.cache.attr(d.Ino)
		if old, ok := s.get(d.Ino); ok {
			s.apply(d.Ino, d.applied(old, o.Rev))
		} else {
			s.drop(d.Ino)
		}
	}
	if len(ch.Names) > 0 {
		fs.known.add(ch)
	}
	for _, n := range ch.Names {
		fs.cache.name(n.Parent, n.Name).apply(nameKey{n.Parent, n.Name}, nameVal{n.After, n.AfterType})
	}
	return attrs
}

// applied returns the directory's attributes after the delta.
func (d *DirDelta) applied(old *Attr, rev Rev) *Attr {
	a := *old
	a.Entries += d.Entries
	a.Nlink = uint32(int64(a.Nlink) + d.Nlink)
	a.Mtime, a.Ctime, a.Rev = d.Time, d.Time, rev
	return &a
}

// forget drops from the cache everything that a refused change believed.
func (fs *FS) forget(ch *Change) {
	for i := range ch.Inodes {
		fs.cache.attr(ch.Inodes[i].After.Ino).drop(ch.Inodes[i].After.Ino)
	}
	for _, d := range ch.Dirs {
		fs.cache.attr(d.Ino).drop(d.Ino)
	}
	for _, n := range ch.Names {
		fs.cache.name(n.Parent, n.Name).drop(nameKey{n.Parent, n.Name})
	}
}
