package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// folder is one writer's part of the store. Whoever holds its lock alone
// writes there; everybody reads.
type folder struct {
	writer int64
	dir    string
	packs  *packs
	files  *files
	fds    *fdCache
	lock   *writerLock // nil: not held, nothing is written
}

func newFolder(o Options, writer int64, fds *fdCache) *folder {
	return &folder{
		writer: writer, dir: folderPath(o.Dir, writer), fds: fds,
		packs: newPacks(o, writer, fds), files: newFiles(o.Dir, writer),
	}
}

// subdirs are what every writer's folder has.
var subdirs = []string{"tmp", "segments", "files", "notes"}

// takeFolder takes the lowest folder that nobody holds, makes it if need be
// and loads it.
func takeFolder(o Options, fds *fdCache) (*folder, error) {
	if err := os.Mkdir(filepath.Join(o.Dir, "locks"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	for w := range int64(maxWriters) {
		f := newFolder(o, w, fds)
		err := f.hold(o)
		if errors.Is(err, errLocked) {
			continue
		}
		return f, err
	}
	return nil, meta.E("", 0, "", meta.KindBusy, fmt.Errorf("%s has %d writers already: end some", o.Dir, maxWriters))
}

// hold takes the folder's lock and loads it: errLocked when somebody has it.
func (f *folder) hold(o Options) error {
	lock, err := lockWriter(o.Dir, f.writer)
	if err != nil {
		return err
	}
	f.lock = lock
	f.packs.fresh = o.remote && lock.boot != bootID()
	err = f.prepare(o.Dir)
	if err == nil {
		err = f.load(false)
	}
	if err != nil {
		f.packs.close()
		f.unlock()
	}
	return err
}

func (f *folder) unlock() {
	if f.lock != nil {
		f.lock.unlock()
		f.lock = nil
	}
}

// prepare makes what the folder lacks, durably, and clears what is temporary.
func (f *folder) prepare(root string) error {
	err := os.Mkdir(f.dir, 0o700)
	if err == nil { // nothing is stored: the counts are known
		err = errors.Join(writeCounts(filepath.Join(f.dir, "counts"), fileCounts{}), kernelSyncer{}.SyncDir(root))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	made := false
	for _, sub := range subdirs {
		err := os.Mkdir(filepath.Join(f.dir, sub), 0o700)
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		made = made || err == nil
	}
	if made {
		if err := (kernelSyncer{}).SyncDir(f.dir); err != nil {
			return err
		}
	}
	return clearTemp(filepath.Join(f.dir, "tmp"))
}

// load finds where to go on.
func (f *folder) load(readOnly bool) error {
	if err := f.packs.load(); err != nil {
		return err
	}
	f.files.before = f.packs.place()
	return f.files.loadCounts(readOnly)
}

// errNoFolder says that a writer has never been.
var errNoFolder = errors.New("no such writer")

// adopt takes a folder that nobody holds, for the moment: errLocked when
// somebody does, errNoFolder. letGo follows.
func (s *Store) adopt(writer int64) (*folder, error) {
	_, err := os.Lstat(filepath.Join(folderPath(s.opts.Dir, writer), "segments"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoFolder
	}
	if err != nil {
		return nil, err
	}
	f := newFolder(s.opts, writer, newFDCache(adoptedFiles))
	f.packs.aside = true
	if err := f.hold(s.opts); err != nil {
		f.fds.closeAll()
		return nil, err
	}
	return f, nil
}

// adoptedFiles are kept open of a folder that is held for the moment.
const adoptedFiles = 8

// letGo ends adopt.
func (s *Store) letGo(f *folder) {
	s.saveCounts(f)
	f.packs.close()
	f.fds.closeAll()
	f.unlock()
}

func (s *Store) saveCounts(f *folder) {
	if err := f.files.saveCounts(); err != nil {
		s.log.Warn("the counts of files were not saved; the next start counts them", "dir", f.dir, "err", err)
	}
}

// others lists the writers whose folders are not this process's own.
func (s *Store) others() ([]int64, error) {
	all, err := writers(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	out := all[:0]
	for _, w := range all {
		if w != s.writer {
			out = append(out, w)
		}
	}
	return out, nil
}

// foreign reports whether a segment belongs to another writer.
func (s *Store) foreign(segment int64) bool { return writerOf(segment) != s.writer }

// forgetOpen lets go what is open of a foreign blob: the next look opens it
// anew, and sees what other machines have done to it.
func (s *Store) forgetOpen(b meta.Blob) {
	s.fds.drop(fdKey{segment: b.Segment})
	s.fds.drop(fileKey(b))
}

// uncleanWriter reports whether another writer was killed, or runs: what it
// wrote may not be on the disk.
func (s *Store) uncleanWriter() (bool, error) {
	list, err := s.others()
	if err != nil {
		return false, err
	}
	for _, w := range list {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(folderPath(s.opts.Dir, w), "counts"), &st)
		if errors.Is(err, unix.ENOENT) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}
