package raftnode

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// sim is a group in one goroutine: cores on disks in memory, a network that
// loses, delays, reorders and cuts, one SQL database, and a clock that moves
// when it is told to. Everything random comes from one seed.
type sim struct {
	seed     uint64
	rand     *rand.Rand
	now      uint64 // ticks
	nodes    map[state.NodeID]*simNode
	wire     []parcel
	cut      map[[2]state.NodeID]bool // from, to
	loss     float64
	crashes  bool // machines stop in the middle of their work, too
	delay    int  // ticks, at most
	sql      simSQL
	hashes   map[uint64][32]byte // of the state after each index
	acked    meta.Rev            // the highest that was acknowledged
	calls    []*simCall
	reads    []*simRead
	keep     int // entries that a node keeps before it compacts; 0: as usual
	faults   []string
	known    uint16
	trace    []string
	besides  func() // besides, at each tick
	moments  int64
	sessions int64
	files    bool // the locks played with are on a file
	requests uint64
	tracing  bool
}

type simNode struct {
	s       *sim
	id      state.NodeID
	disk    *simDisk
	core    *core // nil: down
	witness bool
	known   uint16
	gone    bool // removed, or lost for good
	starts  uint64
	tasks   []*simTask
	epochs  map[int64]meta.Rev // highest prefix seen in each epoch
}

type parcel struct {
	at   uint64
	data []byte
}

// simCall is an announcement that somebody waits for.
type simCall struct {
	node *simNode
	core *core
	rev  meta.Rev
	call *call
}

// simRead is a read index: when it is answered the prefix must have reached
// what was acknowledged before it was asked.
type simRead struct {
	node *simNode
	core *core
	want meta.Rev
	read *read
}

const simZone = "z"

// simSQL is one zone's truth.
type simSQL struct {
	rev    meta.Rev
	epoch  int64
	down   bool
	fenced map[int64]meta.Rev
	lost   map[meta.Rev]bool
}

var simTiming = timing{tick: 20 * time.Millisecond, election: 10, heartbeat: 2, gap: 2}

func newSim(seed uint64, members ...state.Member) *sim {
	s := &sim{
		seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), nodes: map[state.NodeID]*simNode{},
		cut: map[[2]state.NodeID]bool{}, hashes: map[uint64][32]byte{}, delay: 1, known: state.Version,
		sql: simSQL{rev: 1, epoch: 1, fenced: map[int64]meta.Rev{}, lost: map[meta.Rev]bool{}},
	}
	st := state.New(s.known)
	var voters []uint64
	for i, m := range members {
		m.Supports = s.known
		if i == 0 {
			st = state.Found(s.known, m, 1000)
		} else {
			st.Members[m.ID] = &m
		}
		voters = append(voters, uint64(m.ID))
		s.nodes[m.ID] = &simNode{s: s, id: m.ID, disk: newSimDisk(), witness: m.Role == state.Witness, known: s.known, epochs: map[int64]meta.Rev{}}
	}
	for _, n := range s.each() {
		one := uint64(1)
		_ = n.disk.save(&write{
			hard: &pb.HardState{Term: &one, Vote: new(uint64(0)), Commit: &one}, conf: &pb.ConfState{Voters: voters},
			rows: st.All(), before: entryID{1, 1}, reset: true, sync: true,
		})
		n.start()
	}
	return s
}

func (s *sim) each() []*simNode {
	var out []*simNode
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		out = append(out, s.nodes[id])
	}
	return out
}

func (s *sim) logf(format string, v ...any) {
	if s.tracing {
		s.trace = append(s.trace, fmt.Sprintf("%5d ", s.now)+fmt.Sprintf(format, v...))
	}
}

func (s *sim) fault(format string, v ...any) {
	s.faults = append(s.faults, fmt.Sprintf("tick %d: ", s.now)+fmt.Sprintf(format, v...))
}

