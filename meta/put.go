package meta

import (
	"context"
	"sync"
)

// Named limits of storing chunks early.
const (
	putWorkers  = 2
	hashFirst   = 1 << 20  // blobs up to this size are looked for before they are stored
	streamReady = 32 << 20 // stored bytes of one file that wait to be committed
)

// putter stores sealed chunks in the background. Its workers live as long as
// there is work.
type putter struct {
	mu     sync.Mutex
	queue  []*sealed // guarded by mu
	active int       // guarded by mu
	wg     sync.WaitGroup

	// gate orders a blob's pin and the look at its place against those who move
	// or free places: they hold it for writing while they look at the pins, so
	// no blob is being stored unpinned then, and no place being looked up. It is
	// held over the store and the content store, in the background alone.
	gate sync.RWMutex
}

// submit queues a sealed chunk.
func (fs *FS) submit(s *sealed) {
	p := &fs.nodes.put
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, s)
	if p.active < putWorkers {
		p.active++
		p.wg.Add(1)
		go fs.putWorker()
	}
}

// take takes a chunk out of the queue; nil when there is none.
func (p *putter) take() *sealed {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil
	}
	s := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	return s
}

// retire ends a worker unless there is work again.
func (p *putter) retire() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return false
	}
	p.queue = nil
	p.active--
	return true
}

func (fs *FS) putWorker() {
	defer fs.nodes.put.wg.Done()
	ctx := context.Background()
	for {
		s := fs.nodes.put.take()
		if s == nil {
			if fs.nodes.put.retire() {
				return
			}
			continue
		}
		if err := fs.storeSealed(ctx, s); err != nil {
			fs.log.Warn("storing written content early failed; it stays in memory", "ino", s.n.ino, "err", err)
			continue
		}
		fs.streamReady(ctx, s.n)
	}
}

// streamReady commits the stored chunks of a file that has many of them, so
// that a long write loses little to a kill and its close has little to do.
func (fs *FS) streamReady(ctx context.Context, n *node) {
	held := fs.useNode(n.ino)
	if held == nil {
		return
	}
	defer fs.closeNode(held)
	if held != n {
		return // closed, and opened again, meanwhile
	}
	n.mu.Lock()
	var ready int64
	for i := range n.staged.runs {
		if r := &n.staged.runs[i]; r.seal != nil && r.seal.stored {
			ready += r.n
		}
	}
	busy := n.flight != nil
	n.mu.Unlock()
	if ready < streamReady || busy {
		return
	}
	if err := fs.flush(ctx, Caller{}, n, flushReady); err != nil {
		fs.log.Warn("committing a part of a long write failed; it stays staged", "ino", n.ino, "err", err)
	}
}

// storeSealed returns when a sealed chunk is in the content store, whoever
// stored it.
func (fs *FS) storeSealed(ctx context.Context, s *sealed) error {
	n := s.n
	n.mu.Lock()
	for {
		if s.stored || s.buf == nil {
			n.mu.Unlock()
			return nil
		}
		w := s.work
		if w == nil {
			break
		}
		n.mu.Unlock()
		<-w.done
		if w.err != nil {
			return w.err
		}
		n.mu.Lock()
	}
	w := &putting{done: make(chan struct{})}
	s.work = w
	data := s.buf.b[:BlobMax]
	n.mu.Unlock()

	var blob Blob
	var fresh bool
	err := fs.takeRoom(ctx, "write", n.ino, BlobMax)
	if err == nil {
		blob, fresh, err = fs.keep(ctx, data)
	}

	n.mu.Lock()
	s.work, w.err = nil, err
	if err != nil {
		n.putErr = err
	} else {
		s.stored, s.blob, s.fresh = true, blob, fresh
		n.held -= s.buf.size()
		s.buf.free()
		s.buf = nil
		fs.nodes.account(n)
	}
	n.mu.Unlock()
	close(w.done)
	fs.sweep(ctx, n)
	return err
}

