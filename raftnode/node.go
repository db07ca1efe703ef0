package raftnode

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"nexusfs/raftnode/kv"
	"nexusfs/raftnode/state"
	"nexusfs/raftnode/transport"
)

// Node is one member of a group. Its methods may be called concurrently.
//
// LOCK ORDER: mu before feed.mu. mu is not held over disk, network or SQL; who
// finds work drives the core (pump), and whoever comes meanwhile leaves its own
// to that driver.
type Node struct {
	o     Options
	store *kv.Store
	disk  disk
	log   *slog.Logger

	kick chan struct{} // capacity 1: there is work for Run
	gone chan struct{} // closed when the node has stopped

	mu        sync.Mutex
	id        *Identity                    // guarded by mu
	core      *core                        // guarded by mu
	net       *transport.Transport         // guarded by mu; nil: none, or not yet
	pumping   bool                         // guarded by mu: somebody drives the core, or writes for it
	resting   *sync.Cond                   // on mu: pumping became false
	closed    bool                         // guarded by mu
	described bool                         // guarded by mu: this process told the group about itself
	zones     map[string]*Zone             // guarded by mu
	tasks     map[task]bool                // guarded by mu: under way
	sessions  map[state.SessionKey]renewal // guarded by mu: this node's own
	requests  uint64                       // guarded by mu: numbers given to requests
	complaint string                       // guarded by mu: of the last task that failed
	leased    bool                         // guarded by mu: what the consumers were told
}

// renewal is when a session was renewed last.
type renewal struct {
	lease time.Duration
	at    time.Duration
}

func newNode(o Options, id *Identity, store *kv.Store) *Node {
	n := &Node{
		o: o, id: id, store: store, disk: boltDisk{store}, log: o.Log,
		kick: make(chan struct{}, 1), gone: make(chan struct{}),
		zones: map[string]*Zone{}, tasks: map[task]bool{}, sessions: map[state.SessionKey]renewal{},
	}
	n.resting = sync.NewCond(&n.mu)
	return n
}

// aloneTick is how long a tick of a node that is alone takes: nothing but leases
// and unsynced writes wait for it.
const aloneTick = 200 * time.Millisecond

// idleTicks is after how many ticks a member writes what nobody waits for.
const idleTicks = 10

