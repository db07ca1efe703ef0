package raftnode

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// gapSeen is since when a gap is there.
type gapSeen struct {
	first meta.Rev
	tick  uint64
	extra uint64 // patience besides, so that not all members ask SQL at once
}

// task is something to do that takes SQL. It is named by its value: what is
// under way already is not begun again.
type task struct {
	kind    taskKind
	zone    string
	first   meta.Rev // of a gap
	last    meta.Rev
	session int64
	epoch   int64  // the session's
	term    uint64 // of the leader that looks
}

type taskKind uint8

const (
	taskTruth taskKind = iota // announce SQL's highest revision of every zone
	taskGap                   // read first..last and announce it
	taskFence                 // end a session in SQL
)

// todo returns what this member should do with SQL now. A witness has none.
func (c *core) todo() []task {
	if c.witness || c.failed != nil {
		return nil
	}
	var out []task
	if c.leading && c.truth.term != 0 && c.truth.agreed != c.truth.term {
		out = append(out, task{kind: taskTruth, term: c.truth.term})
	}
	for zone, g := range c.gaps {
		patience := uint64(c.t.gap)
		if !c.leading && len(c.waits[zone]) == 0 {
			patience += g.extra
		}
		if c.ticks-g.tick < patience {
			continue
		}
		if first, last, ok := c.st.Zones[zone].Gap(); ok {
			out = append(out, task{kind: taskGap, zone: zone, first: first, last: last})
		}
	}
	if c.leading {
		for k, s := range c.st.Sessions {
			if s.Fencing && !s.Fenced {
				out = append(out, task{kind: taskFence, zone: k.Zone, session: k.ID, epoch: s.Epoch})
			}
		}
	}
	return out
}

// watchGaps notes since when each zone's first gap is there.
func (c *core) watchGaps() {
	for name, z := range c.st.Zones {
		first, _, ok := z.Gap()
		switch seen, was := c.gaps[name]; {
		case !ok && was:
			delete(c.gaps, name)
		case ok && (!was || seen.first != first):
			c.gaps[name] = gapSeen{first, c.ticks, 2 + uint64(c.rand.IntN(2*c.t.heartbeat))}
		}
	}
	for name := range c.gaps {
		if c.st.Zones[name] == nil {
			delete(c.gaps, name)
		}
	}
}

// agreed says that SQL's highest revisions were announced in a term.
func (c *core) agreed(term uint64) {
	if c.truth.term == term {
		c.truth.agreed = term
		c.reads.again()
		c.reads.retry(c)
	}
}

// leaseSeen is a lease as its leader measures it: from the newest renewal that
// it applied, or from when it became leader.
type leaseSeen struct {
	renewals uint64
	since    time.Duration
	asked    bool // its end was proposed
}

type namedHold struct {
	state.NameKey
	token uint64
}

// lease proposes the end of what was not renewed in time (P20).
func (c *core) lease() {
	old := c.leases
	c.leases = make(map[any]leaseSeen, len(old))
	for k, s := range c.st.Sessions {
		if !s.Fencing && c.ended(old, k, s.Renewals, time.Duration(s.Lease)) {
			c.propose(newCall(&state.Fence{SessionKey: k, Renewals: s.Renewals}))
		}
	}
	for k, n := range c.st.Names {
		for _, h := range n.Holders {
			if h.TTL > 0 && c.ended(old, namedHold{k, h.Token}, h.Renewals, time.Duration(h.TTL)) {
				c.propose(newCall(&state.ExpireNamed{NameKey: k, Token: h.Token, Renewals: h.Renewals}))
			}
		}
	}
}

// ended measures one lease and reports whether its end is to be proposed.
func (c *core) ended(old map[any]leaseSeen, key any, renewals uint64, lease time.Duration) bool {
	seen, ok := old[key]
	if !ok || seen.renewals != renewals {
		seen = leaseSeen{renewals: renewals, since: c.steady}
	}
	end := !seen.asked && c.steady-seen.since > lease
	seen.asked = seen.asked || end
	c.leases[key] = seen
	return end
}

// handOver makes a witness that leads give leadership to the data node that is
// furthest, as soon as one has everything (P17).
func (c *core) handOver() {
	if c.witness {
		c.transferExcept(nil)
	}
}

// transferExcept gives leadership to the voter with data that is furthest and is
// heard of, and is none of those that leave.
func (c *core) transferExcept(leave []state.NodeID) {
	if c.rn.BasicStatus().LeadTransferee != 0 {
		return
	}
	var best, match uint64
	c.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		m := c.st.Members[state.NodeID(id)]
		if m != nil && m.Role == state.Voter && m.ID != c.id && typ == raft.ProgressTypePeer &&
			pr.RecentActive && pr.Match > match && !slices.Contains(leave, m.ID) {
			best, match = id, pr.Match
		}
	})
	if best != 0 {
		c.rn.TransferLeader(best)
	}
}

// leavesBy reports whether a change of members removes this member while it
// leads. It then hands over instead of proposing it: the leader of a change
// must be one that stays, since those that leave end, and somebody who knows
// that the change was made must not. Whoever proposes it tries again.
func (c *core) leavesBy(cc *pb.ConfChangeV2) bool {
	if !c.leading || cc == nil {
		return false
	}
	var gone []state.NodeID
	for _, ch := range cc.GetChanges() {
		if ch.GetType() == pb.ConfChangeRemoveNode {
			gone = append(gone, state.NodeID(ch.GetNodeId()))
		}
	}
	if !slices.Contains(gone, c.id) {
		return false
	}
	c.transferExcept(gone)
	return true
}

// forwardedChange returns the change of members in a forwarded proposal.
func forwardedChange(m *pb.Message) *pb.ConfChangeV2 {
	if m.GetType() != pb.MsgProp {
		return nil
	}
	for _, e := range m.GetEntries() {
		if e.GetType() == pb.EntryConfChangeV2 {
			if cc, err := confChange(e); err == nil {
				return cc
			}
		}
	}
	return nil
}

// activate switches on what every member knows (P19).
func (c *core) activate() {
	if to := min(c.st.Supported(), c.known); to > c.st.Version && to != c.activating {
		c.activating = to
		c.propose(newCall(&state.Activate{To: to}))
	}
}
