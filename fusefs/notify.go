package fusefs

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// Limits of the queues to the kernel. What does not fit makes everything
// suspect, see Notifier.
const (
	inodeWorkers  = 4
	nameWorkers   = 4
	maxInodeNotes = 1 << 14                // waiting, per worker
	maxNameNotes  = 1 << 14                // waiting, per worker
	maxNameDelay  = 100 * time.Millisecond // then all names are dropped at once
	maxRechecked  = 1 << 16                // inodes remembered after an overflow
)

// kernel is what the notifier writes to: go-fuse's server, and the device
// itself for what go-fuse has no method for. A test has one of its own.
type kernel interface {
	InodeNotify(node uint64, off, length int64) fuse.Status
	EntryNotify(parent uint64, name string) fuse.Status
	DeleteNotify(parent, child uint64, name string) fuse.Status
	// IncEpoch drops every name of the mount; Linux has it from 6.16 on.
	IncEpoch() error
}

// Notifier tells the kernel what it must not keep (P11). Its Invalidate
// methods queue and return at once, so they may be called under locks and from
// the commit path; its own goroutines write. A note for a name waits behind
// lookups in the same directory, so names have queues of their own and an
// inode's note is never stuck behind one. Before the mount serves there is
// nothing to tell and notes are dropped.
//
// A note that does not fit in its queue is not lost silently: names are
// dropped all at once, where the kernel can do that, the attributes and pages
// of open inodes with them, and those of any other inode when it is opened
// next. The same for names when writing them takes too long.
type Notifier struct {
	log *slog.Logger

	inodes  [inodeWorkers]inodeQueue
	names   [nameWorkers]nameQueue
	suspect suspects
	reset   chan reset // wakes the goroutine that drops everything

	kernel   atomic.Pointer[attached]
	ended    chan struct{} // closed when nothing is written any more
	waiting  atomic.Int64  // inode notes not written yet: lets OPEN pass without a lock
	written  atomic.Int64
	overflow atomic.Int64
}

// attached is a kernel that listens.
type attached struct {
	kernel
	open func(fn func(node uint64)) // calls fn for every inode that is open
}

// NewNotifier makes a Notifier. It belongs to the one mount that is given it.
func NewNotifier(log *slog.Logger) *Notifier {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n := &Notifier{log: log, reset: make(chan reset, 1), ended: make(chan struct{})}
	for i := range n.inodes {
		n.inodes[i].wake = make(chan struct{}, 1)
	}
	for i := range n.names {
		n.names[i].wake = make(chan struct{}, 1)
	}
	return n
}

// reset asks for everything to be dropped.
type reset struct {
	why  string
	done chan error // gets the outcome; nil: nobody waits
}

// inodeNote is an invalidation. Notes of one inode are merged while they wait.
type inodeNote struct {
	ino     meta.Ino
	pages   bool
	started bool          // being written: it cannot take more in
	done    chan struct{} // closed once it was written
}

// inodeQueue holds the notes of a part of the inodes.
type inodeQueue struct {
	wake chan struct{}

	mu      sync.Mutex
	newest  map[meta.Ino]*inodeNote // guarded by mu; not written yet
	pending []*inodeNote            // guarded by mu; not started yet, in order
}

// nameNote is a name that the kernel must look up again, or a mark in the
// queue that says when everything before it was written.
type nameNote struct {
	parent meta.Ino
	name   string
	gone   meta.Ino      // what the name referred to when it was removed; 0: unknown
	mark   chan struct{} // not nil: no name, to be closed
}

// nameQueue holds the notes of a part of the directories, in order.
type nameQueue struct {
	wake chan struct{}

	mu      sync.Mutex
	pending []nameNote // guarded by mu
}

func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// InvalidateInode makes the kernel ask again for an inode's attributes and,
// with pages, for its content (of a directory: its listing).
func (n *Notifier) InvalidateInode(ino meta.Ino, pages bool) {
	if n.kernel.Load() != nil && !n.queueInode(ino, pages) {
		n.overflowed()
	}
}

func (n *Notifier) queueInode(ino meta.Ino, pages bool) bool {
	q := &n.inodes[uint64(ino)%inodeWorkers]
	q.mu.Lock()
	defer q.mu.Unlock()
	if note := q.newest[ino]; note != nil && !note.started {
		note.pages = note.pages || pages
		return true
	}
	if len(q.pending) >= maxInodeNotes {
		return false
	}
	if q.newest == nil {
		q.newest = make(map[meta.Ino]*inodeNote)
	}
	note := &inodeNote{ino: ino, pages: pages, done: make(chan struct{})}
	q.newest[ino] = note
	q.pending = append(q.pending, note)
	n.waiting.Add(1)
	signal(q.wake)
	return true
}