// Run drives the node until ctx ends or the node cannot go on: then it returns
// ErrRemoved, what the disk said, or what it does not know (state.ErrNewer). It
// is called once. Everything that the node was asked for waits for Run, but
// announcements of a node that is alone.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer func() {
		cancel()
		work.Wait()
	}()
	if n.o.Network != nil {
		net, err := transport.Listen(*n.o.Network, handler{n})
		if err != nil {
			return err
		}
		n.mu.Lock()
		n.net = net
		net.SetPeers(n.addresses())
		n.mu.Unlock()
		work.Go(func() { net.Serve(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n.mu.Lock()
		failed := n.core.failed
		n.mu.Unlock()
		if failed != nil {
			return failed
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			timer.Reset(n.tick(ctx, &work))
		case <-n.kick:
			n.mu.Lock()
			n.pump(pumpForever)
			n.mu.Unlock()
		}
	}
}

// tick lets time pass, begins what is to be done with SQL, and returns how long
// the next tick is away.
func (n *Node) tick(ctx context.Context, work *sync.WaitGroup) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.core.tick(sinceBoot())
	n.describe()
	n.renewSessions()
	n.keepLease()
	n.pump(pumpForever)
	if n.core.alone || n.core.ticks%idleTicks == 0 {
		n.writeIdle()
	}
	for _, t := range n.core.todo() {
		if !n.tasks[t] {
			n.tasks[t] = true
			work.Go(func() { n.doTask(ctx, t) })
		}
	}
	if n.core.alone {
		return aloneTick
	}
	return n.core.t.tick
}

// describe tells the group, once, what it does not know of this node yet. n.mu
// is held.
func (n *Node) describe() {
	m := n.core.st.Members[n.id.ID]
	if m == nil || n.described || m.Name == n.id.Name && m.Address == n.id.Address && m.Supports == n.o.known {
		return
	}
	n.described = true
	n.core.propose(newCall(&state.DescribeMember{Name: n.id.Name, Address: n.id.Address, Supports: n.o.known}))
}

// Turns of pump.
const (
	pumpForever = 1 << 30
	pumpOwn     = 8 // of somebody with something else to do
)

// pump drives the core until it has no work, or hands over to Run after the
// given number of turns. n.mu is held, and not while there is I/O.
func (n *Node) pump(turns int) {
	if n.pumping {
		return
	}
	n.pumping = true
	for range turns {
		w := n.core.ready()
		if w == nil {
			turns = 0
			break
		}
		n.carryOut(w)
	}
	n.rest()
	n.spread()
	if turns > 0 {
		n.kickRun()
	}
}

// rest ends what began with pumping. n.mu is held.
func (n *Node) rest() {
	n.pumping = false
	n.resting.Broadcast()
}

func (n *Node) kickRun() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// carryOut does what one piece of work asks for.
func (n *Node) carryOut(w *work) {
	if w.write != nil || len(w.msgs) > 0 {
		net := n.net
		n.mu.Unlock()
		err := n.outside(w, net)
		n.mu.Lock()
		if err != nil {
			n.log.Error("the disk failed; this node stops", "err", err)
			n.core.stop(err)
			return
		}
	}
	n.core.done(w)
	n.spread()
}

// outside is the part of the work that leaves memory.
func (n *Node) outside(w *work, net *transport.Transport) error {
	if w.first {
		send(net, w.msgs)
	}
	if w.write != nil {
		if err := n.disk.save(w.write); err != nil {
			return err
		}
	}
	if !w.first {
		send(net, w.msgs)
	}
	return nil
}

func send(net *transport.Transport, msgs []*pb.Message) {
	if net == nil {
		return
	}
	for _, m := range msgs {
		net.Send(m)
	}
}

// writeIdle writes what nobody waits for. n.mu is held.
func (n *Node) writeIdle() {
	if n.pumping {
		return // its driver writes
	}
	w := n.core.idle()
	if w == nil {
		return
	}
	n.pumping = true
	n.mu.Unlock()
	err := n.disk.save(w)
	n.mu.Lock()
	n.rest()
	if err != nil {
		n.log.Error("the disk failed; this node stops", "err", err)
		n.core.stop(err)
	}
	n.kickRun() // for who came meanwhile
}

// spread passes on what happened. n.mu is held.
func (n *Node) spread() {
	w := n.core.news
	n.core.news = news{heads: w.heads}
	for _, a := range w.advanced {
		if z := n.zones[a.Zone]; z != nil {
			z.feed.advanced(a)
		}
	}
	for _, k := range w.ended {
		if _, mine := n.sessions[k]; mine {
			delete(n.sessions, k)
			if z := n.zones[k.Zone]; z != nil {
				z.feed.sessionEnded(k.ID)
			}
		}
	}
	if w.members {
		n.membersChanged()
	}
	if n.core.failed != nil {
		n.stopped()
	}
}

// membersChanged tells the transport who is there, and the identity whether
// anybody is. n.mu is held.
func (n *Node) membersChanged() {
	if n.net != nil {
		n.net.SetPeers(n.addresses())
	}
	if n.core.alone && !n.id.Alone {
		id := *n.id
		id.Alone, id.Boot = true, bootID()
		if err := id.write(n.o.Dir); err != nil {
			n.log.Warn("not written that this node is alone", "err", err)
			return
		}
		n.id = &id
	}
}

// addresses returns where the others are. n.mu is held.
func (n *Node) addresses() map[state.NodeID]string {
	out := map[state.NodeID]string{}
	for id, m := range n.core.st.Members {
		if id != n.id.ID && m.Address != "" {
			out[id] = m.Address
		}
	}
	for id, a := range n.core.st.Removed {
		if id != n.id.ID && a != "" && n.core.configured(id) {
			out[id] = a
		}
	}
	if len(n.core.st.Members) == 0 {
		for id, a := range n.id.Peers {
			out[id] = a
		}
	}
	return out
}

// stopped says, once, that this node goes on no more. n.mu is held.
func (n *Node) stopped() {
	select {
	case <-n.gone:
	default:
		close(n.gone)
		for _, z := range n.zones {
			z.feed.lease(false)
		}
		n.leased = false
	}
}

// Close ends the node; Run has returned before, or was never called. Whoever
// still waits is answered with an error.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	for n.pumping {
		n.resting.Wait()
	}
	n.pumping = true // for ever: nobody drives a closed node
	w := n.core.idle()
	if n.core.failed == nil {
		n.core.stop(errClosed)
	}
	n.stopped()
	n.mu.Unlock()
	var err error
	if w != nil {
		err = n.disk.save(w)
	}
	return errors.Join(err, n.store.Close())
}

var errClosed = errors.New("this node was closed")

// submit hands a call to the core. n.mu is not held.
func (n *Node) submit(cl *call) {
	n.mu.Lock()
	n.core.propose(cl)
	n.pump(pumpOwn)
	n.mu.Unlock()
}

// do hands a command to the group and waits for what it comes to: at most until
// ctx ends (KindInterrupted; it may happen yet) or the bound of late answers
// (ErrLate).
func (n *Node) do(ctx context.Context, op string, cl *call) error {
	n.submit(cl)
	if err := n.await(ctx, op, cl.done); err != nil {
		return err
	}
	return outcome(op, cl)
}

// await waits for done, within the bounds of do.
func (n *Node) await(ctx context.Context, op string, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	default:
	}
	late := time.NewTimer(n.o.Late)
	defer late.Stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return interrupted(op, ctx.Err())
	case <-late.C:
		return refused(op, ErrLate)
	}
}
