package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// Options configure a Store. Only Dir is needed.
type Options struct {
	Dir           string       // the folder; Open makes it unless ReadOnly
	Log           *slog.Logger // nil: discard
	ReadOnly      bool         // nothing on the disk is changed
	Shared        bool         // processes on other machines may have the folder open: Open is strict about its filesystem
	SegmentSize   int64        // bytes at which a pack segment is full; 0: 64 MiB
	FileThreshold int64        // blobs from this size on get a file of their own; 0: 1 MiB
	FileLimit     int64        // blobs from this size on are in segments again; 0: BlobMax
	OpenFiles     int          // files kept open for reading; 0: 256
	UnsyncedFiles int          // files kept open until the next Sync; Put waits beyond; 0: 256
	TableCache    int64        // bytes of verified leaf tables kept in memory; 0: 8 MiB
	LeafCache     int64        // bytes of verified leaves kept in memory; 0: 8 MiB, below 0: none

	syncer syncer // tests put their own disk here; nil: the kernel
	remote bool   // not a local disk: another machine may be given a lock that this one has
}

func (o *Options) setDefaults() {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.SegmentSize, 64<<20)
	def(&o.FileThreshold, 1<<20)
	def(&o.FileLimit, meta.BlobMax)
	def(&o.TableCache, 8<<20)
	def(&o.LeafCache, 8<<20)
	if o.OpenFiles == 0 {
		o.OpenFiles = 256
	}
	if o.UnsyncedFiles == 0 {
		o.UnsyncedFiles = 256
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.syncer == nil {
		o.syncer = kernelSyncer{}
	}
}

// Store is a content store in a local folder, of which it is one writer. It
// implements meta.Content.
//
// LOCK ORDER: compacting, then packs.mu or files.mu, then fdCache.mu. The
// other locks are taken alone. No lock is held over reading or writing blobs;
// packs.mu is held while a segment is made or cut, once in SegmentSize bytes.
type Store struct {
	*folder  // what this process appends to; held until Close unless ReadOnly
	opts     Options
	log      *slog.Logger
	syncer   syncer
	tables   *content.Tables
	leaves   *leafCache
	work     *background
	group    syncGroup
	life     lifecycle
	damage   damageLog
	verified verifiedFiles

	compacting sync.Mutex
	counted    map[int64]countedSegment   // of other writers; guarded by compacting
	failure    atomic.Pointer[meta.Error] // set once a flush failed; final
	inherited  atomic.Bool                // the process before was killed: the next Sync covers what it wrote too

	puts, putBytes   atomic.Int64
	reads, readBytes atomic.Int64
	damaged          atomic.Int64
	notes            atomic.Int64 // left for other writers
}

var _ meta.Content = (*Store)(nil)

// Open opens the store in o.Dir, making an empty one where nothing is, and
// becomes the writer with the lowest number that is free: any number of
// processes may have a folder open at once. It removes what an unclean stop of
// the same writer left half done and frees what others have noted for it. The
// cost does not depend on how much is stored, except for listing the segments.
// Errors: KindNotExist (no store, ReadOnly), KindNotSupported (another product's
// folder, a newer format, a filesystem whose locks do not keep writers apart),
// KindNoSpace, KindReadOnly, KindBusy (65,536 writers), KindIO.
func Open(ctx context.Context, o Options) (*Store, error) {
	if ctx.Err() != nil {
		return nil, meta.E("open content", 0, o.Dir, meta.KindInterrupted, ctx.Err())
	}
	o.setDefaults()
	if err := prepareDir(o.Dir, o.ReadOnly); err != nil {
		return nil, meta.E("open content", 0, o.Dir, openKind(err), err)
	}
	s := &Store{
		opts: o, log: o.Log, syncer: o.syncer,
		tables:  content.NewTables(o.TableCache),
		leaves:  newLeafCache(max(o.LeafCache, 0)),
		work:    newBackground(),
		group:   newSyncGroup(),
		life:    newLifecycle(),
		counted: make(map[int64]countedSegment),
	}
	if err := s.load(); err != nil {
		return nil, meta.E("open content", 0, o.Dir, openKind(err), err)
	}
	s.startWork()
	return s, nil
}

