package raftnode

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// MemberStatus is one member as this node knows it.
type MemberStatus struct {
	state.Member
	Leader bool
	Self   bool
	// Heard is how long ago this node heard from it; negative: never.
	Heard time.Duration
	// Behind is how many entries it lacks, as the leader knows; -1 elsewhere.
	Behind int64
}

// Status is what a node knows of itself and its group.
type Status struct {
	Group   string
	ID      state.NodeID
	Leader  state.NodeID // 0: none is known
	Term    uint64
	Applied uint64 // index of the newest entry applied
	Version uint16 // of the features in use
	Alone   bool
	Quorum  bool // heard within the election time-out (P6)
	Leased  bool // P14
	Members []MemberStatus
	Zones   []ZoneStatus
	Failed  error // why the node goes on no more
}

// ZoneStatus is how far a zone is announced here.
type ZoneStatus struct {
	Name   string
	Epoch  int64
	Prefix meta.Rev
	High   meta.Rev // above Prefix: revisions in between are missing
	Head   state.Head
}

// Status returns what the node knows now, members and zones in order.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.core
	s := Status{
		Group: n.id.Group, ID: n.id.ID, Leader: c.lead, Term: c.log.hard.GetTerm(), Applied: c.st.Index, Version: c.st.Version,
		Alone: c.alone, Quorum: c.failed == nil && c.heardQuorum(), Leased: c.leased(sinceBoot()), Failed: c.failed,
	}
	match := c.matches()
	for id, m := range c.st.Members {
		ms := MemberStatus{Member: *m, Leader: id == c.lead, Self: id == c.id, Heard: -1, Behind: -1}
		if at, ok := c.heard[id]; ok {
			ms.Heard = time.Duration(c.ticks-at) * c.t.tick
		}
		if i, ok := match[uint64(id)]; ok {
			ms.Behind = int64(c.log.last() - i)
		}
		s.Members = append(s.Members, ms)
	}
	for name, z := range c.st.Zones {
		s.Zones = append(s.Zones, ZoneStatus{name, z.Epoch, z.Prefix, max(z.High, z.Prefix), z.Head})
	}
	slices.SortFunc(s.Members, func(a, b MemberStatus) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(s.Zones, func(a, b ZoneStatus) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// matches returns up to where each member has the log, on the leader.
func (c *core) matches() map[uint64]uint64 {
	out := map[uint64]uint64{}
	if c.leading {
		c.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) { out[id] = pr.Match })
	}
	return out
}

// change proposes changes of members: one alone, or several at once by joint
// consensus. One that is not made within the bound is given up, unless it is in
// the log already.
func (n *Node) change(ctx context.Context, op string, changes []*pb.ConfChangeSingle, cmd state.Command) error {
	cl := newCall(cmd)
	cl.change = &pb.ConfChangeV2{Changes: changes}
	n.submit(cl)
	if err := n.await(ctx, op, cl.done); err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		cl.gone = true
		return err
	}
	return outcome(op, cl)
}

func single(t pb.ConfChangeType, id state.NodeID) *pb.ConfChangeSingle {
	return &pb.ConfChangeSingle{Type: t.Enum(), NodeId: new(uint64(id))}
}

// addLearner makes a node a member that follows.
func (n *Node) addLearner(ctx context.Context, m state.Member) error {
	if err := n.grow(); err != nil {
		return refused("add a member", err)
	}
	m.Role = state.Learner
	return n.change(ctx, "add a member", []*pb.ConfChangeSingle{single(pb.ConfChangeAddLearnerNode, m.ID)}, &state.SetMember{Member: m})
}

// grow makes ready for a second member: from now on what counts is on disk
// before it counts, and a lost disk is never taken for a new node (P16).
func (n *Node) grow() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.core.alone {
		return nil
	}
	id := *n.id
	id.Alone, id.Boot = false, ""
	for n.pumping {
		n.resting.Wait()
	}
	n.pumping = true
	n.core.grown = true
	n.core.checkAlone()
	n.core.log.compact(n.core.st.Index) // what was said while nobody listened is not for others
	w := n.core.save(false, false)
	w.sync = true
	n.mu.Unlock()
	err := n.disk.save(w)
	if err == nil {
		err = id.write(n.o.Dir)
	}
	n.mu.Lock()
	n.rest()
	if err != nil {
		n.core.stop(err)
		return err
	}
	n.id = &id
	n.kickRun()
	return nil
}

// promotable is how many entries a learner may lack to be made a voter.
const promotable = 256