// InvalidateName makes the kernel look a name up again. gone is the inode that
// the name referred to when the name was removed, else 0. Notes of one
// directory are written in the order in which they were queued.
func (n *Notifier) InvalidateName(parent meta.Ino, name string, gone meta.Ino) {
	if n.kernel.Load() != nil && !n.queueName(nameNote{parent: parent, name: name, gone: gone}) {
		n.overflowed()
	}
}

func (n *Notifier) queueName(note nameNote) bool {
	q := &n.names[uint64(note.parent)%nameWorkers]
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) >= maxNameNotes && note.mark == nil {
		return false
	}
	q.pending = append(q.pending, note)
	signal(q.wake)
	return true
}

// delivered blocks until every invalidation of an inode that was queued before
// the call was written to the kernel (P12). It must not be called by a request
// for which the kernel holds back writes to that inode: writing them may be
// what the invalidation waits for.
func (n *Notifier) delivered(ctx context.Context, ino meta.Ino) {
	if n.suspect.check(ino) {
		n.InvalidateInode(ino, true)
		defer n.suspect.checked(ino)
	}
	if n.waiting.Load() == 0 {
		return
	}
	q := &n.inodes[uint64(ino)%inodeWorkers]
	q.mu.Lock()
	note := q.newest[ino]
	q.mu.Unlock()
	if note == nil {
		return
	}
	select {
	case <-note.done:
	case <-ctx.Done():
	}
}

