package local

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"nexusfs/meta"
)

// syncParallel is how many flushes one Sync has under way: they share the
// filesystem's journal commits and the disk's cache flushes.
const syncParallel = 8

// syncGroup lets concurrent callers share rounds: who comes while a round is
// under way waits for the next one, which one of them leads.
type syncGroup struct {
	leader chan struct{} // holds one token while a round is under way

	mu   sync.Mutex
	next *syncRound // gathers callers; guarded by mu
}

type syncRound struct {
	done chan struct{}
	err  error // set before done is closed
}

func newSyncGroup() syncGroup { return syncGroup{leader: make(chan struct{}, 1)} }

// join returns the round that has not begun.
func (g *syncGroup) join() *syncRound {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = &syncRound{done: make(chan struct{})}
	}
	return g.next
}

// begin closes the round to new callers.
func (g *syncGroup) begin() {
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
}

// Sync makes every Put of this Store that returned before the call durable
// (P23); what other processes have put is theirs to sync. Concurrent
// calls share rounds. When ctx ends first: KindInterrupted, and the round goes
// on. Any other error is KindIO and final for the store.
func (s *Store) Sync(ctx context.Context) error {
	if s.opts.ReadOnly {
		return nil
	}
	if err := s.enterWrite(ctx, "sync content"); err != nil {
		return err
	}
	defer s.life.leave()
	return s.syncShared(ctx)
}

// syncShared is Sync inside a call or background work of the store.
func (s *Store) syncShared(ctx context.Context) error {
	r := s.group.join()
	select {
	case <-r.done:
		return r.err
	case s.group.leader <- struct{}{}:
	case <-ctx.Done():
		return meta.E("sync content", 0, "", meta.KindInterrupted, ctx.Err())
	}
	defer func() { <-s.group.leader }()
	select {
	case <-r.done: // another caller of the same round led it
		return r.err
	default:
	}
	s.group.begin()
	r.err = s.syncRound()
	close(r.done)
	return r.err
}

// syncRound flushes everything that is not synced. Order: what Put notes last
// is taken first, so that whatever is taken here has its directories taken too.
func (s *Store) syncRound() error {
	if err := s.broken(); err != nil {
		return err
	}
	if s.inherited.Load() {
		if err := s.syncer.SyncAll(s.opts.Dir); err != nil {
			return s.fail(fmt.Errorf("flush of what the process before left in %s: %w", s.opts.Dir, err))
		}
		s.inherited.Store(false)
	}
	keys, fds, dirs := s.files.takeDirty()
	segs, newSegment := s.packs.takeDirty()
	if newSegment {
		dirs = append(dirs, s.packs.dir)
	}
	defer func() {
		for _, o := range fds {
			o.release()
		}
		for _, d := range segs {
			d.fd.release()
		}
	}()
	// gofail: var contentBeforeSync struct{}
	all := fds
	for _, d := range segs {
		all = append(all, d.fd)
	}
	err := parallel(len(all), func(i int) error { return s.syncer.Fdatasync(all[i].fd) })
	if err != nil {
		return s.fail(fmt.Errorf("flush of a file in %s: %w", s.opts.Dir, err))
	}
	for _, d := range segs {
		if unlinked(d.fd.fd) && !s.packs.isRetired(d.s.n) {
			return s.fail(fmt.Errorf("%s was removed by somebody else", s.packs.path(d.s.n)))
		}
	}
	// gofail: var contentBeforeSyncDirs struct{}
	err = parallel(len(dirs), func(i int) error { return s.syncDir(dirs[i]) })
	if err != nil {
		return s.fail(err)
	}
	// gofail: var contentAfterSync struct{}
	if s.opts.remote {
		if err := s.lock.verify(); err != nil {
			return s.fail(err)
		}
	}
	for _, k := range keys {
		s.files.synced(k)
	}
	little := len(fds) == 0 && len(segs) > 0
	for _, d := range segs {
		s.packs.synced(d)
		little = little && d.bytes <= fillIfSync
	}
	if little && s.packs.needsFill() {
		wake(s.work.fill)
	}
	return nil
}

// syncDir flushes a directory's names. One that is gone had its segment removed.
func (s *Store) syncDir(dir string) error {
	err := s.syncer.SyncDir(dir)
	if err != nil && filepath.Base(filepath.Dir(dir)) == "files" && s.files.gone(dir) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("flush of directory %s: %w", dir, err)
	}
	return nil
}

// parallel calls fn for 0 to n-1, a few at a time, and returns the first error.
func parallel(n int, fn func(i int) error) error {
	if n == 1 {
		return fn(0)
	}
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, syncParallel)
		mu    sync.Mutex
		first error
	)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(i); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return first
}
