package sqlite

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"nexusfs/meta"
)

// syncer makes the write-ahead log durable through a descriptor of its own
// (closing one of the database file itself would drop SQLite's locks on it).
// Callers that come while a round runs share the next one.
type syncer struct {
	mu      sync.Mutex
	file    *os.File // guarded by mu; nil: nothing to sync
	running bool     // guarded by mu: a round is under way
	next    *round   // guarded by mu: gathers who waits for the next round
	err     error    // guarded by mu: the first failure, final
	rounds  int64    // guarded by mu: syncs so far
}

// round is one fdatasync and who waits for it.
type round struct {
	done chan struct{}
	err  error
}

// open opens the log. SQLite has created it by then.
func (y *syncer) open(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return meta.E("open", 0, path, meta.KindIO, errors.New("SQLite made no write-ahead log"))
	}
	y.file = f
	return err
}

func (y *syncer) close() error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.file == nil {
		return nil
	}
	f := y.file
	y.file = nil
	return f.Close()
}

// failure returns the error that ended the trust in this store, if any.
func (y *syncer) failure() error {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.err
}

// wait returns when a round that started after the call has ended.
func (y *syncer) wait() error {
	y.mu.Lock()
	if y.err != nil {
		defer y.mu.Unlock()
		return y.err
	}
	if y.running {
		if y.next == nil {
			y.next = &round{done: make(chan struct{})}
		}
		r := y.next
		y.mu.Unlock()
		<-r.done
		return r.err
	}
	y.running = true
	y.mu.Unlock()
	return y.lead(nil)
}

// lead runs rounds until nobody waits; it returns the result of its first.
func (y *syncer) lead(r *round) error {
	err := y.flush()
	y.mu.Lock()
	y.rounds++
	if err != nil && y.err == nil {
		y.err = meta.E("sync", 0, "", meta.KindIO, err)
	}
	err = y.err
	next := y.next
	y.next = nil
	y.running = next != nil
	y.mu.Unlock()
	if r != nil {
		r.err = err
		close(r.done)
	}
	if next != nil {
		go y.lead(next)
	}
	return err
}

func (y *syncer) flush() error {
	y.mu.Lock()
	f := y.file
	y.mu.Unlock()
	if f == nil {
		return os.ErrClosed
	}
	return unix.Fdatasync(int(f.Fd()))
}

// Sync implements meta.Store: one fdatasync of the log, shared by everybody
// who waits. What a checkpoint moved into the database was synced by it.
func (s *Store) Sync(ctx context.Context) error {
	if err := interrupted(ctx, "sync"); err != nil {
		return err
	}
	if s.readOnly {
		return nil
	}
	return s.syncer.wait()
}

// A sync of blocks that were written before takes half the time of one that
// also has to record new ones. So the log is filled with zeros ahead of its
// use: a little when a store is opened, more by Checkpoint once somebody syncs.
// SQLite takes what follows the last valid frame for the end of the log.
const (
	fillAtOpen = 4 << 20
	fillAhead  = 32 << 20
	fillChunk  = 1 << 20
	fillSpare  = 16 // the disk must have so many times that much left
)

// fill appends one chunk of zeros to the log while it is shorter than to, and
// says whether there is more to do. It must not run beside a commit: the end of
// the file must stay where it is. A disk that has no room is no error.
func (y *syncer) fill(to int64) (more bool, err error) {
	y.mu.Lock()
	f := y.file
	y.mu.Unlock()
	if f == nil {
		return false, nil
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() >= to {
		return false, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || int64(st.Bavail)*st.Bsize < fillSpare*to {
		return false, err
	}
	n := min(fillChunk, to-fi.Size())
	if _, err := f.WriteAt(make([]byte, n), fi.Size()); err != nil {
		return false, f.Truncate(fi.Size())
	}
	return fi.Size()+n < to, nil
}

// fillLog lengthens the log in steps that hold up commits for a moment each,
// if there were syncs since the last call.
func (s *Store) fillLog() error {
	s.syncer.mu.Lock()
	rounds := s.syncer.rounds
	s.syncer.mu.Unlock()
	if rounds == s.filledAt {
		return nil
	}
	s.filledAt = rounds
	grew := false
	for more := true; more; {
		s.writeMu.Lock()
		var err error
		more, err = s.syncer.fill(fillAhead)
		s.writeMu.Unlock()
		if err != nil {
			return err
		}
		grew = grew || more
	}
	if grew {
		s.filledAt++ // by the round that follows
		return s.syncer.wait()
	}
	return nil
}
