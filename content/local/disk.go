package local

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// syncer is the part of the kernel that decides what a power loss leaves;
// tests put one in its place that fails or that remembers what it was asked.
type syncer interface {
	// Fdatasync makes a file's bytes, and its length, durable.
	Fdatasync(fd int) error
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error
	// SyncAll makes everything below a directory durable, whoever wrote it.
	SyncAll(path string) error
}

type kernelSyncer struct{}

func (kernelSyncer) Fdatasync(fd int) error {
	return retry(func() error { return unix.Fdatasync(fd) })
}

func (kernelSyncer) SyncAll(path string) error {
	fd, err := openFile(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return retry(func() error { return unix.Syncfs(fd) })
}

func (kernelSyncer) SyncDir(path string) error {
	fd, err := openFile(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return retry(func() error { return unix.Fsync(fd) })
}

// retry calls fn until no signal has interrupted it.
func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openFile opens a file and names it in the error.
func openFile(path string, flags int) (int, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// preadFull fills p from offset off; the end of the file is io.ErrUnexpectedEOF.
func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		case n == 0:
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// pwriteFull writes all of p at offset off.
func pwriteFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
		}
		if n > 0 {
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// pwritevFull writes the pieces one behind the other at offset off. It changes
// the slice of slices, not their bytes.
func pwritevFull(fd int, pieces [][]byte, off int64) error {
	for len(pieces) > 0 {
		n, err := unix.Pwritev(fd, pieces, off)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		off += int64(max(n, 0))
		for n > 0 && n >= len(pieces[0]) {
			n -= len(pieces[0])
			pieces = pieces[1:]
		}
		if n > 0 {
			pieces[0] = pieces[0][n:]
		}
	}
	return nil
}

// kindOf classifies an error of the disk.
func kindOf(err error) meta.Kind {
	var e *meta.Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return meta.KindNoSpace
	case errors.Is(err, unix.EROFS):
		return meta.KindReadOnly
	}
	return meta.KindIO
}

// diskError wraps an error of the disk for callers.
func diskError(op string, err error) error {
	if err == nil {
		return nil
	}
	return meta.E(op, 0, "", kindOf(err), err)
}

// unlinked reports whether an open file has lost its name.
func unlinked(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Nlink == 0
}
