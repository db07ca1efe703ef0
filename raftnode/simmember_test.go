package raftnode

import (
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// changing plays an administrator, one change at a time: nodes join as learners,
// get their vote, are removed alone and two at once, and one that lost its disk
// is removed and replaced by a new one.
type changing struct {
	s     *sim
	under *call
	core  *core
	since uint64
	next  state.NodeID
	done  int
}

func (a *changing) tick() {
	if a.under != nil {
		if a.s.nodes[a.core.id].core == a.core && !a.under.finished() {
			a.under.gone = a.s.now-a.since > 200 // given up
			if !a.under.gone {
				return
			}
		}
		if a.under.finished() && a.under.err == nil && a.under.result.Code == state.OK {
			a.done++
		}
		a.under = nil
	}
	if a.s.rand.IntN(20) > 0 {
		return
	}
	n := a.s.nodes[a.leader()]
	if n == nil {
		return
	}
	var voters, learners []state.NodeID
	for _, o := range a.s.each() {
		switch m := n.core.st.Members[o.id]; {
		case m == nil:
		case m.Role.Votes():
			voters = append(voters, o.id)
		default:
			learners = append(learners, o.id)
		}
	}
	switch r := a.s.rand.IntN(4); {
	case r == 0 && len(voters)+len(learners) < 6:
		a.join(n)
	case r == 1 && len(learners) > 0:
		m := *n.core.st.Members[learners[0]]
		m.Role = state.Voter
		a.propose(n, []*pb.ConfChangeSingle{single(pb.ConfChangeAddNode, m.ID)}, &state.SetMember{Member: m})
	case r == 2 && len(voters) > 1 && len(voters)+len(learners) > 2: // alone it would not sync: that is another test's
		a.remove(n, voters[a.s.rand.IntN(len(voters))])
	case r == 3 && len(voters) > 2 && len(voters)+len(learners) > 3:
		i := a.s.rand.IntN(len(voters) - 1)
		a.remove(n, voters[i], voters[i+1])
	}
}

// leader returns a node that leads, 0 if there is none.
func (a *changing) leader() state.NodeID {
	for _, n := range a.s.each() {
		if n.core != nil && n.core.leading {
			return n.id
		}
	}
	return 0
}

func (a *changing) propose(n *simNode, changes []*pb.ConfChangeSingle, cmd state.Command) {
	a.under, a.core, a.since = newCall(cmd), n.core, a.s.now
	a.under.change = &pb.ConfChangeV2{Changes: changes}
	n.core.propose(a.under)
	n.drive()
}

func (a *changing) join(n *simNode) {
	a.next++
	id := a.next
	node := &simNode{s: a.s, id: id, disk: newSimDisk(), known: a.s.known, epochs: map[int64]meta.Rev{}}
	a.s.nodes[id] = node
	node.start()
	m := state.Member{ID: id, Supports: a.s.known}
	a.propose(n, []*pb.ConfChangeSingle{single(pb.ConfChangeAddLearnerNode, id)}, &state.SetMember{Member: m})
}

func (a *changing) remove(n *simNode, ids ...state.NodeID) {
	var changes []*pb.ConfChangeSingle
	for _, id := range ids {
		changes = append(changes, single(pb.ConfChangeRemoveNode, id))
	}
	a.propose(n, changes, &state.RemoveMembers{IDs: ids})
}

// TestMembershipSimulation changes the members under random faults. No node may
// differ from another, nothing acknowledged is lost, and in the end the members
// that are left are one group.
func TestMembershipSimulation(t *testing.T) {
	done := 0
	for _, seed := range seeds(t, 25) {
		s := newSim(seed, voters(3)...)
		s.keep = 6
		s.tracing = *oneSeed != 0
		a := &changing{s: s, next: 100}
		s.besides = a.tick
		s.chaos(600)
		s.besides = nil
		if len(s.faults) == 0 {
			s.expel()
			s.settle()
		}
		s.report(t)
		done += a.done
	}
	if want := 3 * len(seeds(t, 25)); done < want {
		t.Errorf("%d changes in all, at least %d were expected", done, want)
	}
}

// expel marks the nodes that are no members as gone: those removed while they
// were away learn it from the transport, which is not here.
func (s *sim) expel() {
	clear(s.cut)
	s.loss, s.delay, s.sql.down, s.crashes = 0, 1, false, false
	for _, n := range s.each() {
		if n.core == nil && !n.gone {
			n.start()
		}
	}
	for range 300 {
		s.step()
	}
	var newest *core
	for _, n := range s.each() {
		if n.core != nil && (newest == nil || n.core.st.Index > newest.st.Index) {
			newest = n.core
		}
	}
	for _, n := range s.each() {
		if newest.st.Members[n.id] == nil {
			n.gone, n.core = true, nil
		}
	}
}
