package raftnode

import (
	"context"
	"slices"
	"strings"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// Lock takes a lock on a file, waiting for it if wait says so, and then makes
// sure that everything announced before is seen here (I2): as after an open.
// l.Request, Since and Token are set by the group. It returns the fencing
// token. Errors: KindBusy with ErrWouldBlock or ErrDeadlock, KindFenced with
// ErrNoSession, KindInterrupted when ctx ended while it waited (then the lock
// is not held), KindNoSpace, KindIO with ErrLate: then it may come to be held
// until its handle is released.
func (z *Zone) Lock(ctx context.Context, ino meta.Ino, l state.FileLock, wait bool) (token uint64, err error) {
	k := state.FileKey{Zone: z.name, Ino: ino}
	l.Request = z.n.request()
	cl := newCall(&state.Lock{FileKey: k, FileLock: l, Wait: wait})
	cl.file = k
	if err := z.acquire(ctx, "lock", cl); err != nil {
		return 0, err
	}
	return cl.result.Token, z.Fresh(context.WithoutCancel(ctx))
}

// request names a new request of this node.
func (n *Node) request() state.RequestID {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.requests++
	return state.RequestID{Node: n.id.ID, Num: n.core.incarnation<<40 | n.requests}
}

// acquire waits for a lock without a bound once it is queued: its queue is
// known to the group then.
func (z *Zone) acquire(ctx context.Context, op string, cl *call) error {
	n := z.n
	n.submit(cl)
	queued := time.NewTimer(n.o.Late)
	defer queued.Stop()
	for {
		select {
		case <-cl.done:
			return outcome(op, cl)
		case <-ctx.Done():
			return z.cancel(ctx, op, cl)
		case <-queued.C:
			if n.queued(cl) {
				continue // only its holder or the caller ends this
			}
			z.abandon(cl)
			return refused(op, ErrLate)
		}
	}
}

// queued reports whether a request has its place in the group's queue, or was
// answered.
func (n *Node) queued(cl *call) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.core.waiting[requestOf(cl.cmd)] == cl || cl.finished()
}

// abandon takes a request back whose caller has gone, once the group has
// queued it.
func (z *Zone) abandon(cl *call) {
	z.n.mu.Lock()
	defer z.n.mu.Unlock()
	cl.gone = true
}

// cancel takes a waiting request back. The group may have granted it before:
// then the lock is held, and the interruption came too late.
func (z *Zone) cancel(ctx context.Context, op string, cl *call) error {
	n := z.n
	bounded, stop := context.WithTimeout(context.WithoutCancel(ctx), n.o.Late)
	defer stop()
	n.mu.Lock()
	waits := n.core.waiting[requestOf(cl.cmd)] == cl
	if !waits {
		cl.placed = make(chan struct{})
	}
	inQueue := cl.placed
	n.mu.Unlock()
	if !waits { // its entry is under way: what it comes to is known soon
		select {
		case <-cl.done:
			return outcome(op, cl)
		case <-inQueue:
		case <-bounded.Done():
			z.abandon(cl)
			return refused(op, ErrLate)
		}
	}
	back := newCall(&state.Cancel{FileKey: cl.file, Name: cl.name, Request: requestOf(cl.cmd)})
	if err := n.do(bounded, op, back); err == nil {
		n.mu.Lock()
		delete(n.core.waiting, requestOf(cl.cmd))
		n.mu.Unlock()
		return interrupted(op, ctx.Err())
	}
	select {
	case <-cl.done: // it was granted, or refused, before
		return outcome(op, cl)
	default:
		z.abandon(cl)
		return refused(op, ErrLate)
	}
}

// Unlock gives back what an owner holds of [start, end]. An error means that it
// may be held still; the session's end frees it at last.
func (z *Zone) Unlock(ctx context.Context, ino meta.Ino, owner state.LockOwner, start, end uint64) error {
	return z.n.do(ctx, "unlock", newCall(&state.Unlock{FileKey: state.FileKey{Zone: z.name, Ino: ino}, LockOwner: owner, Start: start, End: end}))
}

