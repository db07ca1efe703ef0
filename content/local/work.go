package local

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// background is the store's own work. Its queues are bounded and carry only
// hints: what does not fit is left out, and costs time, not correctness.
type background struct {
	quit     chan struct{}
	early    chan *openFD   // files whose writing may begin
	prefetch chan meta.Blob // blobs that will be read
	fill     chan struct{}  // zeros may be needed
	flush    chan struct{}  // many files are unsynced
	wg       sync.WaitGroup
}

const (
	earlyQueue    = 64
	prefetchQueue = 32
	earlyWorkers  = 2
)

func newBackground() *background {
	return &background{
		quit:     make(chan struct{}),
		early:    make(chan *openFD, earlyQueue),
		prefetch: make(chan meta.Blob, prefetchQueue),
		fill:     make(chan struct{}, 1),
		flush:    make(chan struct{}, 1),
	}
}

// startWork starts the goroutines that stop ends.
func (s *Store) startWork() {
	w := s.work
	w.wg.Go(func() {
		for {
			select {
			case b := <-w.prefetch:
				s.readAhead(b)
			case <-w.quit:
				return
			}
		}
	})
	w.wg.Go(func() { s.files.countAll(w.quit) })
	if s.opts.ReadOnly {
		return
	}
	for range earlyWorkers {
		w.wg.Go(w.writeEarly)
	}
	w.wg.Go(func() {
		for {
			select {
			case <-w.fill:
				s.fillAhead()
			case <-w.quit:
				return
			}
		}
	})
	w.wg.Go(func() {
		for {
			select {
			case <-w.flush:
				s.syncShared(context.Background()) // its error stays with the store
			case <-w.quit:
				return
			}
		}
	})
}

// writeEarly asks the kernel to begin writing, so that little is left for Sync.
func (w *background) writeEarly() {
	for {
		select {
		case o := <-w.early:
			unix.SyncFileRange(o.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
			o.release()
		case <-w.quit:
			return
		}
	}
}

// startWriting queues o, which is released when done. o may be nil.
func (w *background) startWriting(o *openFD) {
	if o == nil {
		return
	}
	select {
	case w.early <- o:
	default:
		o.release()
	}
}

// wake sends a signal that is not there yet.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w *background) stopping() bool {
	select {
	case <-w.quit:
		return true
	default:
		return false
	}
}

// stop ends the work and lets go what is queued.
func (w *background) stop() {
	close(w.quit)
	w.wg.Wait()
	for {
		select {
		case o := <-w.early:
			o.release()
		default:
			return
		}
	}
}
