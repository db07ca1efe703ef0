package meta

import (
	"context"
	"sync/atomic"
	"time"
)

// Several daemons may open one zone where the store allows it. Until
// announcements connect them they share by asking SQL:
//
//   - A daemon that is alone lets the kernel keep names and attributes for as
//     long as it likes and asks SQL for nothing that it knows.
//   - One that shares lets them be kept for half a second (Shared, which fusefs
//     asks), looks at the zone's revision at every open and before it refuses
//     anything, and applies what others committed (follow.go).
//   - A daemon that comes is admitted, which is when Open returns, once every
//     other live session has written in SQL that it dropped its kernel's caches
//     and shares. One that is silent for longer than its lease is fenced: SQL
//     refuses its commits from then on (P20).
//   - A daemon that has not confirmed its lease in time shares by itself, so
//     that it trusts nothing that a successor may have changed.

// Peers is what an FS needs of a store that several daemons may open at once.
// Its times are the store's own: no two daemons compare clocks.
type Peers interface {
	// Heartbeat renews a session's lease, fences the sessions of the zone whose
	// lease has ended, and records the mode: PeerShares always; PeerAlone only
	// if nobody else lives, otherwise the recorded mode stays as it is.
	// KindFenced when the session itself was fenced.
	Heartbeat(ctx context.Context, session, epoch int64, mode PeerMode) (PeerState, error)
	// WatchSessions blocks until the zone's sessions have changed since the
	// call before, or ctx ends. It may return early. One caller at a time.
	WatchSessions(ctx context.Context) error
}

// PeerMode is what a session has written of itself.
type PeerMode bool

// The modes.
const (
	PeerAlone  PeerMode = false // its kernel keeps names and attributes for long
	PeerShares PeerMode = true  // its kernel keeps nothing for longer than a moment
)

// PeerState is what a heartbeat found.
type PeerState struct {
	Others  int  // live sessions besides the caller's, those too that wait for admission
	Unready int  // of them: those that have not written that they share
	Alone   bool // the caller's recorded mode is PeerAlone now
}

// Bounds of living with others.
const (
	DefaultLease = 10 * time.Second // of a session; renewed four times as often
	peerLook     = 500 * time.Millisecond
	peerLate     = 2 * peerLook // a look this old is not relied on
	peerRetry    = 100 * time.Millisecond
)

// KernelTTLShared is for how long a kernel may keep names and attributes of a
// zone that several daemons have open. With the age of what this daemon knows
// (peerLook) it makes a second.
const KernelTTLShared = 500 * time.Millisecond

// peers is what an FS remembers of the others.
type peers struct {
	sharing   atomic.Bool  // others may change the zone
	others    atomic.Int64 // live sessions besides ours
	confirmed atomic.Int64 // when the last heartbeat that succeeded began, ns of the daemon's clock
	looked    atomic.Int64 // when the last look at the zone's revision began
	dropped   atomic.Bool  // the kernel was told to drop everything since the lease became uncertain
}

// Shared reports whether other daemons may change the zone now.
func (fs *FS) Shared() bool { return fs.peers.sharing.Load() }

// admit waits until this session may serve: everybody else shares, or nobody
// else is there.
func (fs *FS) admit(ctx context.Context) error {
	if fs.o.Peers == nil {
		return nil
	}
	fs.peers.sharing.Store(true)
	for said := false; ; {
		st, err := fs.beat(ctx, PeerAlone)
		switch {
		case err != nil:
			return err
		case st.Alone:
			fs.peers.sharing.Store(false)
			return nil
		}
		// Alone is not to be had: say that this daemon shares.
		if st, err = fs.beat(ctx, PeerShares); err != nil || st.Unready == 0 {
			return err
		}
		if !said {
			fs.log.Info("waiting until the other daemons of this zone share it", "daemons", st.Unready)
			said = true
		}
		if err := fs.watch(ctx, peerRetry); err != nil {
			return err
		}
	}
}

// watch waits for a change of the sessions, at most for the given time.
func (fs *FS) watch(ctx context.Context, most time.Duration) error {
	short, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if err := fs.o.Peers.WatchSessions(short); err != nil && short.Err() == nil {
		fs.log.Debug("watching the zone's sessions", "err", err)
		<-short.Done() // a store that does not answer is asked again, not stormed
	}
	if err := ctx.Err(); err != nil {
		return E("session", 0, "", KindInterrupted, err)
	}
	return nil
}