// ReleaseHandle drops every lock that was taken through an open file, when its
// last descriptor was closed (P21).
func (z *Zone) ReleaseHandle(ctx context.Context, ino meta.Ino, session int64, handle uint64) error {
	return z.n.do(ctx, "release", newCall(&state.ReleaseHandle{FileKey: state.FileKey{Zone: z.name, Ino: ino}, Session: session, Handle: handle}))
}

// Blocker returns a lock that is in the way of l, nil when none is (F_GETLK).
func (z *Zone) Blocker(ctx context.Context, ino meta.Ino, l state.FileLock) (*state.FileLock, error) {
	if err := z.n.read(ctx, "test a lock"); err != nil {
		return nil, err
	}
	z.n.mu.Lock()
	defer z.n.mu.Unlock()
	return z.n.core.st.Blocker(state.FileKey{Zone: z.name, Ino: ino}, l), nil
}

// Named is a place in a named lock that is asked for.
type Named struct {
	Name    string // of the lock in its zone; at most 255 bytes
	Limit   uint32 // places: 1 is a mutex. All who use it must say the same
	Session int64
	TTL     time.Duration // it ends so long after its last renewal; 0: with the session
	Note    string        // what people are shown
}

// Acquire takes a place in a named lock, waiting for it if wait says so, first
// come first served, and returns the fencing token: higher than those of all
// who had it before. Errors as those of Lock; KindInvalid where the lock has
// another limit.
func (z *Zone) Acquire(ctx context.Context, q Named, wait bool) (token uint64, err error) {
	k := state.NameKey{Zone: z.name, Name: q.Name}
	h := state.Holder{Session: q.Session, Request: z.n.request(), TTL: int64(q.TTL), Note: q.Note}
	cl := newCall(&state.Acquire{NameKey: k, Limit: q.Limit, Holder: h, Wait: wait})
	cl.file.Zone, cl.name = z.name, q.Name
	if err := z.acquire(ctx, "acquire", cl); err != nil {
		return 0, err
	}
	return cl.result.Token, z.Fresh(context.WithoutCancel(ctx))
}

// Renew begins a place's time to live anew. KindNotExist: it has ended.
func (z *Zone) Renew(ctx context.Context, name string, token uint64) error {
	return z.n.do(ctx, "renew", newCall(&state.RenewNamed{NameKey: state.NameKey{Zone: z.name, Name: name}, Token: token}))
}

// Release gives a place back, or takes it away from who has it. KindNotExist:
// it has ended.
func (z *Zone) Release(ctx context.Context, name string, token uint64) error {
	return z.n.do(ctx, "release", newCall(&state.ReleaseNamed{NameKey: state.NameKey{Zone: z.name, Name: name}, Token: token}))
}

// Break takes a file's locks away from a session, or, with 0, from all.
// KindNotExist: there is none.
func (z *Zone) Break(ctx context.Context, ino meta.Ino, session int64) error {
	return z.n.do(ctx, "break", newCall(&state.BreakFile{FileKey: state.FileKey{Zone: z.name, Ino: ino}, Session: session}))
}

// Locks is what is held and waited for in a zone.
type Locks struct {
	Files    []state.FileLocks // by inode
	Named    []state.Named     // by name
	Sessions []state.Session   // by number: whose they are
}

// Locks returns a copy of the zone's locks as they are known here.
func (z *Zone) Locks() Locks {
	z.n.mu.Lock()
	defer z.n.mu.Unlock()
	var out Locks
	for k, f := range z.n.core.st.Files {
		if k.Zone == z.name {
			out.Files = append(out.Files, state.FileLocks{FileKey: k, Held: slices.Clone(f.Held), Waiting: slices.Clone(f.Waiting)})
		}
	}
	for k, n := range z.n.core.st.Names {
		if k.Zone == z.name {
			out.Named = append(out.Named, state.Named{NameKey: k, Limit: n.Limit, Holders: slices.Clone(n.Holders), Waiting: slices.Clone(n.Waiting)})
		}
	}
	for k, s := range z.n.core.st.Sessions {
		if k.Zone == z.name {
			out.Sessions = append(out.Sessions, *s)
		}
	}
	slices.SortFunc(out.Files, func(a, b state.FileLocks) int { return int(int64(a.Ino) - int64(b.Ino)) })
	slices.SortFunc(out.Named, func(a, b state.Named) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(out.Sessions, func(a, b state.Session) int { return int(a.ID - b.ID) })
	return out
}
