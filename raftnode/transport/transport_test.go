package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"nexusfs/raftnode/certs"
	"nexusfs/raftnode/state"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeHandler collects what arrives.
type fakeHandler struct {
	mu          sync.Mutex
	removed     map[state.NodeID]bool
	got         chan *pb.Message
	unreachable chan state.NodeID
	snapshots   chan bool
	told        chan struct{}
}

func newHandler() *fakeHandler {
	return &fakeHandler{
		removed: map[state.NodeID]bool{}, got: make(chan *pb.Message, 4096), unreachable: make(chan state.NodeID, 4096),
		snapshots: make(chan bool, 16), told: make(chan struct{}, 64),
	}
}

func (h *fakeHandler) Unreachable(id state.NodeID)          { h.unreachable <- id }
func (h *fakeHandler) SnapshotSent(_ state.NodeID, ok bool) { h.snapshots <- ok }
func (h *fakeHandler) WasRemoved()                          { h.told <- struct{}{} }

func (h *fakeHandler) Receive(msgs []*pb.Message) {
	for _, m := range msgs {
		h.got <- m
	}
}

func (h *fakeHandler) Removed(id state.NodeID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removed[id]
}

func (h *fakeHandler) Call(_ context.Context, from state.NodeID, method string, body []byte) ([]byte, error) {
	if method == "fail" {
		return nil, errors.New("no")
	}
	return fmt.Appendf(nil, "%v %s %s", from, method, body), nil
}

// end is a transport of a test.
type end struct {
	*Transport
	h    *fakeHandler
	stop func()
}

type network struct {
	t         *testing.T
	authority *certs.Authority
}

func newNetwork(t *testing.T) *network {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for late := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(late) {
				buf := make([]byte, 1<<20)
				t.Errorf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
	a, err := certs.NewAuthority("g", time.Now())
	check(t, err)
	return &network{t, a}
}

// add makes a node's transport and runs it.
func (n *network) add(id state.NodeID, group string) *end {
	n.t.Helper()
	dir := n.t.TempDir()
	key, err := certs.NewKey()
	check(n.t, err)
	cert, err := n.authority.Issue(id.String(), key.Public(), time.Now())
	check(n.t, err)
	check(n.t, certs.Install(dir, key, cert, n.authority.Certificate()))
	loader, err := certs.NewLoader(dir)
	check(n.t, err)
	h := newHandler()
	tr, err := Listen(Config{ID: id, Group: group, Listen: "127.0.0.1:0", Certs: loader}, h)
	check(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { tr.Serve(ctx); close(done) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	n.t.Cleanup(stop)
	return &end{tr, h, stop}
}

func message(from, to state.NodeID, index uint64) *pb.Message {
	return &pb.Message{Type: pb.MsgApp.Enum(), From: new(uint64(from)), To: new(uint64(to)), Index: new(index)}
}

// within receives from a channel, in time.
func within[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("never: %s", what)
	}
	return v
}

func TestMessagesArriveInOrder(t *testing.T) {
	n := newNetwork(t)
	a, b := n.add(1, "g"), n.add(2, "g")
	a.SetPeers(map[state.NodeID]string{2: b.Addr()})
	for i := range uint64(500) {
		a.Send(message(1, 2, i))
	}
	for i := range uint64(500) {
		if m := within(t, b.h.got, "a message"); m.GetIndex() != i {
			t.Fatalf("message %d where %d belongs", m.GetIndex(), i)
		}
	}
	// The other side goes, and comes back elsewhere.
	b.stop()
	within(t, a.h.unreachable, "told that it cannot be reached")
	c := n.add(2, "g")
	a.SetPeers(map[state.NodeID]string{2: c.Addr()})
	a.Send(message(1, 2, 1000))
	if m := within(t, c.h.got, "a message after the restart"); m.GetIndex() != 1000 {
		t.Errorf("got %d", m.GetIndex())
	}
}

func TestSnapshotIsStreamed(t *testing.T) {
	n := newNetwork(t)
	a, b := n.add(1, "g"), n.add(2, "g")
	a.SetPeers(map[state.NodeID]string{2: b.Addr()})
	for _, size := range []int{0, 1, chunk, 5*chunk + 7} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 7)
		}
		m := message(1, 2, 3)
		m.Type = pb.MsgSnap.Enum()
		m.Snapshot = &pb.Snapshot{Data: data, Metadata: &pb.SnapshotMetadata{Index: new(uint64(9)), Term: new(uint64(2))}}
		a.Send(m)
		got := within(t, b.h.got, "the snapshot")
		if string(got.GetSnapshot().GetData()) != string(data) || got.GetSnapshot().GetMetadata().GetIndex() != 9 {
			t.Errorf("%d bytes arrived as %d", size, len(got.GetSnapshot().GetData()))
		}
		if !within(t, a.h.snapshots, "told that it arrived") {
			t.Error("told that it did not arrive")
		}
	}
	b.stop()
	m := message(1, 2, 3)
	m.Type, m.Snapshot = pb.MsgSnap.Enum(), &pb.Snapshot{Metadata: &pb.SnapshotMetadata{}}
	a.Send(m)
	if within(t, a.h.snapshots, "told of the failure") {
		t.Error("a snapshot to nobody arrived")
	}
}