// start begins a node's process from its disk.
func (n *simNode) start() {
	n.starts++
	im, err := n.disk.load()
	if err != nil {
		n.s.fault("node %v: %v", n.id, err)
		return
	}
	n.core, err = newCore(coreConfig{
		id: n.id, incarnation: n.starts, witness: n.witness, known: n.known, timing: simTiming,
		rand: rand.New(rand.NewPCG(n.s.rand.Uint64(), n.starts)), wall: func() int64 { return int64(n.s.now) * int64(simTiming.tick) },
		logger: raftLogger{slog.New(slog.DiscardHandler)},
	}, im)
	if err != nil {
		n.s.fault("node %v: %v", n.id, err)
	}
	if n.s.keep > 0 {
		n.core.log.keep, n.core.log.most = uint64(n.s.keep), uint64(2*n.s.keep)
	}
	n.tasks = nil
}

// stop kills a node's process; with power its machine stops, too.
func (n *simNode) stop(power bool) {
	if n.core == nil {
		return
	}
	n.s.logf("%v stops (power %v)", n.id, power)
	n.core = nil
	if len(n.s.nodes) == 1 {
		clear(n.s.hashes) // what a node that is alone did not write yet nobody else knows
	}
	if power {
		n.disk.powerLoss(n.s.rand.IntN(3))
	}
}

// drive carries out a node's work.
func (n *simNode) drive() {
	c := n.core
	for w := c.ready(); w != nil; w = c.ready() {
		if w.first {
			n.send(w.msgs)
		}
		if n.dies(w) {
			return
		}
		if w.write != nil {
			_ = n.disk.save(w.write)
		}
		if n.dies(w) {
			return
		}
		if !w.first {
			n.send(w.msgs)
		}
		for _, e := range w.rd.CommittedEntries {
			n.s.logf("%v applies %d (term %d, %d bytes)", n.id, e.GetIndex(), e.GetTerm(), len(e.GetData()))
		}
		c.done(w)
		n.check()
	}
	if n.s.rand.IntN(4) == 0 {
		if w := c.idle(); w != nil {
			_ = n.disk.save(w)
		}
	}
}

// dies lets the machine of a node stop now and then in the middle of its work.
func (n *simNode) dies(w *work) bool {
	if w.write == nil || !n.s.crashes || len(n.s.nodes) == 1 || n.s.rand.IntN(300) > 0 {
		return false
	}
	n.stop(true)
	return true
}

// check compares the node's state with that of the others at the same index,
// and its prefix with itself.
func (n *simNode) check() {
	c := n.core
	if c.failed != nil {
		if c.st.Former(n.id) {
			n.gone, n.core = true, nil
		} else {
			n.s.fault("node %v stopped: %v", n.id, c.failed)
		}
		return
	}
	h := sha256.Sum256(c.st.Snapshot())
	if other, ok := n.s.hashes[c.st.Index]; ok && other != h {
		n.s.fault("node %v has another state at index %d", n.id, c.st.Index)
	}
	n.s.hashes[c.st.Index] = h
	if z := c.st.Zones[simZone]; z != nil {
		if z.Prefix < n.epochs[z.Epoch] && n.starts == 1 {
			n.s.fault("node %v: the prefix of epoch %d went from %d to %d", n.id, z.Epoch, n.epochs[z.Epoch], z.Prefix)
		}
		n.epochs[z.Epoch] = z.Prefix
	}
	if n.witness && c.reads.ever {
		n.s.fault("the witness %v was answered a read index", n.id)
	}
}

func (n *simNode) send(msgs []*pb.Message) {
	for _, m := range msgs {
		s := n.s
		link := [2]state.NodeID{n.id, state.NodeID(m.GetTo())}
		to := s.nodes[link[1]]
		if to == nil || s.cut[link] || s.rand.Float64() < s.loss {
			if m.GetType() == pb.MsgSnap {
				n.core.rn.ReportSnapshot(m.GetTo(), raft.SnapshotFailure)
			}
			continue
		}
		b, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		s.wire = append(s.wire, parcel{s.now + 1 + uint64(s.rand.IntN(s.delay+1)), b})
		if s.rand.Float64() < s.loss/4 { // twice
			s.wire = append(s.wire, parcel{s.now + 1 + uint64(s.rand.IntN(10)), b})
		}
	}
}