// Promote makes a learner a voter, or, if it is a witness, a voting witness. It
// is refused while the learner lacks more than a few entries: the quorum would
// wait for it. Any member may be asked; the leader does it.
func (n *Node) Promote(ctx context.Context, id state.NodeID) error {
	const op = "promote"
	n.mu.Lock()
	m, leading := n.core.st.Members[id], n.core.leading
	behind := n.core.log.last() - n.core.matches()[uint64(id)]
	n.mu.Unlock()
	switch {
	case !leading:
		return n.askLeader(ctx, op, methodPromote, id)
	case m == nil:
		return meta.E(op, 0, id.String(), meta.KindNotExist, nil)
	case m.Role.Votes():
		return meta.E(op, 0, id.String(), meta.KindExist, fmt.Errorf("it is a %v already", m.Role))
	case behind > promotable:
		return meta.E(op, 0, id.String(), meta.KindBusy, fmt.Errorf("it lacks %d entries of the log: wait until it has caught up", behind))
	}
	voter := *m
	voter.Role = state.Voter
	if m.Witness {
		voter.Role = state.Witness
	}
	return n.change(ctx, op, []*pb.ConfChangeSingle{single(pb.ConfChangeAddNode, id)}, &state.SetMember{Member: voter})
}

// about is a request about one member.
type about struct{ ID state.NodeID }

// askLeader lets the leader do something about a member.
func (n *Node) askLeader(ctx context.Context, op, method string, id state.NodeID) error {
	n.mu.Lock()
	lead, net := n.core.lead, n.net
	n.mu.Unlock()
	if lead == 0 || net == nil {
		return refused(op, ErrNoQuorum)
	}
	body, err := json.Marshal(about{id})
	if err != nil {
		return refused(op, err)
	}
	b, err := net.Call(ctx, lead, method, body)
	_, err = answered[struct{}](op, b, err)
	return err
}

// Remove ends memberships for good, all at once. The nodes' sessions end as if
// they had died. A removed node learns it from the others; one that leads hands
// over first. KindInvalid: no voter with data would be left.
func (n *Node) Remove(ctx context.Context, ids ...state.NodeID) error {
	var changes []*pb.ConfChangeSingle
	n.mu.Lock()
	for _, id := range ids {
		if n.core.st.Members[id] == nil {
			n.mu.Unlock()
			return meta.E("remove", 0, id.String(), meta.KindNotExist, nil)
		}
		changes = append(changes, single(pb.ConfChangeRemoveNode, id))
	}
	left := 0
	for id, m := range n.core.st.Members {
		if m.Role == state.Voter && !slices.Contains(ids, id) {
			left++
		}
	}
	n.mu.Unlock()
	if len(ids) == 0 || left == 0 {
		return meta.E("remove", 0, "", meta.KindInvalid, fmt.Errorf("a group keeps one voter with data at least: promote another member first"))
	}
	return n.change(ctx, "remove", changes, &state.RemoveMembers{IDs: ids})
}

// Transfer gives leadership to a voter. It returns when that one leads as far
// as the leader before it knows, or with ErrLate. Any member may be asked.
func (n *Node) Transfer(ctx context.Context, id state.NodeID) error {
	const op = "transfer leadership"
	n.mu.Lock()
	m, lead, leading := n.core.st.Members[id], n.core.lead, n.core.leading
	n.mu.Unlock()
	switch {
	case lead == id:
		return nil
	case !leading:
		return n.askLeader(ctx, op, methodTransfer, id)
	case m == nil:
		return meta.E(op, 0, id.String(), meta.KindNotExist, nil)
	case m.Role != state.Voter:
		return meta.E(op, 0, id.String(), meta.KindInvalid, fmt.Errorf("it is a %v: only a voter with data leads", m.Role))
	}
	bounded, cancel := context.WithTimeout(ctx, n.o.Late)
	defer cancel()
	again := time.NewTicker(n.core.t.tick)
	defer again.Stop()
	for {
		n.mu.Lock()
		lead, failed := n.core.lead, n.core.failed
		if n.core.leading && failed == nil {
			n.core.rn.TransferLeader(uint64(id))
			n.pump(pumpOwn)
		}
		n.mu.Unlock()
		switch {
		case lead == id:
			return nil
		case failed != nil:
			return refused(op, failed)
		}
		select {
		case <-again.C:
		case <-bounded.Done():
			if ctx.Err() != nil {
				return interrupted(op, ctx.Err())
			}
			return refused(op, ErrLate)
		}
	}
}

// Heads returns the audit chain's heads that this witness keeps of a zone, in
// order (P33): none elsewhere.
func (n *Node) Heads(zone string) ([]state.Head, error) { return boltDisk{n.store}.heads(zone) }
