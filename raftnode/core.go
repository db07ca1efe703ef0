package raftnode

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	pb "go.etcd.io/raft/v3/raftpb"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// timing is a member's clock work. Ticks are what core.tick counts.
type timing struct {
	tick      time.Duration // length of one
	election  int           // ticks without a leader until a data node campaigns: once to twice as many
	heartbeat int           // ticks between a leader's heartbeats
	gap       int           // ticks of patience with a gap
}

// defaultTiming: a leader that dies is replaced in 0.4 to 0.8 s.
var defaultTiming = timing{tick: 20 * time.Millisecond, election: 20, heartbeat: 3, gap: 1}

// witnessPatience is how many times longer than a data node a witness waits
// before it campaigns: until then every data node that can win has won (P17).
const witnessPatience = 3

// core is one member: Raft, the replicated state, and what is under way. It is
// deterministic: no clock, no goroutine, no I/O; whoever calls it holds a lock
// over it, hands it time, messages and the outcome of writes, and carries out
// what it asks for (ready, todo). The simulation runs many of them.
type core struct {
	id          state.NodeID
	incarnation uint64 // of this process; entries of earlier ones count no more
	witness     bool
	known       uint16
	t           timing
	rand        *rand.Rand
	wall        func() int64

	rn     *raft.RawNode
	log    *raftLog
	st     *state.State
	voters quorum.JointConfig
	grown  bool // a member is about to be added: what counts must be on disk first (P16)
	alone  bool // the only member: nothing needs to be on disk before it counts

	now     time.Duration // monotonic, of the last tick
	steady  time.Duration // now, without the times in which this process did not run
	ticks   uint64
	elapsed int // ticks without a sign of a leader or of one to come
	patient int // at which this member campaigns
	lead    state.NodeID
	leading bool
	heard   map[state.NodeID]uint64 // tick of each member's last message

	savedState uint64 // index of the applied state on disk

	truth      truthState
	props      proposals
	reads      reads
	waits      map[string][]*call // for a zone's prefix
	waiting    map[state.RequestID]*call
	gaps       map[string]gapSeen
	leases     map[any]leaseSeen
	activating uint16 // the version whose activation this leader proposed
	news       news
	leaves     uint64 // tick at which this member, removed, stops; 0: it was not removed
	failed     error  // why this member stopped
}

// truthState is where a leader stands with SQL: it answers no read index in a
// term before it announced SQL's highest revisions (P16).
type truthState struct {
	term   uint64 // in which this leader must look; 0: it leads not, or not surely yet
	agreed uint64 // the term in which it did
}

// news is what happened, for whoever drives the core.
type news struct {
	advanced []state.Advanced
	heads    []state.Head
	members  bool // the members changed
	role     bool // leadership changed
	ended    []state.SessionKey
}

type coreConfig struct {
	id          state.NodeID
	incarnation uint64
	witness     bool
	known       uint16
	timing      timing
	rand        *rand.Rand
	wall        func() int64 // nanoseconds since 1970
	logger      raft.Logger
}

// newCore makes a member from what it had stored.
func newCore(cfg coreConfig, im *image) (*core, error) {
	st, err := state.Restore(cfg.known, im.rows)
	if err != nil {
		return nil, err
	}
	c := &core{
		id: cfg.id, incarnation: cfg.incarnation, witness: cfg.witness, known: cfg.known, t: cfg.timing, rand: cfg.rand, wall: cfg.wall,
		st: st, heard: map[state.NodeID]uint64{}, waits: map[string][]*call{}, waiting: map[state.RequestID]*call{},
		gaps: map[string]gapSeen{}, leases: map[any]leaseSeen{},
	}
	c.props.out = map[uint64]*proposal{}
	c.log = &raftLog{hard: im.hard, conf: im.conf, before: im.before, snap: c.snapshot, keep: logKeep, most: logMost}
	c.log.append(im.entries)
	c.log.saved = c.log.last()
	c.savedState = st.Index
	c.setConf(im.conf)
	c.rn, err = raft.NewRawNode(&raft.Config{
		ID: uint64(cfg.id), ElectionTick: cfg.timing.election, HeartbeatTick: cfg.timing.heartbeat,
		Storage: c.log, Applied: st.Index, MaxSizePerMsg: messageMax, MaxInflightMsgs: 256, MaxInflightBytes: 8 << 20,
		MaxUncommittedEntriesSize: 32 << 20, MaxCommittedSizePerReady: 4 << 20,
		CheckQuorum: true, PreVote: true, StepDownOnRemoval: true, Logger: cfg.logger,
	})
	if err != nil {
		return nil, err
	}
	c.wait()
	c.checkAlone()
	if c.alone {
		return c, c.rn.Campaign()
	}
	return c, nil
}

