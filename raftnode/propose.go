package raftnode

import (
	"maps"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// Bounds of what is under way.
const (
	proposalsMost = 1      // entries of this member under way: what comes meanwhile shares the next (ADR 0008)
	callsMost     = 16_384 // commands that wait for their entry; more are refused
)

// call is one command on its way. done is closed when result and err are valid.
type call struct {
	cmd    state.Command
	change *pb.ConfChangeV2 // rides along, in an entry of its own
	until  prefixWait       // what must be so, besides, before it is answered
	file   state.FileKey    // where a lock's request is
	name   string
	done   chan struct{}
	placed chan struct{} // not nil: closed when the request waits in its queue
	gone   bool          // nobody waits any more: a lock, or a change of members, is not wanted
	result state.Result
	err    error
}

// prefixWait says that a zone's prefix must reach rev. With epoch not 0 it must
// do so in that epoch: what was committed in an earlier one may be lost.
type prefixWait struct {
	zone  string
	rev   meta.Rev
	epoch int64
}

func newCall(cmd state.Command) *call { return &call{cmd: cmd, done: make(chan struct{})} }

func (c *call) finish(r state.Result, err error) {
	c.result, c.err = r, err
	close(c.done)
}

// finished reports whether the call was answered.
func (c *call) finished() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// proposal is an entry that was proposed and is not applied yet.
type proposal struct {
	seq    uint64
	calls  []*call
	change *pb.ConfChangeV2
	data   []byte
	at     uint64 // tick of the last attempt
}

type proposals struct {
	queue   []*call
	changes []*call // of members: one at a time, in nobody's way
	seq     uint64
	out     map[uint64]*proposal
}

// under returns how many entries are under way that change members, or do not.
func (p *proposals) under(change bool) (n int) {
	for _, one := range p.out {
		if (one.change != nil) == change {
			n++
		}
	}
	return n
}

// propose takes a call in. What gathers until ready becomes one entry.
func (c *core) propose(cl *call) {
	switch {
	case c.failed != nil:
		cl.finish(state.Result{}, c.failed)
	case c.leaves != 0:
		cl.finish(state.Result{}, ErrRemoved)
	case len(c.props.queue) >= callsMost:
		cl.finish(state.Result{Code: state.Full}, nil)
	case cl.change != nil:
		c.props.changes = append(c.props.changes, cl)
	default:
		c.props.queue = append(c.props.queue, cl)
	}
}

// flush makes entries of what has gathered.
func (c *core) flush() {
	p := &c.props
	for len(p.queue) > 0 && p.under(false) < proposalsMost {
		n := take(p.queue)
		calls := p.queue[:n:n]
		p.queue = p.queue[n:]
		if len(p.queue) == 0 {
			p.queue = nil
		}
		c.entry(calls)
	}
	for len(p.changes) > 0 && p.under(true) == 0 {
		one := p.changes[0]
		p.changes = p.changes[1:]
		if !one.gone {
			c.entry([]*call{one})
		}
	}
}

// take returns how many of the calls make one entry.
func take(queue []*call) int {
	size := 0
	for i, cl := range queue {
		size += 64
		if a, ok := cl.cmd.(*state.Announce); ok {
			size += 512 * len(a.Ops)
		}
		if i > 0 && (i == state.MaxCommands || size > state.MaxEntry/4) {
			return i
		}
	}
	return len(queue)
}

// entry proposes the calls as one entry.
func (c *core) entry(calls []*call) {
	e := state.Entry{Version: c.st.Version, Client: c.id, Incarnation: c.incarnation, Seq: c.props.seq + 1, Low: c.low(), Time: c.wall()}
	for _, cl := range calls {
		e.Commands = append(e.Commands, cl.cmd)
	}
	data, err := e.Encode()
	if err != nil {
		for _, cl := range calls {
			cl.finish(state.Result{}, err)
		}
		return
	}
	c.props.seq++
	p := &proposal{seq: c.props.seq, calls: calls, data: data}
	if ch := calls[0].change; ch != nil {
		p.change = &pb.ConfChangeV2{Transition: ch.Transition, Changes: ch.Changes, Context: data}
	}
	c.props.out[p.seq] = p
	c.attempt(p)
}

// low is up to where this member has settled its entries.
func (c *core) low() uint64 {
	low := c.props.seq
	for seq := range c.props.out {
		low = min(low, seq-1)
	}
	return low
}

// attempt proposes p. If it gets lost, retry proposes it again: the state
// counts it once.
func (c *core) attempt(p *proposal) {
	p.at = c.ticks
	if p.change != nil {
		if !c.leavesBy(p.change) {
			_ = c.rn.ProposeConfChange(p.change)
		}
		return
	}
	_ = c.rn.Propose(p.data)
}

// retry proposes again what was not applied for an election time-out, and asks
// again for read indexes.
func (c *core) retry() {
	for _, seq := range slices.Sorted(maps.Keys(c.props.out)) {
		p := c.props.out[seq]
		switch {
		case c.ticks-p.at < uint64(c.t.election):
		case p.change != nil && p.calls[0].gone:
			delete(c.props.out, seq) // should it come yet, it counts for nothing
		default:
			c.attempt(p)
		}
	}
	c.reads.retry(c)
}

// proposeAgain proposes everything again: a new leader may not have it.
func (c *core) proposeAgain() {
	for _, seq := range slices.Sorted(maps.Keys(c.props.out)) {
		c.attempt(c.props.out[seq])
	}
}

// settle answers those who waited for what an entry did.
func (c *core) settle(eff state.Effects) {
	if eff.Client == c.id && eff.Incarnation == c.incarnation {
		if p := c.props.out[eff.Seq]; p != nil {
			delete(c.props.out, eff.Seq)
			for i, cl := range p.calls {
				if eff.Results == nil {
					cl.finish(state.Result{}, ErrRemoved)
					continue
				}
				c.answer(cl, eff.Results[i])
			}
		}
	}
	for _, g := range eff.Granted {
		if cl := c.waiting[g.Request]; cl != nil {
			delete(c.waiting, g.Request)
			cl.finish(g.Result, nil)
		}
	}
	c.news.advanced = append(c.news.advanced, eff.Advanced...)
	c.news.ended = append(c.news.ended, eff.Ended...)
	if c.witness {
		c.news.heads = append(c.news.heads, eff.Heads...)
	}
	for _, a := range eff.Advanced {
		c.prefixMoved(a.Zone)
	}
	c.news.members = c.news.members || eff.Members
}

// answer ends a call, or lets it wait for what is still missing.
func (c *core) answer(cl *call, r state.Result) {
	switch {
	case r.Code == state.Waiting:
		c.place(cl)
	case r.Code == state.OK && cl.until.zone != "":
		c.awaitPrefix(cl)
	default:
		cl.finish(r, nil)
	}
}

// place notes that a request waits in its queue.
func (c *core) place(cl *call) {
	r := requestOf(cl.cmd)
	if cl.gone {
		c.propose(newCall(&state.Cancel{FileKey: cl.file, Name: cl.name, Request: r}))
		return
	}
	c.waiting[r] = cl
	if cl.placed != nil {
		close(cl.placed)
	}
}

// requestOf returns what names a request for a lock.
func requestOf(cmd state.Command) state.RequestID {
	switch cmd := cmd.(type) {
	case *state.Lock:
		return cmd.Request
	case *state.Acquire:
		return cmd.Request
	}
	return state.RequestID{}
}

// awaitPrefix ends a call when the prefix is where it must be.
func (c *core) awaitPrefix(cl *call) {
	z := c.st.Zones[cl.until.zone]
	switch {
	case c.failed != nil:
		cl.finish(state.Result{}, c.failed)
	case z == nil:
		cl.finish(state.Result{Code: state.NotFound}, nil)
	case cl.until.epoch != 0 && z.Epoch != cl.until.epoch:
		cl.finish(state.Result{Code: state.WrongEpoch}, nil)
	case z.Prefix >= cl.until.rev:
		cl.finish(state.Result{}, nil)
	default:
		c.waits[z.Name] = append(c.waits[z.Name], cl)
	}
}

// prefixMoved looks at those who wait for a zone's prefix.
func (c *core) prefixMoved(zone string) {
	calls := c.waits[zone]
	delete(c.waits, zone)
	for _, cl := range calls {
		c.awaitPrefix(cl)
	}
}

// settleRestored answers, after a snapshot, those whose entries it holds.
func (c *core) settleRestored() {
	for _, seq := range slices.Sorted(maps.Keys(c.props.out)) {
		p := c.props.out[seq]
		results, applied := c.st.Outcome(c.id, c.incarnation, seq)
		if !applied {
			continue
		}
		delete(c.props.out, seq)
		for i, cl := range p.calls {
			c.answer(cl, results[i])
		}
	}
	for r, cl := range c.waiting {
		if waits, token := c.st.Pending(cl.file, cl.name, r); !waits {
			delete(c.waiting, r)
			if token == 0 {
				cl.finish(state.Result{Code: state.NotFound}, nil)
			} else {
				cl.finish(state.Result{Token: token}, nil)
			}
		}
	}
	for zone := range c.waits {
		c.prefixMoved(zone)
	}
	c.news.members = true
}

// stop ends this member: everything under way is answered with err.
func (c *core) stop(err error) {
	c.failed = err
	for _, p := range c.props.out {
		finishAll(p.calls, err)
	}
	finishAll(c.props.queue, err)
	finishAll(c.props.changes, err)
	for _, cl := range c.waiting {
		cl.finish(state.Result{}, err)
	}
	for _, calls := range c.waits {
		finishAll(calls, err)
	}
	c.reads.stop(err)
	clear(c.props.out)
	clear(c.waiting)
	clear(c.waits)
	c.props.queue, c.props.changes = nil, nil
}

func finishAll(calls []*call, err error) {
	for _, cl := range calls {
		if !cl.finished() {
			cl.finish(state.Result{}, err)
		}
	}
}

// confChange decodes an entry that changes the configuration.
func confChange(e *pb.Entry) (*pb.ConfChangeV2, error) {
	if e.GetType() == pb.EntryConfChange {
		cc := new(pb.ConfChange)
		if err := proto.Unmarshal(e.GetData(), cc); err != nil {
			return nil, err
		}
		return cc.AsV2(), nil
	}
	cc := new(pb.ConfChangeV2)
	return cc, proto.Unmarshal(e.GetData(), cc)
}