// keep puts bytes into the content store unless the zone has them, and pins
// the blob until unpin. fresh says that it lies at a place of its own, which
// is the caller's to free should nothing come to refer to it.
//
// A blob of megabytes is stored before it is looked for: it is seldom there,
// and hashing it twice costs more than a file that goes again at once.
func (fs *FS) keep(ctx context.Context, data []byte) (b Blob, fresh bool, err error) {
	// gofail: var beforePut struct{}
	pins := &fs.nodes.pins
	if len(data) <= hashFirst {
		id := fs.o.Content.ID(data)
		fs.nodes.put.gate.RLock()
		pins.add(id)
		b, err = fs.o.Store.Blob(ctx, id)
		fs.nodes.put.gate.RUnlock()
		if err == nil {
			return b, false, nil
		}
		if KindOf(err) == KindNotExist {
			b, err = fs.o.Content.Put(ctx, data)
		}
		if err != nil {
			pins.done(id)
			return Blob{}, false, err
		}
		// gofail: var afterPut struct{}
		return b, true, nil
	}
	fs.nodes.put.gate.RLock()
	b, err = fs.o.Content.Put(ctx, data)
	if err == nil {
		pins.add(b.ID)
	}
	fs.nodes.put.gate.RUnlock()
	if err != nil {
		return Blob{}, false, err
	}
	old, err := fs.o.Store.Blob(ctx, b.ID)
	if err != nil {
		return b, true, nil // not there, or not to be found out: both are served by the new one
	}
	if !samePlace(old, b) {
		fs.freeBlobs(ctx, []Blob{b})
	}
	return old, false, nil
}

func samePlace(a, b Blob) bool {
	return a.Place == b.Place && a.Segment == b.Segment && a.Offset == b.Offset
}

// freeBlobs gives back places that nothing refers to. What fails here is
// found by the next check of the store.
func (fs *FS) freeBlobs(ctx context.Context, blobs []Blob) {
	if len(blobs) == 0 {
		return
	}
	if err := fs.o.Content.Free(ctx, blobs); err != nil {
		fs.log.Warn("unused content was not freed; fsck will find it", "blobs", len(blobs), "err", err)
	}
}

// sweep drops the sealed chunks of a node that nothing shows any more.
func (fs *FS) sweep(ctx context.Context, n *node) {
	n.mu.Lock()
	if len(n.unused) == 0 {
		n.mu.Unlock()
		return
	}
	var free []Blob
	busy := n.unused[:0]
	for _, s := range n.unused {
		if s.work != nil { // storeSealed sweeps again
			busy = append(busy, s)
			continue
		}
		if s.buf != nil {
			n.held -= s.buf.size()
			s.buf.free()
			s.buf = nil
		}
		if s.stored {
			fs.nodes.pins.done(s.blob.ID)
			if s.fresh {
				free = append(free, s.blob)
			}
		}
	}
	clear(n.unused[len(busy):])
	n.unused = busy
	fs.nodes.account(n)
	n.mu.Unlock()
	fs.freeBlobs(ctx, free)
}

// pins are the blobs that staged content relies on before any row refers to
// them: collection leaves them alone (P28), and no copy of a blob is lost when
// two writers store the same bytes at the same time.
type pins struct {
	mu sync.Mutex
	m  map[BlobID]*pin // guarded by mu
}

type pin struct {
	count  int
	shared bool // two had it at a time
}

func (p *pins) add(id BlobID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.m[id]
	if e == nil {
		e = new(pin)
		p.m[id] = e
	}
	e.count++
	e.shared = e.shared || e.count > 1
}

// done takes a pin back and says whether somebody else had one meanwhile.
func (p *pins) done(id BlobID) (shared bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.m[id]
	e.count--
	if e.count == 0 {
		delete(p.m, id)
	}
	return e.shared
}

func (p *pins) has(id BlobID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[id] != nil
}
