package raftnode

import (
	"context"
	"fmt"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// BeginSession makes a session known to the group, with which locks are held,
// and renews it until it is ended. id and epoch are those that SQL gave. lease
// is how long the group waits for a sign of this node before it ends the
// session, fenced in SQL first (P20): longer than CacheLease, or KindInvalid.
// KindExist: the group has that session.
func (z *Zone) BeginSession(ctx context.Context, id, epoch int64, lease time.Duration) error {
	if lease <= CacheLease && !z.n.o.shortLeases {
		return meta.E("begin session", 0, "", meta.KindInvalid, fmt.Errorf("a lease of %v is not longer than the caches' %v: raise session.lease", lease, CacheLease))
	}
	k := state.SessionKey{Zone: z.name, ID: id}
	cl := newCall(&state.BeginSession{SessionKey: k, Epoch: epoch, Lease: int64(lease)})
	if err := z.n.do(ctx, "begin session", cl); err != nil {
		if cl.finished() && cl.result.Code == state.Conflict {
			return meta.E("begin session", 0, "", meta.KindExist, nil)
		}
		return err
	}
	z.n.mu.Lock()
	defer z.n.mu.Unlock()
	z.n.sessions[k] = renewal{lease, sinceBoot()}
	return nil
}

// EndSession ends a session in order: everything that it committed was
// announced. Its locks are free when it returns.
func (z *Zone) EndSession(ctx context.Context, id int64) error {
	k := state.SessionKey{Zone: z.name, ID: id}
	z.n.mu.Lock()
	delete(z.n.sessions, k)
	z.n.mu.Unlock()
	return z.n.do(ctx, "end session", newCall(&state.EndSession{SessionKey: k}))
}

// renewSessions renews what is due, four times in a lease. n.mu is held.
func (n *Node) renewSessions() {
	for k, r := range n.sessions {
		if n.core.now-r.at >= r.lease/4 {
			r.at = n.core.now
			n.sessions[k] = r
			n.core.propose(newCall(&state.RenewSession{SessionKey: k}))
		}
	}
}
