package meta

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Named limits of the filesystem's own queues and caches.
const (
	maxBatch     = 256     // operations in one transaction
	maxRetries   = 16      // of an operation whose belief was wrong
	inoRange     = 1 << 16 // inode numbers taken from the store at once
	revReserve   = 1 << 20 // revisions reserved ahead of the barrier (P22)
	cachedAttrs  = 32 << 10
	cachedNames  = 32 << 10
	rootMaxDepth = 1 << 16 // directories on one path; more is a loop in the store
)

// Options is what an FS needs. Store, History, Sessions, Upkeep and Content are
// required; they may be one object.
type Options struct {
	Store     Store
	History   History
	Sessions  Sessions
	Upkeep    Upkeep
	Content   Content
	Announcer Announcer // nil: this node is alone
	Peers     Peers     // nil: no other daemon can open the store
	Hooks     []Hook    // in order

	Zone       string // for messages
	Node       string
	Mountpoint string
	BootID     string // identifies the machine's boot
	PID        int
	Agent      string // declared by whoever mounted; on every record
	Task       string
	ReadOnly   bool
	Strict     bool                // durability level 'strict': every operation waits for the disk
	Durable    bool                // Store.Commit returns when the batch is durable
	Far        bool                // the store is a network away: directories are read ahead
	SyncFirst  bool                // content is durable before a commit names it, at every level: nothing is ever taken back
	Began      func(session int64) // told of each session that this daemon begins; nil: nobody wants to know
	Replaces   int64               // this daemon\'s session before this one, which is over, where there are Peers; 0: none
	Lease      time.Duration       // of the session, where there are Peers; 0: DefaultLease
	Retention  RetentionPolicy
	StageLimit int64            // bytes of staged writes in memory, 0: 64 MiB
	StageAge   time.Duration    // staged writes older than this are committed, 0: 5 s
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: discarded
}

// RetentionPolicy says which history is kept (P26): a version goes when it is
// older than MaxAge or not among its file's newest MaxVersions. A zero field
// does not limit; Off keeps none.
type RetentionPolicy struct {
	Off         bool
	MaxAge      time.Duration
	MaxVersions int
}

// DefaultRetention keeps 7 days and 30 versions.
var defaultRetention = RetentionPolicy{MaxAge: 7 * 24 * time.Hour, MaxVersions: 30}

// DefaultRetention returns the policy of a mount that names none: 7 days, 30 versions.
func DefaultRetention() RetentionPolicy { return defaultRetention }

// FS is one mounted zone. All methods may be called concurrently between Open
// and Close. Methods that change something block until the operation is
// committed (and, at level strict, durable).
//
// LOCK ORDER: node.mu, then queue.mu, then a cache shard's mu. None of them is
// held over SQL, content or network. losses.joining is: it orders heartbeats
// and who replaces the session, and no request takes it.
type FS struct {
	o   Options
	now func() time.Time
	log *slog.Logger

	queue  queue
	cache  cache
	known  complete
	room   room
	nodes  nodes
	sync   barrier
	peers  peers
	losses losses

	listings listings

	session  atomic.Pointer[session] // never nil
	head     atomic.Int64            // newest revision applied here
	seq      atomic.Int64            // last operation key of this session
	inos     inoPool
	failed   atomic.Pointer[Error] // set once the store cannot be trusted any more
	closing  atomic.Bool
	counters counters
}

// New makes an FS; it touches nothing. Open starts it.
func New(o Options) *FS {
	fs := &FS{o: o, now: o.Now, log: o.Log}
	if fs.now == nil {
		fs.now = time.Now
	}
	if fs.log == nil {
		fs.log = slog.New(slog.DiscardHandler)
	}
	if fs.o.StageLimit == 0 {
		fs.o.StageLimit = 64 << 20
	}
	if fs.o.StageAge == 0 {
		fs.o.StageAge = 5 * time.Second
	}
	fs.cache.init()
	fs.nodes.init()
	fs.sync.fs = fs
	fs.session.Store(new(session))
	return fs
}

// counters are the figures that Status shows; all monotonic.
type counters struct {
	ops, batches, conflicts    atomic.Int64
	attrHits, attrMisses       atomic.Int64
	nameHits, nameMisses       atomic.Int64
	bytesRead, bytesWritten    atomic.Int64
	barriers                   atomic.Int64
	versionsPruned, blobsFreed atomic.Int64
}

// inoPool hands out inode numbers from ranges that the store made durable.
type inoPool struct {
	mu         sync.Mutex
	next, last Ino // guarded by mu; next > last: empty
}

// take returns a fresh inode number.
func (p *inoPool) take(ctx context.Context, s Sessions) (Ino, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == 0 || p.next > p.last {
		first, err := s.Inos(ctx, inoRange)
		if err != nil {
			return 0, err
		}
		p.next, p.last = first, first+inoRange-1
	}
	ino := p.next
	p.next++
	return ino, nil
}

// fail marks the store as not to be trusted any more: an fsync was refused, so
// nobody knows what the disk holds. Reads go on, changes are refused. After a loss
// it is known what there is: the leader goes on with that.
func (fs *FS) fail(err error) error {
	if KindOf(err) == KindLost {
		fs.losses.suspected.Store(true)
		return err
	}
	e := &Error{Op: "sync", Kind: KindIO, Err: err}
	if fs.failed.CompareAndSwap(nil, e) {
		fs.log.Error("the store's disk refused a sync; changes are refused from now on. "+
			"Check the disk, then mount again", "err", err)
	}
	return e
}

// writable refuses changes where there must be none.
func (fs *FS) writable(op string) error {
	switch {
	case fs.o.ReadOnly:
		return E(op, 0, "", KindReadOnly, nil)
	case fs.closing.Load():
		return E(op, 0, "", KindShutdown, nil)
	}
	if e := fs.failed.Load(); e != nil {
		return e
	}
	return nil
}
