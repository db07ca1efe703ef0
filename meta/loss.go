package meta

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A server may come back without its newest commits (P15): it was killed before
// they were on its disk, a standby that had not got them took its place, or an
// older copy was restored. The store finds out, and says KindLost to everything
// but a new session. Then this daemon goes on by itself:
//
//   - what it and its kernel cached is dropped before anything else is answered
//     from it: caches hold the lost future;
//   - it begins a new session and tells the store the newest revision that it
//     has seen, so that none is issued twice;
//   - operations that the store refused are planned again, on what there is;
//   - the next fsync through each descriptor that was open fails once with EIO,
//     as after a failed write-back: what was written may be gone.
//
// The leader of the commit path does it, so no batch is under way.

// Loss says what a store lost while this daemon ran.
type Loss struct {
	First    Rev    `json:"first"`    // revisions from here on
	Last     Rev    `json:"last"`     // up to here were issued, as far as this daemon knows, and are gone; First-1: it saw none of them
	Recovery Rev    `json:"recovery"` // the record of the loss
	Cause    string `json:"cause"`
}

// losses is what an FS remembers of losses.
type losses struct {
	suspected atomic.Bool          // the store has said KindLost; the leader has not gone on yet
	count     atomic.Int64         // how often this daemon went on
	last      atomic.Pointer[Loss] // the newest; nil: none
	epoch     atomic.Int64         // of the zone: another one means that a recovery came between
	joining   sync.Mutex           // held over SQL, by heartbeats and by who replaces the session
}

var errLost = errors.New("what was written before the store lost its newest operations may be gone: see nexusfs status, write it again")

// session is the daemon's own.
type session struct{ number, epoch int64 }

// lost notes that the store has lost operations, and has the leader go on.
func (fs *FS) lost(ctx context.Context) error {
	fs.losses.suspected.Store(true)
	return fs.look(ctx)
}

// rejoin goes on after a loss. An error leaves the loss suspected: whatever
// comes next tries again. Its caller is the leader.
func (fs *FS) rejoin(ctx context.Context) error {
	l, known := &fs.losses, Rev(fs.head.Load())
	l.suspected.Store(true)
	if fs.o.Peers != nil {
		fs.peers.sharing.Store(true) // who else lives is not known
	}
	if err := fs.dropAll(ctx, known); err != nil {
		return err
	}
	if err := fs.replaceSession(ctx, known); err != nil {
		return err
	}
	head, err := fs.o.Store.Head(ctx)
	if err != nil {
		return err
	}
	fs.inos.drop() // the range may be another's now
	fs.head.Store(int64(head.Rev))
	l.epoch.Store(head.Epoch)
	if fs.o.Durable {
		fs.sync.safe.Store(int64(head.Rev))
	}
	fs.sync.dirty()
	fs.nodes.upkeep.reserved.Store(0)
	if err := fs.reserve(ctx); err != nil {
		return err
	}
	if err := fs.noteLoss(ctx, known, head.Rev); err != nil {
		return err
	}
	l.count.Add(1)
	l.suspected.Store(false)
	return fs.awaitShared(ctx)
}

// replaceSession begins a session that takes the place of the one that ended.
func (fs *FS) replaceSession(ctx context.Context, known Rev) error {
	fs.losses.joining.Lock()
	defer fs.losses.joining.Unlock()
	info := fs.sessionInfo()
	info.Known, info.Replaces = known, fs.session.Load().number
	number, epoch, _, err := fs.o.Sessions.Begin(ctx, info)
	if err == nil {
		fs.hold(number, epoch)
	}
	return err
}

// noteLoss finds the newest recovery's record, which says what may be missing.
func (fs *FS) noteLoss(ctx context.Context, known, head Rev) error {
	loss := Loss{First: known + 1, Last: known, Cause: "the session was ended by a recovery"}
	err := fs.o.History.Records(ctx, RecordFilter{Until: head, Reverse: true, Limit: followMax}, func(r *Record) bool {
		switch {
		case r.Rev <= known:
			return false
		case r.Kind != OpRecovery:
			return true
		}
		var after struct {
			First Rev    `json:"first"`
			Cause string `json:"cause"`
		}
		if json.Unmarshal([]byte(r.After), &after) == nil && after.First > 0 {
			loss = Loss{First: after.First, Last: max(known, after.First-1), Recovery: r.Rev, Cause: after.Cause}
		}
		return false
	})
	if err != nil {
		return err
	}
	fs.losses.last.Store(&loss)
	what := "nothing that this daemon has seen"
	if loss.Last >= loss.First {
		what = fmt.Sprintf("revisions %d to %d", loss.First, loss.Last)
	}
	fs.log.Warn("the database came back without its newest operations; everything cached was dropped, and a new session goes on",
		"lost", what, "recovery", loss.Recovery, "cause", loss.Cause, "session", fs.session.Load().number)
	return nil
}

// awaitShared waits until the others that live share the zone: whoever began
// before may have it alone. One that is silent is fenced when its lease ends.
func (fs *FS) awaitShared(ctx context.Context) error {
	for fs.o.Peers != nil {
		st, err := fs.beat(ctx, PeerShares)
		if err != nil || st.Unready == 0 {
			return err
		}
		<-time.After(peerRetry)
	}
	return nil
}

// drop makes the next number come from a new range.
func (p *inoPool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next, p.last = 0, 0
}

// durable returns when everything that was committed before the call is
// durable. KindLost when some of it is gone.
func (fs *FS) durable(ctx context.Context) error {
	err := fs.sync.wait()
	if fs.losses.suspected.Load() {
		if lerr := fs.lost(ctx); lerr != nil {
			fs.log.Warn("going on after a loss failed; it is tried again", "err", lerr)
		}
	}
	return err
}

// unlost is durable for what was written through this handle, which an fsync
// is told of once.
func (h *Handle) unlost(ctx context.Context) error {
	err := h.fs.durable(ctx)
	if n := h.fs.losses.count.Load(); h.losses.Swap(n) != n && err == nil {
		err = E("fsync", h.n.ino, "", KindLost, errLost)
	}
	return err
}