// step lets one tick pass.
func (s *sim) step() {
	s.now++
	var due []parcel
	s.wire = slices.DeleteFunc(s.wire, func(p parcel) bool {
		if p.at <= s.now {
			due = append(due, p)
			return true
		}
		return false
	})
	if s.delay > 1 {
		s.rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	}
	for _, p := range due {
		m := new(pb.Message)
		if err := proto.Unmarshal(p.data, m); err != nil {
			panic(err)
		}
		n, status := s.nodes[state.NodeID(m.GetTo())], raft.SnapshotFailure
		if n.core != nil && !s.cut[[2]state.NodeID{state.NodeID(m.GetFrom()), n.id}] {
			n.core.step(m)
			n.drive()
			status = raft.SnapshotFinish
		}
		if from := s.nodes[state.NodeID(m.GetFrom())]; m.GetType() == pb.MsgSnap && from.core != nil {
			from.core.rn.ReportSnapshot(uint64(n.id), status)
		}
	}
	for _, n := range s.each() {
		if n.core == nil {
			continue
		}
		n.core.tick(time.Duration(s.now) * simTiming.tick)
		n.drive()
		if n.core != nil {
			n.doTasks()
		}
	}
	if s.besides != nil {
		s.besides()
	}
	s.settleCalls()
}

// settleCalls looks at what was answered.
func (s *sim) settleCalls() {
	s.calls = slices.DeleteFunc(s.calls, func(c *simCall) bool {
		if !c.call.finished() {
			return c.node.core != c.core // with its process
		}
		if c.call.err == nil && c.call.result.Code == state.OK {
			if s.sql.lost[c.rev] {
				s.fault("revision %d was acknowledged after it was lost", c.rev)
			}
			s.acked = max(s.acked, c.rev)
			s.logf("%v acknowledged %d", c.node.id, c.rev)
		}
		return true
	})
	s.reads = slices.DeleteFunc(s.reads, func(r *simRead) bool {
		select {
		case <-r.read.done:
		default:
			return r.node.core != r.core
		}
		if r.read.err == nil && r.node.core == r.core {
			z := r.core.st.Zones[simZone]
			if z == nil || z.Prefix < r.want {
				s.fault("P9: node %v answered a read at prefix %v, %d was acknowledged before", r.node.id, z, r.want)
			}
		}
		return true
	})
}

// commit makes one transaction of SQL and announces it from n, unless it dies
// before.
func (s *sim) commit(n *simNode, announce bool) {
	if s.sql.down || n.core == nil {
		return
	}
	count := 1 + s.rand.IntN(3)
	var ops []meta.Committed
	for range count {
		s.sql.rev++
		ops = append(ops, simOp(s.sql.rev))
	}
	if !announce {
		s.logf("%v committed %d and does not announce it", n.id, s.sql.rev)
		return
	}
	n.announce(ops, 0)
}

func simOp(rev meta.Rev) meta.Committed {
	return meta.Committed{Rev: rev, Change: &meta.Change{Record: meta.Record{Kind: meta.OpMkdir, Ino: meta.Ino(rev), Parent: 1, Name: fmt.Sprint(rev)}}}
}

func (n *simNode) announce(ops []meta.Committed, node state.NodeID) *call {
	first, last := ops[0].Rev, ops[len(ops)-1].Rev
	hash := sha256.Sum256(fmt.Append(nil, last))
	cl := newCall(&state.Announce{Zone: simZone, Epoch: n.s.sql.epoch, Span: state.Span{First: first, Last: last, Ops: ops, Node: node, Hash: hash, Durable: last}})
	cl.until = prefixWait{simZone, last, n.s.sql.epoch}
	if node == 0 {
		n.s.calls = append(n.s.calls, &simCall{n, n.core, last, cl})
	}
	n.core.propose(cl)
	n.drive()
	return cl
}

// ask begins a read index.
func (s *sim) ask(n *simNode) {
	if n.core == nil || n.witness {
		return
	}
	r := newRead()
	s.reads = append(s.reads, &simRead{n, n.core, s.acked, r})
	n.core.read(r)
	n.drive()
}
