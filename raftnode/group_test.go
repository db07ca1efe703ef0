package raftnode

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// seeds is how many seeds the simulation runs; NEXUSFS_SEEDS makes it more, and
// -seed plays one again.
var oneSeed = flag.Uint64("seed", 0, "the simulation's only seed")

func seeds(t *testing.T, usual int) []uint64 {
	t.Helper()
	if *oneSeed != 0 {
		return []uint64{*oneSeed}
	}
	if s := os.Getenv("NEXUSFS_SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		usual = n
	}
	if testing.Short() {
		usual = max(1, usual/10)
	}
	var out []uint64
	for i := range usual {
		out = append(out, uint64(i)+1)
	}
	return out
}

func voters(n int) []state.Member {
	var out []state.Member
	for i := range n {
		out = append(out, state.Member{ID: state.NodeID(i + 1), Role: state.Voter})
	}
	return out
}

func twoAndWitness() []state.Member {
	return append(voters(2), state.Member{ID: 3, Role: state.Witness, Witness: true})
}

// report fails the test with what a seed found, and how to see it again.
func (s *sim) report(t *testing.T) {
	t.Helper()
	if len(s.faults) == 0 {
		return
	}
	for _, line := range s.trace {
		t.Log(line)
	}
	for _, f := range s.faults[:min(5, len(s.faults))] {
		t.Error(f)
	}
	t.Fatalf("seed %d: run again with -run '%s' -seed %d", s.seed, t.Name(), s.seed)
}

// settle heals everything and waits until the group is one again.
func (s *sim) settle() {
	clear(s.cut)
	s.loss, s.delay, s.sql.down, s.crashes = 0, 1, false, false
	for _, n := range s.each() {
		if n.core == nil && !n.gone {
			n.start()
		}
	}
	for i := range 600 {
		if i == 300 { // shows what was committed last and never announced
			for _, n := range s.each() {
				if n.core != nil && !n.witness {
					s.commit(n, true)
					break
				}
			}
		}
		s.step()
	}
	if why := s.apart(); why != "" {
		s.fault("600 ticks after everything healed: %s", why)
	}
}

// apart says in which way the group is not one.
func (s *sim) apart() string {
	var lead state.NodeID
	for _, n := range s.each() {
		if n.gone {
			continue
		}
		if n.core == nil {
			return fmt.Sprintf("node %v is down", n.id)
		}
		if n.core.leading {
			lead = n.id
			if n.witness {
				return "the witness leads"
			}
		}
		z := n.core.st.Zones[simZone]
		if z == nil || z.Prefix != s.sql.rev || z.Epoch != s.sql.epoch {
			return fmt.Sprintf("node %v has %+v, SQL is at %d in epoch %d", n.id, z, s.sql.rev, s.sql.epoch)
		}
		if !n.core.heardQuorum() {
			return fmt.Sprintf("node %v hears no quorum", n.id)
		}
	}
	if lead == 0 {
		return "nobody leads"
	}
	if len(s.calls) > 0 {
		return fmt.Sprintf("revision %d was never answered", s.calls[0].rev)
	}
	if len(s.reads) > 0 {
		c := s.reads[0].core
		return fmt.Sprintf("a read index of node %v was never answered: lead %v, leading %v, %+v, truth %+v, applied %d", c.id, c.lead, c.leading, c.reads, c.truth, c.st.Index)
	}
	return ""
}

// chaos runs a random history of announcements, reads and faults.
func (s *sim) chaos(ticks int) { s.chaosOf(ticks, func(int) bool { return true }) }

// chaosOf is chaos with the events that which lets happen.
func (s *sim) chaosOf(ticks int, which func(event int) bool) {
	s.crashes = true
	nodes := s.each()
	for range ticks {
		n := nodes[s.rand.IntN(len(nodes))]
		switch r := s.rand.IntN(100); {
		case !which(r):
		case r < 25 && !n.witness:
			s.commit(n, s.rand.IntN(8) > 0)
		case r < 45:
			s.ask(n)
		case r < 47 && n.core != nil:
			// The disk of a node that is alone is not synced: its machine's stop
			// is another test's.
			n.stop(len(nodes) > 1 && s.rand.IntN(2) == 0)
		case r < 52 && n.core == nil && !n.gone:
			n.start()
		case r < 54:
			s.loss = []float64{0, 0, 0.02, 0.2}[s.rand.IntN(4)]
			s.delay = 1 + s.rand.IntN(6)
		case r < 56:
			s.cutLinks(nodes)
		case r < 58:
			clear(s.cut)
		case r < 59:
			s.sql.down = !s.sql.down
		}
		s.step()
		if len(s.faults) > 0 {
			return
		}
	}
}

// cutLinks cuts a node off, both ways or one way.
func (s *sim) cutLinks(nodes []*simNode) {
	off, way := nodes[s.rand.IntN(len(nodes))], s.rand.IntN(3)
	for _, o := range nodes {
		if way != 1 {
			s.cut[[2]state.NodeID{off.id, o.id}] = true
		}
		if way != 2 {
			s.cut[[2]state.NodeID{o.id, off.id}] = true
		}
	}
}

// TestSimulation runs groups of every shape through random faults: no two nodes
// ever differ at one index, what was acknowledged is seen by every later read
// (P9), the witness answers nobody (P17), and in the end all agree with SQL.
func TestSimulation(t *testing.T) {
	for _, shape := range []struct {
		name    string
		members []state.Member
		keep    int
	}{
		{"1", voters(1), 0},
		{"3", voters(3), 0},
		{"3 compacting", voters(3), 4},
		{"5", voters(5), 8},
		{"2+witness", twoAndWitness(), 0},
		{"2+witness compacting", twoAndWitness(), 3},
	} {
		t.Run(shape.name, func(t *testing.T) {
			for _, seed := range seeds(t, 25) {
				s := newSim(seed, shape.members...)
				s.keep = shape.keep
				s.tracing = *oneSeed != 0
				s.chaos(600)
				if len(s.faults) == 0 {
					s.settle()
				}
				s.report(t)
			}
		})
	}
}

// TestP15DatabaseLosesItsTail: the database comes back without its newest
// operations; a new epoch begins above everything announced, and all nodes drop
// what they had.
func TestP15DatabaseLosesItsTail(t *testing.T) {
	for _, seed := range seeds(t, 10) {
		s := newSim(seed, voters(3)...)
		s.chaos(200)
		s.settle()
		announced := s.sql.rev
		lost := meta.Rev(1 + s.rand.IntN(5))
		s.sql.rev -= lost
		for _, n := range s.each() { // a new leader looks
			if n.core.leading {
				n.stop(false)
			}
		}
		s.settle()
		if s.sql.epoch != 2 || s.sql.rev <= announced {
			t.Errorf("seed %d: epoch %d at revision %d after losing %d below %d", seed, s.sql.epoch, s.sql.rev, lost, announced)
		}
		s.chaos(100)
		s.settle()
		s.report(t)
	}
}
