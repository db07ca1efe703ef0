package transport

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"nexusfs/raftnode/state"
)

// peer is another member, and what is on its way to it.
type peer struct {
	t     *Transport
	id    state.NodeID
	addr  string
	conn  *grpc.ClientConn
	queue chan *pb.Message
	ctx   context.Context
	close context.CancelFunc
}

// connect begins sending to a member. t.mu is held.
func (t *Transport) connect(id state.NodeID, addr string) (*peer, error) {
	conn, err := dial(addr, t.cfg.Certs.Client(id.String()))
	if err != nil {
		return nil, err
	}
	p := &peer{t: t, id: id, addr: addr, conn: conn, queue: make(chan *pb.Message, queueMost)}
	p.ctx, p.close = context.WithCancel(metadata.AppendToOutgoingContext(t.ctx, groupHeader, t.cfg.Group))
	t.work.Go(p.run)
	return p, nil
}

// put queues a message, if there is room.
func (p *peer) put(m *pb.Message) bool {
	select {
	case p.queue <- m:
		return true
	default:
		return false
	}
}

// run sends what is queued, over one stream after another.
func (p *peer) run() {
	defer func() { _ = p.conn.Close() }() // nothing is lost that Raft does not repeat
	for p.ctx.Err() == nil {
		err := p.stream()
		if p.ctx.Err() != nil {
			return
		}
		p.t.failed(p.id, err)
		p.drain()
		p.t.h.Unreachable(p.id)
		p.pause()
	}
}

// failed looks at why a stream ended.
func (t *Transport) failed(id state.NodeID, err error) {
	switch status.Code(err) {
	case codes.FailedPrecondition:
		t.h.WasRemoved()
	case codes.PermissionDenied, codes.Unauthenticated:
		t.log.Error("a member refuses this node", "node", id, "err", err)
	default:
		t.log.Debug("connection to a member", "node", id, "err", err)
	}
}

// drain drops what waited while there was no connection: it is out of date.
func (p *peer) drain() {
	for {
		select {
		case <-p.queue:
		default:
			return
		}
	}
}

// stream sends until the stream breaks. It is opened at once, also when there
// is nothing to say: so a former member is told.
func (p *peer) stream() error {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	s, err := p.conn.NewStream(ctx, &service.Streams[0], methodMessages)
	if err != nil {
		return err
	}
	broken := make(chan error, 1)
	p.t.work.Go(func() { // the answer comes when the other side ends it
		var f frame
		broken <- s.RecvMsg(&f)
	})
	for {
		select {
		case <-p.ctx.Done():
			return nil
		case err := <-broken:
			return err
		case m := <-p.queue:
			f, err := p.gather(m)
			if err != nil {
				return err
			}
			if err := s.SendMsg(&f); err != nil {
				return <-broken
			}
		}
	}
}

// reconnect is how long a member that could not be reached, or refused, is left
// alone; gRPC's back-off comes on top.
const reconnect = 100 * time.Millisecond

// pause lets that time pass.
func (p *peer) pause() {
	select {
	case <-p.ctx.Done():
	case <-time.After(reconnect):
	}
}

// gather makes a frame of m and what waits behind it.
func (p *peer) gather(m *pb.Message) (frame, error) {
	f, err := appendMessage(nil, m)
	for err == nil && len(f) < frameMost {
		select {
		case next := <-p.queue:
			f, err = appendMessage(f, next)
			continue
		default:
		}
		break
	}
	return f, err
}

// sendSnapshot sends one on a stream of its own. Raft must learn what became of
// it, or it never sends another.
func (t *Transport) sendSnapshot(p *peer, m *pb.Message) {
	to := state.NodeID(m.GetTo())
	if p == nil || !t.background(func() {
		err := p.snapshot(m)
		if err != nil && p.ctx.Err() == nil {
			t.log.Warn("a snapshot was not sent", "node", to, "err", err)
		}
		t.h.SnapshotSent(to, err == nil)
	}) {
		t.h.SnapshotSent(to, false)
	}
}

// snapshot sends a snapshot in chunks, as fast as the receiver takes them, and
// waits until it has it.
func (p *peer) snapshot(m *pb.Message) error {
	data := m.GetSnapshot().GetData()
	sum := sha256.Sum256(data)
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, sizeHeader, strconv.Itoa(len(data)), sumHeader, hex.EncodeToString(sum[:]))
	s, err := p.conn.NewStream(ctx, &service.Streams[1], methodSnapshot)
	if err != nil {
		return err
	}
	bare, ok := proto.Clone(m).(*pb.Message)
	if !ok {
		return errFrame
	}
	bare.Snapshot.Data = nil
	head, err := appendMessage(nil, bare)
	if err != nil {
		return err
	}
	for part := head; ; {
		if err := s.SendMsg(&part); err != nil {
			var f frame
			return s.RecvMsg(&f) // says why
		}
		if len(data) == 0 {
			break
		}
		n := min(chunk, len(data))
		part, data = frame(data[:n]), data[n:]
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	var f frame
	return s.RecvMsg(&f)
}

// Call asks another member something.
func (t *Transport) Call(ctx context.Context, id state.NodeID, method string, body []byte) ([]byte, error) {
	t.mu.Lock()
	p := t.peers[id]
	t.mu.Unlock()
	if p == nil {
		return nil, status.Error(codes.Unavailable, "no connection to that member")
	}
	return call(metadata.AppendToOutgoingContext(ctx, groupHeader, t.cfg.Group), p.conn, method, body)
}

func call(ctx context.Context, conn *grpc.ClientConn, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, nameHeader, method), callTime)
	defer cancel()
	in, out := frame(body), frame(nil)
	err := conn.Invoke(ctx, methodCall, &in, &out)
	return out, err
}

// CallMember asks a member something for a node that has no certificate yet.
// pin names the group's authority (certs.Pin).
func CallMember(ctx context.Context, addr, pin, method string, body []byte) ([]byte, error) {
	conn, err := dial(addr, joining(pin))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return call(ctx, conn, method, body)
}
