package local

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// files are the blobs that have a file of their own. Such a file is named by
// the place of its leaf record and the blob's name, so that each Put has a
// file of its own: files/SEGMENT/OFFSET-ID. One directory per segment keeps
// directories small, and one Sync has few of them to flush.
type files struct {
	root   string // the store's folder
	dir    string // the writer's
	base   int64  // what its segment numbers begin with
	serial atomic.Int64

	count  atomic.Int64 // files stored
	bytes  atomic.Int64 // in them
	frees  atomic.Int64 // files removed
	stale  atomic.Bool  // count and bytes leave out what was stored before the start
	before meta.Blob    // place: what lies before it was stored before the start

	mu       sync.Mutex
	made     map[int64]struct{}     // directories known to exist; guarded by mu
	newNames map[string]struct{}    // directories with names not synced; guarded by mu
	unsynced map[fdKey]unsyncedFile // guarded by mu
	pending  int64                  // bytes in unsynced; guarded by mu
}

// unsyncedFile is a file to flush, held open: a file that nobody has open may
// lose the kernel's memory of a failed write.
type unsyncedFile struct {
	fd   *openFD
	size int64
}

func newFiles(root string, writer int64) *files {
	return &files{
		root: root, dir: folderPath(root, writer), base: writer << segmentBits,
		made:     make(map[int64]struct{}),
		newNames: make(map[string]struct{}), unsynced: make(map[fdKey]unsyncedFile),
	}
}

func (f *files) subdir(segment int64) string { return filesPath(f.root, segment) }

// path names the file of a blob, whoever's it is.
func (f *files) path(b meta.Blob) string {
	return filepath.Join(f.subdir(b.Segment), fmt.Sprintf("%010x-%s", b.Offset, hex.EncodeToString(b.ID[:])))
}

// parseFile is the reverse of path, without the size and the writer.
func parseFile(subdir, name string) (meta.Blob, bool) {
	offset, id, ok := strings.Cut(name, "-")
	raw, err := hex.DecodeString(id)
	b := meta.Blob{Place: meta.PlaceFile}
	if !ok || err != nil || len(raw) != len(b.ID) {
		return b, false
	}
	copy(b.ID[:], raw)
	if b.Segment, err = strconv.ParseInt(subdir, 10, 64); err != nil || b.Segment != inFolder(b.Segment) {
		return b, false
	}
	b.Offset, err = strconv.ParseInt(offset, 16, 64)
	return b, err == nil
}

func fileKey(b meta.Blob) fdKey { return fdKey{segment: b.Segment, offset: b.Offset, file: true} }

// tempPath returns a name that is not in use.
func (f *files) tempPath() string {
	return filepath.Join(f.dir, "tmp", strconv.FormatInt(f.serial.Add(1), 10))
}

// ensureDir makes the directory of a segment's files.
func (f *files) ensureDir(segment int64) error {
	f.mu.Lock()
	_, ok := f.made[segment]
	f.mu.Unlock()
	if ok {
		return nil
	}
	dir := f.subdir(segment)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f.mu.Lock()
	f.made[segment] = struct{}{}
	f.newNames[filepath.Dir(dir)] = struct{}{}
	f.mu.Unlock()
	return nil
}

// added notes a new file and, when fd is not nil, that its bytes are unsynced;
// fd is released once they are synced.
func (f *files) added(b meta.Blob, fd *openFD) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.newNames[f.subdir(b.Segment)] = struct{}{}
	if fd != nil {
		f.unsynced[fileKey(b)] = unsyncedFile{fd, b.Size}
		f.pending += b.Size
	}
	f.count.Add(1)
	f.bytes.Add(b.Size)
}

// takeDirty returns the files and directories to sync. synced follows for each
// file; the caller releases the files.
func (f *files) takeDirty() (keys []fdKey, fds []*openFD, dirs []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, u := range f.unsynced {
		keys, fds = append(keys, k), append(fds, u.fd.hold())
	}
	for d := range f.newNames {
		dirs = append(dirs, d)
	}
	clear(f.newNames)
	return keys, fds, dirs
}

// synced forgets a file that was flushed or removed.
func (f *files) synced(k fdKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u, ok := f.unsynced[k]; ok {
		delete(f.unsynced, k)
		f.pending -= u.size
		u.fd.release()
	}
}

func (f *files) unsyncedBytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pending
}

// dirtyCount returns how many files have something to sync.
func (f *files) dirtyCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.unsynced)
}

// remove deletes a blob's file; false: it was not there.
func (f *files) remove(b meta.Blob, fds *fdCache) (bool, error) {
	f.synced(fileKey(b))
	path := f.path(b)
	err := unix.Unlink(path)
	fds.drop(fileKey(b))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove %s: %w", path, err)
	}
	f.frees.Add(1)
	f.count.Add(-1)
	f.bytes.Add(-b.Size)
	return true, nil
}

// gone reports whether a directory does not exist.
func (f *files) gone(dir string) bool {
	_, err := os.Lstat(dir)
	return errors.Is(err, os.ErrNotExist)
}

// forgetDir removes the directory of a removed segment, if it is empty.
func (f *files) forgetDir(segment int64) {
	f.mu.Lock()
	delete(f.made, segment)
	delete(f.newNames, f.subdir(segment))
	f.mu.Unlock()
	unix.Rmdir(f.subdir(segment))
}

// close lets the files go.
func (f *files) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, u := range f.unsynced {
		u.fd.release()
		delete(f.unsynced, k)
	}
}

// walk calls fn for each blob file; what has no such name is left out.
func (f *files) walk(fn func(meta.Blob) error) error {
	root := filepath.Join(f.dir, "files")
	dirs, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := f.walkDir(filepath.Join(root, d.Name()), d.Name(), fn); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) walkDir(path, name string, fn func(meta.Blob) error) error {
	dir, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			b, ok := parseFile(name, n)
			var st unix.Stat_t
			if !ok || unix.Stat(filepath.Join(path, n), &st) != nil {
				continue // not ours, or removed meanwhile
			}
			b.Size = st.Size
			b.Segment |= f.base
			if err := fn(b); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
