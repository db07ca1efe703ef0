package raftnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/certs"
	"nexusfs/raftnode/transport"
)

// fakeSQL is a zone's truth in memory, shared by the nodes of a test.
type fakeSQL struct {
	mu     sync.Mutex
	rev    meta.Rev
	epoch  int64
	ops    map[meta.Rev]meta.Committed
	fenced map[int64]bool
	err    error
	gate   chan struct{} // not nil: Head waits until it is closed
}

func newFakeSQL() *fakeSQL {
	return &fakeSQL{rev: 1, epoch: 1, ops: map[meta.Rev]meta.Committed{}, fenced: map[int64]bool{}}
}

func (q *fakeSQL) Head(ctx context.Context, _ string) (meta.Head, error) {
	q.mu.Lock()
	gate := q.gate
	q.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return meta.Head{}, ctx.Err()
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return meta.Head{Rev: q.rev, Epoch: q.epoch, Barrier: q.rev}, q.err
}

func (q *fakeSQL) Committed(_ context.Context, _ string, first, last meta.Rev) ([]meta.Committed, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []meta.Committed
	for r := first; r <= last; r++ {
		if op, ok := q.ops[r]; ok {
			out = append(out, op)
		}
	}
	return out, q.err
}

func (q *fakeSQL) Recover(_ context.Context, _ string, announced meta.Rev) (meta.Head, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.rev < announced {
		q.rev, q.epoch = announced+1, q.epoch+1
	}
	return meta.Head{Rev: q.rev, Epoch: q.epoch, Barrier: q.rev}, q.err
}

func (q *fakeSQL) Fence(_ context.Context, _ string, session, _ int64) (meta.Rev, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fenced[session] = true
	return q.rev, q.err
}

// commit is one transaction of n operations.
func (q *fakeSQL) commit(n int) Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := Batch{Epoch: q.epoch}
	for range n {
		q.rev++
		op := fakeOp(q.rev)
		q.ops[q.rev] = op
		b.Ops = append(b.Ops, op)
	}
	b.Head, b.Durable = [32]byte{byte(q.rev), 1}, q.rev
	return b
}

func fakeOp(rev meta.Rev) meta.Committed {
	a := meta.Attr{Ino: meta.Ino(1000 + rev), Mode: meta.ModeRegular | 0o644, Nlink: 1, UID: 1000, GID: 1000, Size: 4096, Mtime: 1e18, Ctime: 1e18, Rev: rev, ContentRev: rev, Version: 1}
	name := fmt.Sprintf("file-%d.txt", rev)
	return meta.Committed{Rev: rev, Attrs: []meta.Attr{a}, Change: &meta.Change{
		Record: meta.Record{Rev: rev, Kind: meta.OpCreate, Ino: a.Ino, Parent: 1, Name: name, Time: 1e18},
		Inodes: []meta.InodeChange{{After: a}}, Dirs: []meta.DirDelta{{Ino: 1, Entries: 1, Time: 1e18}},
		Names: []meta.NameChange{{Parent: 1, Name: name, After: a.Ino, AfterType: meta.ModeRegular}},
	}}
}

// fakeConsumer remembers what it was told.
type fakeConsumer struct {
	mu    sync.Mutex
	revs  []meta.Rev
	rev   meta.Rev
	drops int
	lease bool
	ended []int64
	gate  chan struct{} // not nil: Applied waits until it is closed
	told  chan struct{} // capacity 1: something was told
}

func newFakeConsumer() *fakeConsumer { return &fakeConsumer{told: make(chan struct{}, 1)} }

func (c *fakeConsumer) tell(f func()) {
	c.mu.Lock()
	f()
	c.mu.Unlock()
	select {
	case c.told <- struct{}{}:
	default:
	}
}

func (c *fakeConsumer) Applied(ctx context.Context, ops []meta.Committed, last meta.Rev) error {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.tell(func() {
		for _, op := range ops {
			c.revs = append(c.revs, op.Rev)
		}
		c.rev = last
	})
	return nil
}

func (c *fakeConsumer) DropAll(_ context.Context, rev meta.Rev) error {
	c.tell(func() { c.drops++; c.rev = rev })
	return nil
}

func (c *fakeConsumer) Lease(_ context.Context, held bool) error {
	c.tell(func() { c.lease = held })
	return nil
}

func (c *fakeConsumer) SessionEnded(_ context.Context, id int64) error {
	c.tell(func() { c.ended = append(c.ended, id) })
	return nil
}

// until waits until what the consumer was told is as cond wants it.
func (c *fakeConsumer) until(t testing.TB, what string, cond func(*fakeConsumer) bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		ok := cond(c)
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-c.told:
		case <-late:
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Fatalf("never: %s; the consumer has %d revisions, the last %d, %d drops, lease %v, ended %v", what, len(c.revs), c.rev, c.drops, c.lease, c.ended)
		}
	}
}

// rigNode is a running node of a test.
type rigNode struct {
	*Node
	dir  string
	addr string
	stop context.CancelFunc
	done chan error
	zone *Zone
	to   *fakeConsumer
}

// rig is a group in one process, over loopback.
type rig struct {
	t     testing.TB
	sql   *fakeSQL
	nodes []*rigNode
	late  time.Duration // Options.Late
}

// testTiming has short ticks, and patience with a machine that is busy.
var testTiming = timing{tick: 10 * time.Millisecond, election: 50, heartbeat: 3, gap: 1}