// load takes a folder and goes on where its last writer ended.
func (s *Store) load() (err error) {
	fds := newFDCache(s.opts.OpenFiles)
	if s.opts.ReadOnly {
		s.folder = newFolder(s.opts, 0, fds)
		if err = s.packs.load(); err == nil {
			err = s.files.loadCounts(true)
		}
		return err
	}
	if s.opts.Shared {
		if err := s.checkFilesystem(); err != nil {
			return err
		}
	}
	if s.folder, err = takeFolder(s.opts, fds); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.packs.close()
			s.fds.closeAll()
			s.unlock()
		}
	}()
	if s.opts.Shared {
		s.checkPunching()
	}
	unclean := s.files.stale.Load()
	if !unclean && !s.opts.Shared { // a shared store's rows name only what its putter has synced
		if unclean, err = s.uncleanWriter(); err != nil {
			return err
		}
	}
	s.inherited.Store(unclean)
	return s.workOff(s.folder)
}

func openKind(err error) meta.Kind {
	if errors.Is(err, unix.ENOENT) {
		return meta.KindNotExist
	}
	return kindOf(err)
}

// Close waits for calls under way, makes what was put durable and ends the
// background work. Later calls give KindShutdown. A second Close does nothing.
func (s *Store) Close() error {
	if !s.life.close() {
		return nil
	}
	s.work.stop()
	var err error
	if !s.opts.ReadOnly {
		if err = s.syncShared(context.Background()); err == nil {
			s.packs.trim()
			s.saveCounts(s.folder)
		}
	}
	s.packs.close()
	s.files.close()
	s.fds.closeAll()
	s.unlock()
	return err
}

// ID computes the name of a blob. Pure.
func (s *Store) ID(data []byte) meta.BlobID { return content.ID(data) }

// Space reports the disk that holds the folder, with what an ordinary user may
// still use of it.
func (s *Store) Space(ctx context.Context) (meta.Space, error) {
	if err := s.enter(ctx, "statfs content"); err != nil {
		return meta.Space{}, err
	}
	defer s.life.leave()
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(s.opts.Dir, &st) }); err != nil {
		return meta.Space{}, diskError("statfs content", fmt.Errorf("%s: %w", s.opts.Dir, err))
	}
	return meta.Space{
		Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize,
		Files: int64(st.Files), FreeFiles: int64(st.Ffree),
	}, nil
}

// Stats describes what this process does and what its own folder holds; other
// writers have theirs, ReadOnly shows that of writer 0. After an unclean stop Files and FileBytes grow to
// their true values while a background count runs.
func (s *Store) Stats() meta.ContentStats {
	st := meta.ContentStats{
		Files: s.files.count.Load(), FileBytes: s.files.bytes.Load(),
		Puts: s.puts.Load(), PutBytes: s.putBytes.Load(),
		Reads: s.reads.Load(), ReadBytes: s.readBytes.Load(),
		Damaged: s.damaged.Load(),
	}
	var unsynced int64
	st.Segments, st.SegmentBytes, unsynced = s.packs.stats()
	st.UnsyncedBytes = unsynced + s.files.unsyncedBytes()
	return st
}

// enter begins a call; leave ends it unless an error is returned.
func (s *Store) enter(ctx context.Context, op string) error {
	if ctx.Err() != nil {
		return meta.E(op, 0, "", meta.KindInterrupted, ctx.Err())
	}
	if !s.life.enter() {
		return meta.E(op, 0, "", meta.KindShutdown, nil)
	}
	return nil
}

// enterWrite is enter for calls that change the store.
func (s *Store) enterWrite(ctx context.Context, op string) error {
	if s.opts.ReadOnly {
		return meta.E(op, 0, "", meta.KindReadOnly, nil)
	}
	if err := s.broken(); err != nil {
		return err
	}
	return s.enter(ctx, op)
}

