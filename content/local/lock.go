package local

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// writerLock is the right to write in one writer's folder. The kernel gives it
// back when the process ends.
type writerLock struct {
	path  string
	fd    int
	token string // what this process wrote into the file: "BOOT RANDOM"
	boot  string // of who had it before, "" when unknown
}

// errLocked says that another process, or this one, has the folder.
var errLocked = errors.New("locked")

func lockPath(root string, writer int64) string {
	return filepath.Join(root, "locks", fmt.Sprintf("%04d", writer))
}

// lockWriter takes a writer's lock without waiting: errLocked.
func lockWriter(root string, writer int64) (*writerLock, error) {
	l := &writerLock{path: lockPath(root, writer)}
	var err error
	if l.fd, err = openFile(l.path, unix.O_RDWR|unix.O_CREAT); err != nil {
		return nil, err
	}
	if err := l.take(); err != nil {
		unix.Close(l.fd)
		return nil, err
	}
	return l, nil
}

func (l *writerLock) take() error {
	if err := flock(l.fd, l.path, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if err := l.excludes(); err != nil {
		return err
	}
	before, err := readToken(l.fd)
	if err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	l.boot, _, _ = strings.Cut(before, " ")
	l.token = bootID() + " " + rand.Text()
	err = pwriteFull(l.fd, []byte(l.token), 0)
	if err == nil {
		err = unix.Ftruncate(l.fd, int64(len(l.token)))
	}
	if err == nil {
		err = kernelSyncer{}.Fdatasync(l.fd) // other machines must see it
	}
	if err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	return nil
}

// excludes proves that the lock keeps others out.
func (l *writerLock) excludes() error {
	fd, err := openFile(l.path, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = flock(fd, l.path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	return noLocks(fmt.Errorf("%s could be locked twice", l.path))
}

// verify reports whether another process has taken the lock since. The file is
// opened anew: then a network client asks its server.
func (l *writerLock) verify() error {
	fd, err := openFile(l.path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now, err := readToken(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	if now != l.token {
		return fmt.Errorf("%s was taken by another process while this one had it: the filesystem's locks do not reach all machines, or its server gave this one up", l.path)
	}
	return nil
}

// lockMaking lets one process at a time make the store. It waits for another
// one, which takes milliseconds.
func lockMaking(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "locks", "make")
	fd, err := openFile(path, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	if err := flock(fd, path, unix.LOCK_EX); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return func() { unix.Close(fd) }, nil
}

// unlock gives the lock back.
func (l *writerLock) unlock() { unix.Close(l.fd) }

// flock locks an open file; errLocked with LOCK_NB when somebody has it.
func flock(fd int, path string, how int) error {
	return lockError(path, retry(func() error { return unix.Flock(fd, how) }))
}

// lockError says what an errno of flock means.
func lockError(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return errLocked
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EINVAL):
		return noLocks(fmt.Errorf("flock %s: %w", path, err))
	}
	return fmt.Errorf("flock %s: %w", path, err)
}

// noLocks says what a filesystem without locks means.
func noLocks(err error) error {
	return meta.E("", 0, "", meta.KindNotSupported, fmt.Errorf(
		"%w: the filesystem does not lock files; mount it with locks (NFS: without nolock, lock service running; Lustre: -o flock) or put the content elsewhere", err))
}

// tokenMax is more than a token has.
const tokenMax = 256

func readToken(fd int) (string, error) {
	buf := make([]byte, tokenMax)
	n, err := unix.Pread(fd, buf, 0)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Pread(fd, buf, 0)
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// bootID names this boot of this machine; "unknown" where the kernel does not say.
func bootID() string {
	f, err := os.Open("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	id, err := io.ReadAll(f)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
}
