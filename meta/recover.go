package meta

import (
	"context"
	"errors"
	"os"
)

// Open starts the filesystem on its store: it records a session, takes back
// what a power loss has torn (P22), and reserves revisions. A read-only mount
// records and repairs nothing. KindFenced and KindBusy are the store's to give.
func (fs *FS) Open(ctx context.Context) error {
	if !fs.o.ReadOnly {
		if err := fs.begin(ctx); err != nil {
			return err
		}
	}
	head, err := fs.o.Store.Head(ctx)
	if err != nil {
		return err
	}
	fs.head.Store(int64(head.Rev))
	fs.losses.epoch.Store(head.Epoch)
	fs.nodes.upkeep.firstRev.Store(int64(head.Rev))
	fs.sync.safe.Store(int64(head.Barrier))
	if fs.o.Durable {
		fs.sync.safe.Store(int64(head.Rev))
	}
	if fs.o.ReadOnly {
		fs.sync.safe.Store(int64(head.Rev)) // nothing will be committed: nothing is to wait for
		fs.peers.sharing.Store(fs.o.Peers != nil)
		return nil
	}
	if head.Barrier < head.Rev {
		fs.sync.dirty() // what an unclean predecessor left becomes durable soon, too
	}
	if err := fs.reserve(ctx); err != nil {
		return err
	}
	return fs.admit(ctx)
}

// begin records the session and recovers from an unclean predecessor.
func (fs *FS) begin(ctx context.Context) error {
	info := fs.sessionInfo()
	info.Replaces = fs.o.Replaces
	number, epoch, prev, err := fs.o.Sessions.Begin(ctx, info)
	if err != nil {
		return err
	}
	fs.hold(number, epoch)
	if prev == nil || prev.Ended {
		return nil
	}
	fs.nodes.upkeep.unclean.Store(true)
	fs.log.Info("the last session did not end in order", "session", prev.Session, "pid", prev.PID, "node", prev.Node)
	if fs.o.SyncFirst || prev.BootID == fs.o.BootID && fs.o.BootID != "" {
		return nil // the daemon died, the machine did not (or nothing depends on it): what it wrote is there
	}
	if err := fs.recover(ctx); err != nil {
		return err
	}
	// gofail: var afterRecovery struct{}
	return fs.o.Sessions.Recovered(ctx, number, fs.o.BootID)
}

// hold makes a session this daemon's.
func (fs *FS) hold(number, epoch int64) {
	fs.session.Store(&session{number, epoch})
	if fs.o.Began != nil {
		fs.o.Began(number)
	}
}

// sessionInfo describes this daemon.
func (fs *FS) sessionInfo() SessionInfo {
	return SessionInfo{Node: fs.o.Node, PID: fs.pid(), BootID: fs.o.BootID, Mountpoint: fs.o.Mountpoint, Started: fs.now().UnixNano(), Lease: int64(fs.lease())}
}

func (fs *FS) pid() int {
	if fs.o.PID != 0 {
		return fs.o.PID
	}
	return os.Getpid()
}

// recover finds the first operation behind the last barrier whose content did
// not survive, and takes it and everything later back: a power loss loses a
// suffix of the history, never a middle (P22).
func (fs *FS) recover(ctx context.Context) error {
	head, err := fs.o.Store.Head(ctx)
	if err != nil {
		return err
	}
	first, lost := Rev(0), 0
	buf := newBuffer(BlobMax)
	defer buf.free()
	err = fs.o.Upkeep.BlobsSince(ctx, head.Barrier, func(b Blob, rev Rev) error {
		if b.Place == PlaceInline {
			return nil
		}
		whole, err := fs.whole(ctx, b, buf.b)
		if err != nil || whole {
			return err
		}
		lost++
		if first == 0 || rev < first {
			first = rev
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Even when nothing is missing the log may have lost its tail: a recovery
	// that takes nothing back skips the numbers that were issued in it (I3).
	from := first
	if from == 0 {
		from = head.Rev + 1
	}
	// gofail: var beforeRewind struct{}
	rev, err := fs.o.Upkeep.Rewind(ctx, from, fs.now().UnixNano())
	if err != nil {
		return err
	}
	if first != 0 {
		fs.log.Warn("power was lost before content reached the disk: the last operations were taken back",
			"first", first, "last", head.Rev, "blobs", lost, "recovery", rev)
	} else {
		fs.log.Info("power was lost; nothing that refers to content is missing", "last", head.Rev, "recovery", rev)
	}
	// What stays was found on the disk, but found is not synced.
	if err := fs.o.Content.Sync(ctx); err != nil {
		return err
	}
	return fs.o.Store.Sync(ctx)
}

// whole reports whether a blob is there and matches its name. An error of the
// disk is no answer: it is returned.
func (fs *FS) whole(ctx context.Context, b Blob, buf []byte) (bool, error) {
	if b.Size > int64(len(buf)) {
		return false, nil
	}
	err := fs.o.Content.Read(ctx, b, 0, buf[:b.Size])
	if err == nil {
		return true, nil
	}
	switch KindOf(err) {
	case KindDamaged, KindNotExist, KindStale:
		return false, nil
	}
	return false, err
}

// reserve keeps enough revisions ahead of the newest that none is ever issued
// twice, whatever tail of the log a power loss takes (P22).
func (fs *FS) reserve(ctx context.Context) error {
	head := fs.head.Load()
	if reserved := fs.nodes.upkeep.reserved.Load(); reserved-head > revReserve/2 {
		return nil
	}
	if err := fs.o.Sessions.Reserve(ctx, Rev(head+revReserve)); err != nil {
		return err
	}
	fs.nodes.upkeep.reserved.Store(head + revReserve)
	return nil
}

// Close ends the filesystem in order: changes are refused from now on, what is
// staged is committed, everything is made durable and the session is ended.
// Run must have returned. It goes on after an error and returns all of them.
func (fs *FS) Close(ctx context.Context) error {
	if fs.closing.Swap(true) || fs.o.ReadOnly {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	err := fs.settleAll(ctx)
	fs.nodes.put.wg.Wait()
	if serr := fs.sync.wait(); serr != nil {
		return errors.Join(err, serr) // the session stays unended: it did not end in order
	}
	return errors.Join(err, fs.o.Sessions.End(ctx, fs.session.Load().number))
}