// fail records that the disk did not keep what it was asked to keep. The
// kernel may have dropped the pages, so a later success would prove nothing:
// the store takes nothing more.
func (s *Store) fail(err error) error {
	e := &meta.Error{Op: "sync content", Kind: meta.KindIO, Err: fmt.Errorf(
		"%w; what was written since the last successful sync may be lost: check the disk, then restart", err)}
	if s.failure.CompareAndSwap(nil, e) {
		s.log.Error("content store stopped: the disk failed to make it durable", "op", "sync content", "dir", s.opts.Dir, "err", err)
	}
	return s.broken()
}

// broken returns the error of a failed store, or nil.
func (s *Store) broken() error {
	if e := s.failure.Load(); e != nil {
		return e
	}
	return nil
}

// lifecycle counts the calls under way, so that Close can wait for them.
type lifecycle struct {
	state atomic.Int64 // calls under way, plus lifeClosed
	idle  chan struct{}
	once  sync.Once
}

const lifeClosed = 1 << 62

func newLifecycle() lifecycle { return lifecycle{idle: make(chan struct{})} }

func (l *lifecycle) enter() bool {
	if l.state.Add(1) < lifeClosed {
		return true
	}
	l.leave()
	return false
}

func (l *lifecycle) leave() {
	if l.state.Add(-1) == lifeClosed {
		l.once.Do(func() { close(l.idle) })
	}
}

// close refuses new calls and waits for those under way; false: it was closed already.
func (l *lifecycle) close() bool {
	for {
		old := l.state.Load()
		if old >= lifeClosed {
			<-l.idle
			return false
		}
		if l.state.CompareAndSwap(old, old+lifeClosed) {
			if old == 0 {
				l.once.Do(func() { close(l.idle) })
			}
			<-l.idle
			return true
		}
	}
}

// formatText is the whole of the file that says what the folder is.
const formatText = "nexusfs content, format 1\n"

// prepareDir checks or makes the folder.
func prepareDir(dir string, readOnly bool) error {
	format := filepath.Join(dir, "format")
	text, err := os.ReadFile(format)
	switch {
	case err == nil && string(text) == formatText:
		return nil
	case err == nil && len(text) > 0:
		return meta.E("", 0, "", meta.KindNotSupported, fmt.Errorf(
			"%s says %q, this nexusfs reads %q: use a newer nexusfs or another folder", format, clip(text), formatText))
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case readOnly:
		return fmt.Errorf("%s is not a content store: %w", dir, unix.ENOENT)
	}
	return makeDir(dir, format)
}

func clip(p []byte) string { return string(p[:min(len(p), 64)]) }

// makeDir makes an empty store, durably; a stop in between leaves what a
// second call goes on with. Of several processes one makes it, the others wait.
func makeDir(dir, format string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !ours(n.Name()) {
			return meta.E("", 0, "", meta.KindNotSupported, fmt.Errorf(
				"%s holds %q and no content store: name an empty folder", dir, n.Name()))
		}
	}
	for _, sub := range append([]string{"locks"}, subdirs...) {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	unlock, err := lockMaking(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if text, err := os.ReadFile(format); err == nil && string(text) == formatText {
		return nil
	}
	if err := writeCounts(filepath.Join(dir, "counts"), fileCounts{}); err != nil { // nothing is stored
		return err
	}
	if err := writeDurably(format, []byte(formatText)); err != nil {
		return err
	}
	return kernelSyncer{}.SyncDir(filepath.Dir(filepath.Clean(dir)))
}

// ours reports whether a store has an entry of this name.
func ours(name string) bool {
	_, folder := folderWriter(name)
	return folder || slices.Contains([]string{"format", "counts", "locks"}, name) || slices.Contains(subdirs, name)
}

// writeDurably writes a small file and its name.
func writeDurably(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return kernelSyncer{}.SyncDir(filepath.Dir(path))
}

// clearTemp removes what Puts left that did not come to their end.
func clearTemp(tmp string) error {
	names, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(filepath.Join(tmp, n.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
