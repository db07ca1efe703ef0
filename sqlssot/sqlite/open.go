package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

const (
	// zoneShift is where the zone's number begins in keys of the tables.
	zoneShift = 48
	keyMask   = 1<<zoneShift - 1
	// maxZones bounds the number of zones of one database (keys stay positive).
	maxZones = 1 << 14
	// logBound is the size of the write-ahead log above which Checkpoint makes
	// room under the writer's lock, and to which the file is cut then.
	logBound = 32 << 20

	// newPageSize is that of databases made from now on. Every page that a commit
	// touches goes whole into the log, and most commits change a row in each of
	// five: small pages make a commit a third cheaper (docs/adr/0002).
	newPageSize = 1 << 10

	writerCacheKiB = 1 << 10
	readerCacheKiB = 2 << 10
)

// Options say which store to open.
type Options struct {
	Path     string // the database file
	Zone     string // "" means "default"
	ReadOnly bool   // writes nothing; Commit and everything else that writes gives KindReadOnly
	Log      *slog.Logger
	Now      func() time.Time

	// For Create: the root directory's permission bits and owner.
	Mode, UID, GID uint32
}

// Store is one zone of one database file: meta.Store, meta.Sessions,
// meta.History and meta.Upkeep.
//
// LOCK ORDER: sweepMu, ckptMu, writeMu, then syncer.mu. Readers take none of them.
type Store struct {
	path     string
	uri      string
	zoneName string
	zone     int64
	base     int64 // zone << zoneShift
	readOnly bool
	log      *slog.Logger
	now      func() time.Time
	indexLag int64
	pageSize int64
	logEnd   *atomic.Int64 // the log's length

	closed   atomic.Bool
	readers  readers // for what a request waits for
	scanners readers // for what may take long
	syncer   syncer

	writeMu    sync.Mutex
	w          *conn        // guarded by writeMu; nil when read-only or closed
	head       headState    // guarded by writeMu: the counters row as last committed
	session    sessionState // guarded by writeMu
	actors     actorTable   // guarded by writeMu
	sweepMu    sync.Mutex
	sweep      sweep    // guarded by sweepMu: where Prune goes on
	recent     int64    // guarded by sweepMu: up to where PruneRecent has looked
	fragmented meta.Ino // guarded by sweepMu: where Fragmented goes on

	ckptMu   sync.Mutex
	ckpt     *conn // guarded by ckptMu
	ckptEnd  int64 // guarded by ckptMu: the log's length at the last checkpoint
	filledAt int64 // guarded by ckptMu: rounds of the syncer when the log was filled last
}

// headState is what Commit needs to know of the counters row.
type headState struct {
	rev      int64
	hash     [32]byte
	barrier  int64
	reserved int64
	sessions int64
}

// sessionState caches that a session may commit, until the sessions table changes.
type sessionState struct {
	session, epoch int64
	at             int64 // headState.sessions for which this holds
}

// k makes the key of an inode number or revision; 0 stays 0.
func (s *Store) k(n int64) int64 {
	if n == 0 {
		return 0
	}
	return s.base | n
}

// unk takes the zone out of a key.
func unk(k int64) int64 { return k & keyMask }

func newStore(o Options) *Store {
	s := &Store{path: o.Path, zoneName: o.Zone, readOnly: o.ReadOnly, log: o.Log, now: o.Now, indexLag: indexLag}
	if s.zoneName == "" {
		s.zoneName = "default"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.readers.init(maxReaders)
	s.scanners.init(maxScanners)
	return s
}

// Open opens an existing zone and brings the schema up to date. KindNotExist
// when there is no database file or no such zone, KindInvalid when the file is
// not a nexusfs database or was written by a newer version (nothing is changed
// then), KindBusy when another process has it open.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := interrupted(ctx, "open"); err != nil {
		return nil, err
	}
	fi, err := os.Stat(o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, meta.E("open", 0, o.Path, meta.KindNotExist, errors.New("there is no store here"))
	case err != nil:
		return nil, classify("open", 0, o.Path, err)
	case !fi.Mode().IsRegular() || fi.Size() == 0:
		return nil, meta.E("open", 0, o.Path, meta.KindInvalid, errors.New("this is not a nexusfs database"))
	}
	if err := probe(o.Path); err != nil {
		return nil, err
	}
	s := newStore(o)
	if err := s.openWith(func() error { return s.findZone() }); err != nil {
		return nil, err
	}
	return s, nil
}