// checkGoroutines compares the goroutines at the test's end with those now.
func checkGoroutines(t testing.TB) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for late := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if runtime.NumGoroutine() <= before {
				return
			}
			if time.Now().After(late) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
}

// newRig makes a group of one node; grow adds others.
func newRig(t testing.TB, change ...func(*rig)) *rig {
	checkGoroutines(t)
	r := &rig{t: t, sql: newFakeSQL(), late: 20 * time.Second}
	for _, c := range change {
		c(r)
	}
	t.Cleanup(func() {
		for _, n := range r.nodes {
			n.end(t)
		}
	})
	dir := filepath.Join(t.TempDir(), "node")
	addr := freeAddr(t)
	id := NewIdentity("first", addr)
	if err := Found(dir, id); err != nil {
		t.Fatal(err)
	}
	if err := InitCerts(dir, id); err != nil {
		t.Fatal(err)
	}
	n := &rigNode{dir: dir, addr: addr}
	r.nodes = append(r.nodes, n)
	r.start(n)
	return r
}

// freeAddr finds a port that is free now.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (r *rig) options(n *rigNode) Options {
	r.t.Helper()
	id, err := ReadIdentity(n.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	loader, err := certs.NewLoader(n.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&testWriter{t: r.t, who: id.Name}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o := Options{
		Dir: n.dir, Truth: r.sql, Log: log, Late: r.late, timing: testTiming, shortLeases: true,
		Network: &transport.Config{ID: id.ID, Group: id.Group, Listen: n.addr, Certs: loader, Log: log},
	}
	if id.Witness {
		o.Truth = nil
	}
	return o
}

// testWriter hands log lines to a test that has not ended.
type testWriter struct {
	t   testing.TB
	who string
}

func (w *testWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		fmt.Printf("%s: %s", w.who, b)
	}
	return len(b), nil
}

// start runs a node, and follows the zone on it unless it is a witness.
func (r *rig) start(n *rigNode) {
	r.t.Helper()
	o := r.options(n)
	node, err := Open(o)
	if err != nil {
		r.t.Fatal(err)
	}
	n.run(node)
	if o.Truth == nil {
		return
	}
	n.to = newFakeConsumer()
	r.follow(n)
}

func (n *rigNode) run(node *Node) {
	n.Node = node
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan error, 1)
	go func(done chan error) { done <- node.Run(ctx) }(n.done)
}

// follow opens the zone.
func (r *rig) follow(n *rigNode) {
	r.t.Helper()
	z, err := n.OpenZone(r.t.Context(), "z", n.to)
	if err != nil {
		r.t.Fatalf("node %v: %v", n.Status().ID, err)
	}
	n.zone = z
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- z.Run(ctx) }()
	before := n.stop
	n.stop = func() {
		before()
		cancel()
		<-done
	}
}

// end stops a node in order.
func (n *rigNode) end(t testing.TB) {
	t.Helper()
	if n.Node == nil {
		return
	}
	n.stop()
	if err := <-n.done; err != nil && !errors.Is(err, ErrRemoved) {
		t.Errorf("node %v: %v", n.id.ID, err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("node %v: close: %v", n.id.ID, err)
	}
	n.Node = nil
}

// kill stops a node as kill -9 would.
func (n *rigNode) kill() {
	n.stop()
	<-n.done
	_ = n.store.Abandon()
	_ = n.Close()
	n.Node = nil
}

// grow adds a member and returns it, following and caught up; promote says that
// it gets its vote.
func (r *rig) grow(witness, promote bool) *rigNode {
	r.t.Helper()
	first := r.nodes[0]
	ticket, err := first.Token(r.t.Context(), witness, time.Minute)
	if err != nil {
		r.t.Fatal(err)
	}
	parsed, err := ParseTicket(ticket.String())
	if err != nil {
		r.t.Fatal(err)
	}
	n := &rigNode{dir: filepath.Join(r.t.TempDir(), "node"), addr: freeAddr(r.t)}
	if _, err := Join(r.t.Context(), n.dir, parsed, fmt.Sprintf("node %d", len(r.nodes)+1), n.addr); err != nil {
		r.t.Fatal(err)
	}
	r.nodes = append(r.nodes, n)
	r.start(n)
	if promote {
		r.eventually("promoted", func() error { return first.Promote(r.t.Context(), n.id.ID) })
	}
	return n
}

// eventually repeats f until it has no error.
func (r *rig) eventually(what string, f func() error) {
	r.t.Helper()
	late := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(late) {
			r.t.Fatalf("never %s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *rig) leader() *rigNode {
	r.t.Helper()
	var found *rigNode
	r.eventually("a leader that answers", func() error {
		for _, n := range r.nodes {
			if n.Node == nil {
				continue
			}
			n.mu.Lock()
			ok := n.core.leading && n.core.mayAnswerReads()
			n.mu.Unlock()
			if ok {
				found = n
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return found
}

// announce commits and announces n operations on a node.
func (r *rig) announce(n *rigNode, ops int) meta.Rev {
	r.t.Helper()
	b := r.sql.commit(ops)
	if err := n.zone.Announce(r.t.Context(), b); err != nil {
		r.t.Fatalf("announce: %v", err)
	}
	return b.Ops[len(b.Ops)-1].Rev
}

func wantErr(t testing.TB, err error, want error, words string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), words) {
		t.Errorf("error %v, want %v with %q", err, want, words)
	}
}