// beat is one heartbeat.
func (fs *FS) beat(ctx context.Context, mode PeerMode) (PeerState, error) {
	fs.losses.joining.Lock()
	defer fs.losses.joining.Unlock()
	began, own := fs.now().UnixNano(), fs.session.Load()
	st, err := fs.o.Peers.Heartbeat(ctx, own.number, own.epoch, mode)
	if err != nil {
		return st, err
	}
	fs.peers.confirmed.Store(began)
	fs.peers.dropped.Store(false)
	fs.peers.others.Store(int64(st.Others))
	return st, nil
}

// keepSession renews the lease and goes with those who come and leave, until
// ctx ends.
func (fs *FS) keepSession(ctx context.Context) {
	for fs.watch(ctx, fs.lease()/4) == nil {
		err := fs.meet(ctx)
		if KindOf(err) == KindLost && err != nil {
			err = fs.lost(ctx)
		}
		if err != nil && ctx.Err() == nil {
			fs.uncertain(ctx, err)
		}
	}
}

func (fs *FS) lease() time.Duration {
	if fs.o.Lease > 0 {
		return fs.o.Lease
	}
	return DefaultLease
}

// meet is one round: it renews the lease, and changes the mode if others came
// or the last one left.
func (fs *FS) meet(ctx context.Context) error {
	st, err := fs.beat(ctx, PeerAlone)
	if err != nil {
		return err
	}
	if st.Alone == !fs.peers.sharing.Load() {
		return nil
	}
	if st.Alone {
		// What the others did last is applied before anything is kept for long.
		fs.peers.looked.Store(0)
		if err := fs.look(ctx); err != nil {
			if _, berr := fs.beat(ctx, PeerShares); berr != nil {
				return berr
			}
			return err
		}
		fs.peers.sharing.Store(false)
		fs.log.Info("this daemon has the zone alone")
		return nil
	}
	return fs.share(ctx)
}

// share leaves everything that was trusted while this daemon was alone, and
// says so: whoever waits for admission goes on then.
func (fs *FS) share(ctx context.Context) error {
	fs.peers.sharing.Store(true) // answers from now on are for a moment
	// A collection sees that and ends; who is admitted must not meet it.
	fs.nodes.upkeep.collecting.Lock()
	//lint:ignore SA2001 it has ended now
	fs.nodes.upkeep.collecting.Unlock()
	if err := fs.forgetKernel(ctx, true); err != nil {
		return err
	}
	_, err := fs.beat(ctx, PeerShares)
	if err == nil {
		fs.log.Info("other daemons have this zone open, too: names and attributes are kept for a moment only",
			"daemons", fs.peers.others.Load())
	}
	return err
}

// uncertain deals with a heartbeat that failed. Once the lease may have ended,
// nothing that the kernel keeps is to be trusted.
func (fs *FS) uncertain(ctx context.Context, err error) {
	if KindOf(err) == KindFenced {
		fs.fenced(err)
	}
	late := fs.now().UnixNano()-fs.peers.confirmed.Load() > int64(fs.lease()*3/4)
	if KindOf(err) != KindFenced && !late {
		return
	}
	fs.peers.sharing.Store(true)
	if fs.peers.dropped.Swap(true) {
		return
	}
	fs.log.Warn("this daemon's session could not be renewed: nothing is kept any more", "err", err)
	if err := fs.forgetKernel(ctx, true); err != nil {
		fs.log.Error("dropping the kernel's caches failed; unmount", "err", err)
	}
}

// fenced marks a session that others have ended: its changes are refused.
func (fs *FS) fenced(err error) {
	e := &Error{Op: "session", Kind: KindFenced, Err: err}
	if fs.failed.CompareAndSwap(nil, e) {
		fs.log.Error("another daemon has ended this one's session, because it was silent for longer than its lease; "+
			"changes are refused from now on. Unmount, then mount again", "err", err)
	}
}

// forgetKernel makes the kernel drop everything; wait says to return when it
// has done so.
func (fs *FS) forgetKernel(ctx context.Context, wait bool) error {
	for _, h := range fs.o.Hooks {
		if f, ok := h.(Forgetter); ok {
			if err := f.Forget(ctx, wait); err != nil {
				return err
			}
		}
	}
	return nil
}