// wait begins to wait for a leader anew, for a random time.
func (c *core) wait() {
	c.elapsed = 0
	c.patient = c.t.election + c.rand.IntN(c.t.election)
	if c.witness {
		c.patient += (witnessPatience - 1) * c.t.election
	}
}

// setConf remembers who votes.
func (c *core) setConf(cs *pb.ConfState) {
	c.log.conf = cs
	c.voters = quorum.JointConfig{quorum.MajorityConfig{}, quorum.MajorityConfig{}}
	for _, id := range cs.GetVoters() {
		c.voters[0][id] = struct{}{}
	}
	for _, id := range cs.GetVotersOutgoing() {
		c.voters[1][id] = struct{}{}
	}
}

// checkAlone finds out whether this member is all of the group.
func (c *core) checkAlone() {
	cs := c.log.conf
	c.alone = !c.grown && len(cs.GetVoters()) == 1 && cs.GetVoters()[0] == uint64(c.id) &&
		len(cs.GetLearners())+len(cs.GetVotersOutgoing())+len(cs.GetLearnersNext()) == 0
}

// pauseMost is how much of the time between two ticks counts against others'
// leases: if this process was stopped, or the machine slept, nobody could renew.
const pauseMost = time.Second

// tick lets time pass.
func (c *core) tick(now time.Duration) {
	c.steady += min(now-c.now, pauseMost)
	c.now = now
	c.ticks++
	if c.leaves != 0 && c.ticks >= c.leaves && c.failed == nil {
		c.stop(ErrRemoved)
	}
	if c.failed != nil {
		return
	}
	if c.leading {
		c.rn.Tick()
		c.lease()
		c.handOver()
		c.activate()
	} else {
		// Raft's own timer draws from a generator that no seed controls, so its
		// clock runs without it, and this one decides when to campaign.
		c.rn.TickQuiesced()
		if c.elapsed++; c.elapsed >= c.patient {
			c.wait()
			if _, votes := c.voters.IDs()[uint64(c.id)]; votes {
				_ = c.rn.Campaign() // what hinders it is over by the next time
			}
		}
	}
	c.retry()
	c.watchGaps()
}

// step takes a message in. Messages of former members are dropped.
func (c *core) step(m *pb.Message) {
	from := state.NodeID(m.GetFrom())
	if c.former(from) {
		return
	}
	if m.GetType() == pb.MsgReadIndex && !c.mayAnswerReads() {
		return // whoever asks asks again
	}
	c.heard[from] = c.ticks
	if c.leavesBy(forwardedChange(m)) {
		return
	}
	_ = c.rn.Step(m) // errors say that it came from nobody, or not in time
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		if st := c.rn.BasicStatus(); st.Lead == m.GetFrom() {
			c.elapsed = 0
		}
	}
}

// former reports whether a node has left the group for good. While a joint
// change that removes it is under way it still counts.
func (c *core) former(id state.NodeID) bool { return c.st.Former(id) && !c.configured(id) }

// configured reports whether Raft's configuration has a node.
func (c *core) configured(id state.NodeID) bool {
	cs := c.log.conf
	for _, ids := range [][]uint64{cs.GetVoters(), cs.GetVotersOutgoing(), cs.GetLearners(), cs.GetLearnersNext()} {
		if slices.Contains(ids, uint64(id)) {
			return true
		}
	}
	return false
}

// linger is for how many election time-outs a removed member goes on: the others
// may lack the end of the change that removed it.
const linger = 5