// TestSendersAreChecked: a message that names another sender, a node of another
// group, and a former member are refused.
func TestSendersAreChecked(t *testing.T) {
	n := newNetwork(t)
	a, b, other := n.add(1, "g"), n.add(2, "g"), n.add(3, "another")
	a.SetPeers(map[state.NodeID]string{2: b.Addr()})
	other.SetPeers(map[state.NodeID]string{2: b.Addr()})
	a.Send(message(7, 2, 1)) // not a's
	within(t, a.h.unreachable, "the stream was ended")
	other.Send(message(3, 2, 1))
	within(t, other.h.unreachable, "refused")
	b.h.mu.Lock()
	b.h.removed[1] = true
	b.h.mu.Unlock()
	a.Send(message(1, 2, 2))
	within(t, a.h.told, "told that it was removed")
	if len(b.h.got) != 0 {
		t.Errorf("received %v", <-b.h.got)
	}
}

func TestQueueIsBounded(t *testing.T) {
	n := newNetwork(t)
	a := n.add(1, "g")
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	check(t, err)
	defer func() { _ = l.Close() }()
	a.SetPeers(map[state.NodeID]string{2: l.Addr().String()})
	for i := range uint64(queueMost + 10) {
		a.Send(message(1, 2, i))
	}
	if id := within(t, a.h.unreachable, "told that the queue is full"); id != 2 {
		t.Errorf("node %v", id)
	}
	a.Send(message(1, 9, 0))
	for within(t, a.h.unreachable, "told of an unknown member") != 9 {
		continue
	}
}

func TestCalls(t *testing.T) {
	n := newNetwork(t)
	a, b := n.add(1, "g"), n.add(2, "g")
	a.SetPeers(map[state.NodeID]string{2: b.Addr()})
	got, err := a.Call(t.Context(), 2, "hello", []byte("body"))
	if err != nil || string(got) != "0000000000000001 hello body" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := a.Call(t.Context(), 2, "fail", nil); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("a failing call: %v", err)
	}
	if _, err := a.Call(t.Context(), 5, "hello", nil); err == nil {
		t.Error("a call to nobody")
	}
	pin, err := certs.Pin(n.authority.Certificate())
	check(t, err)
	got, err = CallMember(t.Context(), b.Addr(), pin, "join", []byte("me"))
	if err != nil || string(got) != "0000000000000000 join me" {
		t.Errorf("without a certificate: %q, %v", got, err)
	}
	if _, err := CallMember(t.Context(), b.Addr(), "00", "join", nil); err == nil {
		t.Error("a call to a group of another pin")
	}
}

// TestNothingInTheClear: without TLS, and without a certificate, no message gets
// through.
func TestNothingInTheClear(t *testing.T) {
	n := newNetwork(t)
	b := n.add(2, "g")
	conn, err := grpc.NewClient("passthrough:///"+b.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	check(t, err)
	if _, err := call(t.Context(), conn, "hello", nil); err == nil {
		t.Error("a call in the clear was answered")
	}
	check(t, conn.Close())
	pin, err := certs.Pin(n.authority.Certificate())
	check(t, err)
	conn, err = dial(b.Addr(), certs.Joining(pin))
	check(t, err)
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), groupHeader, "g"))
	defer cancel()
	s, err := conn.NewStream(ctx, &service.Streams[0], methodMessages)
	check(t, err)
	var f frame
	if err := s.RecvMsg(&f); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a stream without a certificate: %v", err)
	}
	if len(b.h.got) != 0 {
		t.Error("a message got through")
	}
}

// FuzzFrame: what comes over the wire is taken apart or refused.
func FuzzFrame(f *testing.F) {
	ok, err := appendMessage(nil, message(1, 2, 3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(ok))
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs, err := messages(b)
		if err != nil {
			return
		}
		var again frame
		for _, m := range msgs {
			if again, err = appendMessage(again, m); err != nil {
				t.Fatal(err)
			}
		}
		if twice, err := messages(again); err != nil || len(twice) != len(msgs) {
			t.Fatalf("%d messages, then %d: %v", len(msgs), len(twice), err)
		}
	})
}
