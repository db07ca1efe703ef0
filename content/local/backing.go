package local

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// verifiedMax bounds how many files are remembered as verified.
const verifiedMax = 16 << 10

// verifiedFiles remembers files that were verified whole by this process, as
// long as nothing shows that they were changed.
type verifiedFiles struct {
	mu   sync.Mutex
	seen map[meta.Blob]fileStamp // guarded by mu
}

// fileStamp is what changes when somebody writes to a file.
type fileStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(fd int) (fileStamp, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return stampOfStat(&st), err
}

func stampOfStat(st *unix.Stat_t) fileStamp {
	return fileStamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

func stampOfPath(path string) (fileStamp, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return stampOfStat(&st), err
}

func (v *verifiedFiles) has(b meta.Blob, st fileStamp) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	got, ok := v.seen[b]
	return ok && got == st
}

func (v *verifiedFiles) add(b meta.Blob, st fileStamp) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.seen == nil || len(v.seen) >= verifiedMax {
		v.seen = make(map[meta.Blob]fileStamp)
	}
	v.seen[b] = st
}

// Backing opens the file that holds exactly b's bytes, for the kernel to read
// past the daemon (P27). The whole of it is verified the first time, and again
// when its inode shows a change. The caller closes it; it stays readable when b
// is freed. Errors: as Read, and KindNotSupported when b has no file of its own.
func (s *Store) Backing(ctx context.Context, b meta.Blob) (meta.Backing, error) {
	if err := s.enter(ctx, "open backing file"); err != nil {
		return nil, err
	}
	defer s.life.leave()
	if b.Place != meta.PlaceFile || b.Size <= 0 || b.Size > meta.BlobMax {
		return nil, meta.E("open backing file", 0, "", meta.KindNotSupported, nil)
	}
	path := s.files.path(b)
	fd, err := openFile(path, unix.O_RDONLY)
	if err != nil {
		return nil, s.explain("open backing file", b, err)
	}
	if err := s.verifyFile(ctx, fd, path, b); err != nil {
		unix.Close(fd)
		return nil, s.explain("open backing file", b, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// verifyFile reads an open file whole and compares it with b.
func (s *Store) verifyFile(ctx context.Context, fd int, path string, b meta.Blob) error {
	stamp, err := stampOf(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if stamp.size != b.Size {
		return fmt.Errorf("%s has %d bytes, not %d: %w", path, stamp.size, b.Size, errDamaged)
	}
	if s.verified.has(b, stamp) {
		return nil
	}
	table, err := s.table(b)
	if err != nil {
		return err
	}
	src := source{s: s, b: b, fd: &openFD{fd: fd}, table: table}
	buf := make([]byte, min(readChunk, b.Size))
	for off := int64(0); off < b.Size; off += readChunk {
		if ctx.Err() != nil {
			return meta.E("", 0, "", meta.KindInterrupted, ctx.Err())
		}
		n := min(readChunk, b.Size-off)
		if err := src.readWhole(int(off/content.LeafSize), off, buf[:n]); err != nil {
			return err
		}
	}
	s.verified.add(b, stamp)
	return nil
}