// checkRemoved begins this member's end once it is a former one.
func (c *core) checkRemoved() {
	if c.leaves == 0 && c.former(c.id) {
		c.leaves = c.ticks + uint64(linger*c.t.election)
		c.news.members = true
	}
}

// mayAnswerReads reports whether a leader may confirm read indexes.
func (c *core) mayAnswerReads() bool {
	return !c.leading || !c.witness && c.truth.term != 0 && c.truth.agreed == c.truth.term
}

// heardQuorum reports whether a quorum was heard within the election time-out
// (P6): by the leader itself, or by the one that this member hears.
func (c *core) heardQuorum() bool {
	recent := func(id state.NodeID) bool {
		at, ok := c.heard[id]
		return ok && c.ticks-at <= uint64(c.t.election)
	}
	switch {
	case c.leaves != 0:
		return false
	case c.alone:
		return c.leading
	case c.leading:
		votes := map[uint64]bool{uint64(c.id): true}
		for id := range c.voters.IDs() {
			if state.NodeID(id) != c.id {
				votes[id] = recent(state.NodeID(id))
			}
		}
		return c.voters.VoteResult(votes) == quorum.VoteWon
	}
	return c.lead != 0 && recent(c.lead)
}

// ready returns the next work, nil when there is none. Its caller carries it
// out in this order: the messages for others, if this member leads; the write;
// the messages, if it does not; then done. step and the proposing methods may be
// called in between, ready not.
func (c *core) ready() *work {
	if c.failed != nil {
		return nil
	}
	c.flush()
	if !c.rn.HasReady() {
		return nil
	}
	led := c.leading
	w := &work{rd: c.rn.Ready()}
	rd := &w.rd
	if rd.SoftState != nil {
		c.softState(rd.SoftState)
	}
	w.msgs = rd.Messages
	for _, m := range w.msgs {
		if m.GetType() == pb.MsgVoteResp && !m.GetReject() {
			c.wait()
		}
	}
	reset := !raft.IsEmptySnap(rd.Snapshot)
	if reset {
		if err := c.restore(rd.Snapshot); err != nil {
			c.stop(err)
			return nil
		}
	}
	c.log.append(rd.Entries)
	voted := false
	if !raft.IsEmptyHardState(rd.HardState) {
		voted = rd.HardState.GetTerm() != c.log.hard.GetTerm() || rd.HardState.GetVote() != c.log.hard.GetVote()
		c.log.hard = rd.HardState
	}
	// A change of members that is committed must be known here for good before
	// others are told: they may then leave, and without their votes this member
	// could not find out again.
	changed := slices.ContainsFunc(rd.CommittedEntries, func(e *pb.Entry) bool { return e.GetType() != pb.EntryNormal })
	w.first = led && c.leading && !voted && !changed
	if reset || voted || changed || len(rd.Entries) > 0 && !c.alone {
		w.write = c.save(reset, voted || changed || !c.alone)
		if voted || changed {
			w.write.hard = c.log.hard
		}
	}
	return w
}

// work is what ready asks for.
type work struct {
	rd    raft.Ready
	msgs  []*pb.Message
	first bool   // the messages may leave before the write is done
	write *write // nil: nothing has to be on disk
}

// stateEvery is how many entries are applied before the applied state is
// written along with the log; until then a restart applies them again. Most
// writes so touch one bucket, whose pages are what a flush costs.
const stateEvery = 256

// save collects what is to be written: the log, and the state now and then.
func (c *core) save(reset, sync bool) *write {
	w := &write{reset: reset, sync: sync, heads: c.news.heads}
	c.news.heads = nil
	if reset || !sync || c.st.Index >= c.savedState+stateEvery {
		// Together, as of one moment: the state, the configuration in it, and a
		// commit index that is not below it.
		c.savedState = c.st.Index
		w.hard, w.conf, w.rows = c.log.hard, c.log.conf, c.st.Changed()
		if reset {
			w.rows = c.st.All()
		}
		if to := c.log.compactTo(c.st.Index); to != 0 {
			c.log.compact(to)
		}
		w.before = c.log.before
	}
	w.entries = c.log.unsaved()
	c.log.saved = c.log.last()
	return w
}

