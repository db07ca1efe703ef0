package raftnode

import (
	"encoding/binary"
	"time"

	"go.etcd.io/raft/v3"
)

// read is one caller that waits until this member has applied everything that
// was committed before it asked. done is closed when err is valid.
type read struct {
	done chan struct{}
	err  error
}

func newRead() *read { return &read{done: make(chan struct{})} }

func (r *read) finish(err error) {
	r.err = err
	close(r.done)
}

// reads shares read indexes: while one is under way, whoever comes waits for
// the next.
type reads struct {
	next      []*read
	now       []*read
	number    uint64        // of the read index under way; 0: none
	given     uint64        // the newest number
	asked     uint64        // tick at which it was asked last
	since     time.Duration // when it was asked first
	applying  []applying    // confirmed by the quorum, not applied here yet
	confirmed time.Duration // when the newest that is applied was asked for
	ever      bool
}

// applying waits for an index to be applied.
type applying struct {
	reads []*read
	index uint64
	since time.Duration
}

// read takes a reader in.
func (c *core) read(r *read) {
	switch {
	case c.failed != nil:
		r.finish(c.failed)
		return
	case c.leaves != 0:
		r.finish(ErrRemoved)
		return
	}
	c.reads.next = append(c.reads.next, r)
	c.reads.ask(c)
}

// ask begins a read index if somebody waits and none is under way.
func (r *reads) ask(c *core) {
	if r.number != 0 || len(r.next) == 0 {
		return
	}
	r.now, r.next = r.next, nil
	r.since = c.now
	r.given++
	r.number = r.given
	r.attempt(c)
}

// attempt asks the leader. The number stays: an answer to any attempt counts,
// since all of its readers waited before the first; so retrying faster than the
// network answers does no harm.
func (r *reads) attempt(c *core) {
	r.asked = c.ticks
	if c.lead == 0 || c.leading && !c.mayAnswerReads() {
		return // retry comes when there is a leader that answers
	}
	c.rn.ReadIndex(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.incarnation), r.number))
}

// retry asks again: requests and answers may be lost.
func (r *reads) retry(c *core) {
	if r.number != 0 && c.ticks-r.asked >= uint64(c.t.heartbeat) {
		r.attempt(c)
	}
}

// again makes the next tick ask again.
func (r *reads) again() { r.asked = 0 }

// readStates takes the quorum's confirmations.
func (c *core) readStates(states []raft.ReadState) {
	r := &c.reads
	for _, s := range states {
		if len(s.RequestCtx) != 16 || binary.BigEndian.Uint64(s.RequestCtx) != c.incarnation ||
			r.number == 0 || binary.BigEndian.Uint64(s.RequestCtx[8:]) != r.number {
			continue // answered already, or of a process before
		}
		r.applying = append(r.applying, applying{r.now, s.Index, r.since})
		r.now, r.number = nil, 0
		r.ask(c)
	}
}

// readsApplied answers readers whose index is applied.
func (c *core) readsApplied() {
	r := &c.reads
	for len(r.applying) > 0 && r.applying[0].index <= c.st.Index {
		for _, one := range r.applying[0].reads {
			one.finish(nil)
		}
		r.confirmed, r.ever = r.applying[0].since, true
		r.applying = r.applying[1:]
	}
}

// stop answers everybody with err.
func (r *reads) stop(err error) {
	for _, a := range append(r.applying, applying{reads: r.now}, applying{reads: r.next}) {
		for _, one := range a.reads {
			one.finish(err)
		}
	}
	*r = reads{given: r.given}
}
