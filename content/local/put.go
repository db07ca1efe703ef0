package local

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// Put stores data, of 1 to BlobMax bytes, at a place of its own. It survives
// the process at once and a power loss after the next Sync that starts after
// Put returned. data is read by more than one goroutine and not retained. It
// waits for the disk only when too much is not synced yet (throttle).
// Errors: KindInvalid (size), KindNoSpace (nothing is left behind; a later Put
// may succeed), KindReadOnly, KindIO, KindInterrupted, KindShutdown.
func (s *Store) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	if err := s.enterWrite(ctx, "put content"); err != nil {
		return meta.Blob{}, err
	}
	defer s.life.leave()
	size := int64(len(data))
	if size == 0 || size > meta.BlobMax {
		return meta.Blob{}, meta.E("put content", 0, "", meta.KindInvalid,
			fmt.Errorf("a blob has 1 to %d bytes, not %d", meta.BlobMax, size))
	}
	put := s.putPack
	switch {
	case size >= s.opts.FileThreshold && size < s.opts.FileLimit:
		put = s.putFile
	case size >= largeRecord:
		put = s.putLarge
	}
	b, err := put(data)
	if err != nil {
		return meta.Blob{}, diskError("put content", err)
	}
	s.puts.Add(1)
	s.putBytes.Add(size)
	return b, s.throttle()
}

// hash names data and keeps its leaf table for reading.
func (s *Store) hash(data []byte) (id meta.BlobID, table []byte) {
	size := int64(len(data))
	if size <= content.LeafSize {
		return content.ID(data), nil
	}
	table = content.LeafTable(make([]byte, 0, content.TableLen(size)), data)
	id = content.TreeID(size, table)
	s.tables.Put(id, table)
	return id, table
}

// putPack stores a record in the active segment.
func (s *Store) putPack(data []byte) (meta.Blob, error) {
	id, table := s.hash(data)
	h := header{Kind: kindData, State: stateLive, Size: int64(len(data)), ID: id}
	n, off, early, err := s.packs.append(h, table, data)
	s.work.startWriting(early)
	if err != nil {
		return meta.Blob{}, err
	}
	return blobOf(n, off, h), nil
}

// largeRecord is the size from which hashing beside writing is worth a goroutine.
const largeRecord = 512 << 10

// putLarge stores a large record in the active segment.
func (s *Store) putLarge(data []byte) (meta.Blob, error) {
	b, early, err := s.packs.appendLarge(data, s.hash)
	s.work.startWriting(early)
	return b, err
}

// putFile stores a file:
//
//  1. the bytes go to a temporary file while they are hashed;
//  2. its length is checked;
//  3. its leaf table becomes a record, whose place names the file;
//  4. the file gets its name.
//
// A stop before 4 leaves a temporary file, which the next start removes, and
// perhaps a leaf record without a file, which compaction finds dead.
func (s *Store) putFile(data []byte) (meta.Blob, error) {
	tmp := s.files.tempPath()
	fd, err := openFile(tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return meta.Blob{}, err
	}
	b, err := s.fillFile(fd, tmp, data)
	if err != nil {
		unix.Unlink(tmp)
		unix.Close(fd)
		return meta.Blob{}, fmt.Errorf("%s: %w", tmp, err)
	}
	o := s.fds.add(fileKey(b), fd)
	s.work.startWriting(o.hold())
	s.files.added(b, o)
	return b, nil
}

// unsyncedSegments bounds the segments that wait for a Sync.
const unsyncedSegments = 16

// throttle keeps what is not synced within its bounds: half way to them the
// background flushes, at them the caller waits for a flush.
func (s *Store) throttle() error {
	files, segments := s.files.dirtyCount(), s.packs.dirtyCount()
	switch {
	case files >= s.opts.UnsyncedFiles || segments >= unsyncedSegments:
		return s.syncShared(context.Background())
	case files >= s.opts.UnsyncedFiles/2 || segments >= unsyncedSegments/2:
		wake(s.work.flush)
	}
	return nil
}

// fillFile is steps 1 to 4 of putFile.
func (s *Store) fillFile(fd int, tmp string, data []byte) (meta.Blob, error) {
	// gofail: var contentBeforeWrite struct{}
	wrote := make(chan error, 1)
	go func() { wrote <- pwriteFull(fd, data, 0) }()
	id, table := s.hash(data)
	if err := <-wrote; err != nil {
		return meta.Blob{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return meta.Blob{}, err
	}
	if st.Size != int64(len(data)) {
		return meta.Blob{}, fmt.Errorf("wrote %d bytes, the file has %d", len(data), st.Size)
	}
	// gofail: var contentBeforeLeaves struct{}
	h := header{Kind: kindLeaves, State: stateLive, Size: int64(len(data)), ID: id}
	n, off, early, err := s.packs.append(h, table, nil)
	s.work.startWriting(early)
	if err != nil {
		return meta.Blob{}, err
	}
	b := blobOf(n, off, h)
	if err = s.files.ensureDir(n); err == nil {
		// gofail: var contentBeforeRename struct{}
		err = unix.Rename(tmp, s.files.path(b))
		// gofail: var contentAfterRename struct{}
	}
	if err != nil {
		s.giveBack(n, off, h)
		return meta.Blob{}, err
	}
	return b, nil
}

// giveBack marks a record dead whose blob did not come to be; if even that
// fails, compaction finds it.
func (s *Store) giveBack(n, off int64, h header) {
	if _, err := s.packs.markDead(n, off, h); err != nil {
		s.log.Warn("leaf record of a failed put stays until compaction", "op", "put content", "segment", n, "offset", off, "err", err)
	}
}