// idle returns a write of what is not needed on disk yet but should not be lost
// either, nil if there is nothing.
func (c *core) idle() *write {
	if c.failed != nil || c.log.saved == c.log.last() && !c.st.HasChanged() && len(c.news.heads) == 0 {
		return nil
	}
	return c.save(false, false)
}

// done goes on when the work was carried out.
func (c *core) done(w *work) {
	for _, e := range w.rd.CommittedEntries {
		if err := c.apply(e); err != nil {
			c.stop(err)
		}
		if c.failed != nil {
			return
		}
	}
	c.rn.Advance(w.rd)
	c.readStates(w.rd.ReadStates)
	c.readsApplied()
}

// softState notes who leads.
func (c *core) softState(s *raft.SoftState) {
	leading := s.RaftState == raft.StateLeader
	lead := state.NodeID(s.Lead)
	if leading != c.leading {
		c.truth = truthState{}
		clear(c.leases)
		c.activating = 0
		c.news.role = true
		if !leading {
			c.wait()
		}
	}
	found := lead != 0 && lead != c.lead
	c.leading, c.lead = leading, lead
	if found {
		c.news.role = true
		c.heard[lead] = c.ticks
		c.proposeAgain()
		c.reads.again()
	}
}

// apply applies a committed entry.
func (c *core) apply(e *pb.Entry) error {
	data := e.GetData()
	var cc *pb.ConfChangeV2
	if e.GetType() != pb.EntryNormal {
		var err error
		if cc, err = confChange(e); err != nil {
			return err
		}
		data = cc.GetContext()
	}
	eff, err := c.st.Apply(e.GetIndex(), data)
	if err != nil {
		return fmt.Errorf("entry %d of the log: %w", e.GetIndex(), err)
	}
	// Raft's configuration follows the state: a change that the state refuses, or
	// has made before, is none. The end of a joint change has no command.
	if cc != nil && (len(data) == 0 || eff.Accepted()) {
		c.setConf(c.rn.ApplyConfChange(cc))
		c.news.members = true
	}
	if c.leading && c.truth.term == 0 && e.GetTerm() == c.log.hard.GetTerm() {
		c.truth.term = e.GetTerm() // everything of earlier terms is applied
	}
	c.settle(eff)
	c.checkAlone()
	c.checkRemoved()
	if eff.Members && len(c.st.Members) == 1 {
		c.grown = false
		c.checkAlone()
	}
	return nil
}

// restore takes a snapshot's state in place of this member's own.
func (c *core) restore(snap *pb.Snapshot) error {
	st, err := state.FromSnapshot(c.known, snap.GetData())
	if err != nil {
		return err
	}
	md := snap.GetMetadata()
	if st.Index != md.GetIndex() {
		return fmt.Errorf("snapshot at %d holds the state of %d", md.GetIndex(), st.Index)
	}
	old := c.st
	c.st = st
	c.log.reset(entryID{md.GetIndex(), md.GetTerm()}, md.GetConfState())
	c.setConf(md.GetConfState())
	c.checkAlone()
	for name, z := range st.Zones {
		var from meta.Rev
		if o := old.Zones[name]; o != nil {
			from = o.Prefix
		}
		if from != z.Prefix {
			c.news.advanced = append(c.news.advanced, state.Advanced{Zone: name, From: from, To: z.Prefix, Reset: true})
		}
	}
	for k := range old.Sessions {
		if st.Sessions[k] == nil {
			c.news.ended = append(c.news.ended, k)
		}
	}
	c.settleRestored()
	c.checkRemoved()
	return nil
}

// snapshot is the applied state as it is now, for a member that is too late.
func (c *core) snapshot() (*pb.Snapshot, error) {
	term, err := c.log.Term(c.st.Index)
	if err != nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &pb.Snapshot{
		Data:     c.st.Snapshot(),
		Metadata: &pb.SnapshotMetadata{Index: new(c.st.Index), Term: new(term), ConfState: c.log.conf},
	}, nil
}