// Create makes a zone with its root directory, and the database file around it
// when there is none. KindExist when the zone is there already.
func Create(ctx context.Context, o Options) (*Store, error) {
	if err := interrupted(ctx, "create"); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(o.Path); err == nil && fi.Size() > 0 {
		if err := probe(o.Path); err != nil {
			return nil, err
		}
	}
	o.ReadOnly = false
	s := newStore(o)
	if err := s.openWith(func() error { return s.createZone(o) }); err != nil {
		return nil, err
	}
	if err := s.Sync(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openWith opens the connections; zone finds or makes the zone in between.
func (s *Store) openWith(zone func() error) (err error) {
	if err := registerVFS(); err != nil {
		return meta.E("open", 0, s.path, meta.KindIO, err)
	}
	flags := sqlite.OpenReadWrite | sqlite.OpenCreate
	readFlags := sqlite.OpenReadWrite
	if s.readOnly {
		flags, readFlags = sqlite.OpenReadOnly, sqlite.OpenReadOnly
	}
	s.uri = dbURI(s.path, s.readOnly, s.readOnly && unix.Access(dirOf(s.path), unix.W_OK) != nil)
	s.readers.open = func() (*conn, error) { return s.openReader(readFlags) }
	s.scanners.open = s.readers.open
	first, err := s.openConn(flags, writerCacheKiB, openWait)
	if err != nil {
		return s.openError(err)
	}
	defer func() {
		if err != nil {
			s.w = nil
			err = errors.Join(err, s.readers.close(), s.scanners.close(), s.syncer.close(), first.Close())
		}
	}()
	s.w = first
	if !s.readOnly {
		if err := s.prepareWriter(); err != nil {
			return s.openError(err)
		}
	} else if err := s.checkSchema(); err != nil {
		return err
	}
	if err := zone(); err != nil {
		return s.openError(err)
	}
	first.SetBusyTimeout(busyWait)
	if s.readOnly {
		s.w = nil
		s.readers.adopt(first)
		return nil
	}
	if err := s.loadHead(); err != nil {
		return s.openError(err)
	}
	if s.pageSize, err = s.w.number("PRAGMA page_size"); err != nil {
		return s.openError(err)
	}
	if err := s.w.each("PRAGMA database_list", func(st *sqlite.Stmt) error {
		if st.ColumnText(1) == "main" {
			s.logEnd = logEnd(st.ColumnText(2) + "-wal") // the path as SQLite spells it
		}
		return nil
	}); err != nil {
		return s.openError(err)
	}
	s.recent = s.base | s.head.barrier // the sessions before have looked at the rest; Prune looks at everything
	if err := s.syncer.open(s.path + "-wal"); err != nil {
		return s.openError(err)
	}
	for more := true; more; {
		if more, err = s.syncer.fill(fillAtOpen); err != nil {
			return s.openError(err)
		}
	}
	return s.openError(s.syncer.wait())
}

// openError says what a failure to open means for the user.
func (s *Store) openError(err error) error {
	err = classify("open", 0, s.path, err)
	if err != nil && meta.KindOf(err) == meta.KindBusy {
		return meta.E("open", 0, s.path, meta.KindBusy,
			fmt.Errorf("another process has this store open; unmount it there first: %w", errors.Unwrap(err)))
	}
	return err
}

// prepareWriter brings a writable database into its mode and schema.
func (s *Store) prepareWriter() error {
	version, err := s.schemaVersion()
	if err != nil {
		return err
	}
	if version == 0 {
		if err := s.w.script(fmt.Sprintf("PRAGMA page_size=%d", newPageSize)); err != nil {
			return err
		}
	}
	mode := ""
	if err := s.w.each("PRAGMA journal_mode=wal", func(st *sqlite.Stmt) error { mode = st.ColumnText(0); return nil }); err != nil {
		return err
	}
	if mode != "wal" {
		return meta.E("open", 0, s.path, meta.KindIO, fmt.Errorf("journal mode is %q where wal is needed", mode))
	}
	return s.migrate(version)
}

// findZone looks the zone up by name.
func (s *Store) findZone() error {
	found := false
	err := s.w.each("SELECT zone FROM zones WHERE name=?", func(st *sqlite.Stmt) error {
		s.setZone(st.ColumnInt64(0))
		found = true
		return nil
	}, s.zoneName)
	if err != nil {
		return err
	}
	if found {
		return s.refuseMoving()
	}
	begun, err := s.w.number("SELECT count(*) FROM zones WHERE name=?", s.zoneName+unfinished)
	if err == nil && begun > 0 {
		return meta.E("open", 0, s.zoneName, meta.KindInvalid, errors.New("a migration into it has not come to its end: run nexusfs migrate again with the same source"))
	}
	return errors.Join(err, meta.E("open", 0, s.zoneName, meta.KindNotExist, errors.New("the store has no such zone")))
}

func (s *Store) setZone(n int64) { s.zone, s.base = n, n<<zoneShift }

// createZone inserts the zone's rows and its first operation.
func (s *Store) createZone(o Options) error {
	w := s.w
	if err := w.do(stBegin); err != nil {
		return err
	}
	err := func() error {
		n, err := w.number("SELECT count(*) FROM zones WHERE name=?", s.zoneName)
		if err != nil {
			return err
		}
		if n > 0 {
			return meta.E("create", 0, s.zoneName, meta.KindExist, errors.New("the store has this zone already"))
		}
		next, err := w.number("SELECT coalesce(max(zone)+1,0) FROM zones")
		if err != nil {
			return err
		}
		if next >= maxZones {
			return meta.E("create", 0, s.zoneName, meta.KindNoSpace, fmt.Errorf("a store holds at most %d zones", maxZones))
		}
		s.setZone(next)
		now := s.now().UnixNano()
		if err := w.script("INSERT INTO zones(zone,name,epoch,next_ino,created,indexed) VALUES(?,?,1,2,?,?)", next, s.zoneName, now, s.base); err != nil {
			return err
		}
		if err := w.script(`INSERT INTO counters(zone,kind,id,history,rev,head,barrier,reserved,topology,sessions)
			VALUES(?,0,0,0,0,zeroblob(32),0,0,0,0)`, next); err != nil {
			return err
		}
		return s.createRoot(o, now)
	}()
	if err != nil {
		return errors.Join(err, w.do(stRollback))
	}
	return w.do(stCommit)
}

// createRoot writes the root directory through the code of every other change.
func (s *Store) createRoot(o Options, now int64) error {
	root := meta.Attr{Ino: meta.RootIno, Mode: meta.ModeDir | o.Mode&meta.ModePerm, UID: o.UID, GID: o.GID,
		Nlink: 2, Atime: now, Mtime: now, Ctime: now, Btime: now, Parent: meta.RootIno, Creator: int64(o.UID)}
	c := &meta.Change{
		Record: meta.Record{Kind: meta.OpInit, Ino: meta.RootIno, Time: now,
			Actor: meta.Actor{UID: o.UID, GID: o.GID, PID: uint32(os.Getpid())},
			After: fmt.Sprintf(`{"mode":%d,"uid":%d,"gid":%d}`, root.Mode, root.UID, root.GID)},
		Inodes: []meta.InodeChange{{After: root}},
	}
	s.head = headState{}
	t := s.newTx(&meta.Batch{Changes: []*meta.Change{c}})
	if err := t.apply(0); err != nil {
		return err
	}
	return t.finish()
}

// loadHead reads the counters row into memory.
func (s *Store) loadHead() error {
	st, err := s.w.stmt(stHead)
	if err != nil {
		return err
	}
	st.BindInt64(1, s.zone)
	found := false
	err = rows(st, func(st *sqlite.Stmt) bool {
		s.head = headState{rev: unk(st.ColumnInt64(0)), hash: colHash(st, 1), barrier: unk(st.ColumnInt64(2)),
			reserved: unk(st.ColumnInt64(3)), sessions: st.ColumnInt64(5)}
		found = true
		return true
	})
	if err == nil && !found {
		err = meta.E("open", 0, s.zoneName, meta.KindDamaged, errors.New("the zone has no counters"))
	}
	return err
}

// Close waits for running calls, moves the log into the database and closes
// it. Later calls of Close do nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	errs := []error{s.closeWriter(), s.readers.close(), s.scanners.close()}
	s.writeMu.Lock()
	if s.w != nil {
		errs = append(errs, s.w.Close()) // last: SQLite removes the log with it
		s.w = nil
	}
	s.writeMu.Unlock()
	errs = append(errs, s.syncer.close())
	return classify("close", 0, s.path, errors.Join(errs...))
}
