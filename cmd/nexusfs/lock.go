package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holder is who has the store's lock exclusively: the content of the file
// lock. It is valid only while the lock is held.
type holder struct {
	PID        int       `json:"pid"`
	Role       string    `json:"role"` // "mount", or the name of a command
	Mountpoint string    `json:"mountpoint,omitempty"`
	Control    string    `json:"control,omitempty"`
	Started    time.Time `json:"started"`
	Version    string    `json:"version"`
}

// storeLock is a held lock. The kernel drops it with the process.
type storeLock struct{ f *os.File }

// Release gives the lock up. The file stays: removing it would let two
// processes lock two different files of one name.
func (l *storeLock) Release() error { return l.f.Close() }

// Bounds of waiting for a lock.
const (
	lockPatience = 35 * time.Second // a reading command lasts 30 s at most (P30)
	lockInterval = 20 * time.Millisecond
	infoPatience = 500 * time.Millisecond // for a holder to write who it is
)

// errHeld says that another process has the store exclusively.
type errHeld struct {
	dir storeDir
	by  holder
}

func (e *errHeld) Error() string {
	dir := escapeName(string(e.dir))
	switch {
	case e.by.PID == 0:
		return fmt.Sprintf("the store %s is in use by another process: try again when it is done", dir)
	case e.by.Role == "mount":
		return fmt.Sprintf("the store %s is in use: the daemon with pid %d has it mounted at %s; use that mount, or end it with `nexusfs umount %s`",
			dir, e.by.PID, escapeName(e.by.Mountpoint), dir)
	}
	return fmt.Sprintf("the store %s is in use by `nexusfs %s` (pid %d): try again when it is done", dir, escapeName(e.by.Role), e.by.PID)
}

// lockExclusive takes the store for a daemon or a command that writes. Readers
// are waited for; another exclusive holder is an errHeld with exitStore.
func lockExclusive(ctx context.Context, d storeDir, me holder) (*storeLock, error) {
	f, err := os.OpenFile(d.file("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, storeWriteError(d, err)
	}
	if err := flockWait(ctx, d, f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	l := &storeLock{f}
	if err := l.describe(me); err != nil {
		f.Close()
		return nil, storeWriteError(d, err)
	}
	return l, nil
}

// lockShared keeps daemons away while a command reads the store.
func lockShared(ctx context.Context, d storeDir) (*storeLock, error) {
	f, err := os.OpenFile(d.file("lock"), os.O_RDONLY, 0)
	if err != nil {
		return nil, storeWriteError(d, err)
	}
	if err := flockWait(ctx, d, f, unix.LOCK_SH); err != nil {
		f.Close()
		return nil, err
	}
	return &storeLock{f}, nil
}

// flockWait takes the lock. It waits only for readers: a holder that even a
// shared lock meets is exclusive and may stay for ever.
func flockWait(ctx context.Context, d storeDir, f *os.File, how int) error {
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return storeWriteError(d, err)
		}
		by, held, err := probeLock(d)
		if err != nil {
			return err
		}
		if held || time.Now().After(deadline) {
			return &exitError{code: exitStore, err: &errHeld{dir: d, by: by}}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockInterval):
		}
	}
}

// probeLock reports whether the store is held exclusively, and by whom. It
// holds the lock, shared, for the blink of an eye; lockExclusive knows that.
func probeLock(d storeDir) (by holder, held bool, err error) {
	f, err := os.Open(d.file("lock"))
	if errors.Is(err, os.ErrNotExist) {
		return by, false, nil
	}
	if err != nil {
		return by, false, fail(exitStore, "store: %w", err)
	}
	defer f.Close()
	for deadline := time.Now().Add(infoPatience); ; time.Sleep(lockInterval) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return holder{}, false, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return by, false, fail(exitStore, "store lock: %w", err)
		}
		by, err = readHolder(f)
		if err == nil && processLives(by.PID) {
			return by, true, nil
		}
		if time.Now().After(deadline) {
			return by, true, nil // in another pid namespace, or just starting
		}
	}
}

func readHolder(f *os.File) (holder, error) {
	var by holder
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10))
	if err != nil {
		return by, err
	}
	return by, json.Unmarshal(data, &by)
}

func processLives(pid int) bool {
	err := syscall.Kill(pid, 0)
	return pid > 0 && (err == nil || errors.Is(err, syscall.EPERM))
}

// describe writes who holds the lock, for those who are refused.
func (l *storeLock) describe(me holder) error {
	data, err := json.Marshal(me)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if _, err := l.f.WriteAt(data, 0); err != nil {
		return err
	}
	return l.f.Truncate(int64(len(data)))
}