// Drain blocks until everything that was queued before the call was written to
// the kernel, or ctx ends. Commands that changed something beside the kernel
// call it before they tell the user that it is done. It must not be called by
// a request's goroutine: names wait for requests.
func (n *Notifier) Drain(ctx context.Context) error {
	if n.kernel.Load() == nil {
		return nil
	}
	var marks []chan struct{}
	for i := range n.inodes {
		q := &n.inodes[i]
		q.mu.Lock()
		for _, note := range q.newest {
			marks = append(marks, note.done)
		}
		q.mu.Unlock()
	}
	for i := range n.names {
		mark := make(chan struct{})
		n.queueName(nameNote{parent: meta.Ino(i), mark: mark})
		marks = append(marks, mark)
	}
	for _, mark := range marks {
		select {
		case <-mark:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Written counts the notes written since the start, Overflows how often a
// queue was full or too slow.
func (n *Notifier) Written() int64   { return n.written.Load() }
func (n *Notifier) Overflows() int64 { return n.overflow.Load() }

// attach starts the flow of notes to a kernel.
func (n *Notifier) attach(k kernel, open func(func(node uint64))) {
	n.kernel.Store(&attached{k, open})
}

// run writes notes until ctx ends; then nothing is queued any more and whoever
// waits for a note goes on.
func (n *Notifier) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range n.inodes {
		wg.Go(func() { n.runInodes(ctx, &n.inodes[i]) })
	}
	for i := range n.names {
		wg.Go(func() { n.runNames(ctx, &n.names[i]) })
	}
	wg.Go(func() { n.runReset(ctx) })
	<-ctx.Done()
	n.kernel.Store(nil)
	close(n.ended)
	wg.Wait()
	for i := range n.inodes {
		q := &n.inodes[i]
		for note := q.take(); note != nil; note = q.take() {
			n.finish(q, note)
		}
	}
	for i := range n.names {
		for _, note := range n.names[i].take() {
			if note.mark != nil {
				close(note.mark)
			}
		}
	}
}

// take starts the next note, nil when there is none.
func (q *inodeQueue) take() *inodeNote {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		q.pending = nil
		return nil
	}
	note := q.pending[0]
	q.pending = q.pending[1:]
	note.started = true
	return note
}

func (n *Notifier) finish(q *inodeQueue, note *inodeNote) {
	q.mu.Lock()
	if q.newest[note.ino] == note {
		delete(q.newest, note.ino)
	}
	q.mu.Unlock()
	n.waiting.Add(-1)
	close(note.done)
}

// runInodes writes the notes of one queue. A negative offset leaves the pages.
func (n *Notifier) runInodes(ctx context.Context, q *inodeQueue) {
	for {
		note := q.take()
		if note == nil {
			select {
			case <-ctx.Done():
				return
			case <-q.wake:
				continue
			}
		}
		off := int64(-1)
		if note.pages {
			off = 0
		}
		if k := n.kernel.Load(); k != nil {
			n.wrote(k.InodeNotify(uint64(note.ino), off, 0), "inode", uint64(note.ino))
		}
		n.finish(q, note)
	}
}

func (q *nameQueue) take() []nameNote {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.pending
	q.pending = nil
	return batch
}

// runNames writes the notes of one queue. Behind a slow lookup they wait; then
// the kernel drops all names, which waits for nothing.
func (n *Notifier) runNames(ctx context.Context, q *nameQueue) {
	for {
		batch := q.take()
		if batch == nil {
			select {
			case <-ctx.Done():
				return
			case <-q.wake:
				continue
			}
		}
		late := time.AfterFunc(maxNameDelay, n.overflowed)
		for i := range batch {
			n.writeName(&batch[i])
		}
		late.Stop()
	}
}

func (n *Notifier) writeName(note *nameNote) {
	if note.mark != nil {
		close(note.mark)
		return
	}
	k := n.kernel.Load()
	if k == nil {
		return
	}
	parent := uint64(note.parent)
	if note.gone != 0 {
		// It also tells who watches the directory, and takes the name from a
		// directory that somebody works in; it refuses where it is not sure.
		if k.DeleteNotify(parent, uint64(note.gone), note.name) == ok {
			n.written.Add(1)
			return
		}
	}
	n.wrote(k.EntryNotify(parent, note.name), "name", parent)
}

// wrote counts a note. 'Not exist' is the kernel saying that it had nothing.
func (n *Notifier) wrote(st fuse.Status, what string, node uint64) {
	n.written.Add(1)
	switch st {
	case ok, stNotExist, stBadHandle, stNotConnected:
	default:
		n.log.Error("the kernel refused an invalidation; its caches are dropped instead",
			"what", what, "ino", node, "err", statusError(st))
		n.overflowed()
	}
}

// overflowed makes everything suspect.
func (n *Notifier) overflowed() {
	n.overflow.Add(1)
	n.suspect.all()
	select {
	case n.reset <- reset{why: "too many invalidations for the kernel"}:
	default: // it will be dropped already
	}
}

// DropAll makes the kernel look every name up again, and drops the attributes
// and pages of open files; those of any other file go when it is opened next.
// With wait it returns once the kernel was told, and fails where Linux before
// 6.16 keeps names. A request's goroutine must not wait.
func (n *Notifier) DropAll(ctx context.Context, wait bool) error {
	if n.kernel.Load() == nil {
		return nil // nothing was answered yet, or nothing is any more
	}
	n.suspect.all()
	r := reset{why: "others change the zone"}
	if !wait {
		select {
		case n.reset <- r:
		default:
		}
		return nil
	}
	r.done = make(chan error, 1)
	select {
	case n.reset <- r:
	case <-n.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-r.done:
		return err
	case <-n.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// runReset drops what can be dropped at once.
func (n *Notifier) runReset(ctx context.Context) {
	for {
		var r reset
		select {
		case <-ctx.Done():
			return
		case r = <-n.reset:
		}
		err := n.resetKernel(r.why)
		if r.done != nil {
			r.done <- err
		}
	}
}

func (n *Notifier) resetKernel(why string) error {
	k := n.kernel.Load()
	if k == nil {
		return nil
	}
	n.log.Info("all names that the kernel keeps are dropped", "why", why)
	err := k.IncEpoch()
	if err != nil {
		n.log.Error("this kernel cannot drop all names at once (Linux 6.16 can): names that changed "+
			"just now may be seen as they were; unmount and mount again to be sure", "err", err)
	}
	k.open(func(node uint64) {
		st := k.InodeNotify(node, 0, 0)
		if st != ok && st != stNotExist {
			n.log.Warn("dropping an open file's pages", "ino", node, "err", statusError(st))
		}
	})
	return err
}

// suspects are the inodes whose pages and attributes may be stale since a note
// about nobody knows whom was lost: all but those that were invalidated since.
type suspects struct {
	active atomic.Bool

	mu    sync.Mutex
	clean map[meta.Ino]struct{} // guarded by mu
}

// all makes every inode suspect.
func (s *suspects) all() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clean = make(map[meta.Ino]struct{})
	s.active.Store(true)
}

// check reports whether an inode is suspect.
func (s *suspects) check(ino meta.Ino) bool {
	if !s.active.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, clean := s.clean[ino]
	return !clean
}

// checked notes that an inode was invalidated. What does not fit stays suspect
// and is invalidated at each open.
func (s *suspects) checked(ino meta.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clean) < maxRechecked {
		s.clean[ino] = struct{}{}
	}
}
