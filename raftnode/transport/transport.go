// Package transport carries Raft's messages between the nodes of a group: gRPC
// over mutual TLS 1.3, one stream for each direction of a pair, snapshots on
// streams of their own.
//
// It promises: what arrives came from the member that it names, whose
// certificate says so; queues are bounded, and what does not fit is dropped and
// Raft told; nothing is ever sent in the clear. It does not promise delivery:
// Raft repeats. Its caller is raftnode.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"nexusfs/raftnode/certs"
	"nexusfs/raftnode/state"
)

// Bounds.
const (
	queueMost    = 1024      // messages that wait for one peer
	frameMost    = 512 << 10 // bytes of one frame, more only for a single message
	receiveMost  = 16 << 20  // bytes of a frame that is accepted
	chunk        = 128 << 10 // bytes of a snapshot in one frame
	SnapshotMost = 256 << 20 // bytes of a snapshot
	callTime     = 10 * time.Second
)

// Handler is who the messages are for. Its methods are called by many
// goroutines.
type Handler interface {
	// Receive takes messages that came together; their sender was checked.
	Receive(msgs []*pb.Message)
	// Unreachable says that a message to a node was dropped.
	Unreachable(id state.NodeID)
	// SnapshotSent says what became of a snapshot that was to be sent.
	SnapshotSent(id state.NodeID, ok bool)
	// Removed reports whether a node is a former member: it is told so.
	Removed(id state.NodeID) bool
	// WasRemoved is called when a member says that this node is a former one.
	WasRemoved()
	// Call answers a request of another node; from is 0 for one that has no
	// certificate.
	Call(ctx context.Context, from state.NodeID, method string, body []byte) ([]byte, error)
}

// Config makes a transport.
type Config struct {
	ID     state.NodeID
	Group  string // both sides must name the same
	Listen string // host:port; port 0 takes any
	Certs  *certs.Loader
	Log    *slog.Logger // nil: none
}

// Transport is a node's end of the group's network.
type Transport struct {
	cfg    Config
	h      Handler
	log    *slog.Logger
	listen net.Listener
	server *grpc.Server

	mu    sync.Mutex
	ctx   context.Context         // guarded by mu: of the peers' goroutines, once Serve runs
	peers map[state.NodeID]*peer  // guarded by mu
	where map[state.NodeID]string // guarded by mu: what SetPeers said
	work  sync.WaitGroup
}

// Listen opens the listener. Nothing is accepted before Serve.
func Listen(cfg Config, h Handler) (*Transport, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	t := &Transport{cfg: cfg, h: h, log: cfg.Log, listen: l, peers: map[state.NodeID]*peer{}}
	t.server = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(cfg.Certs.Server())), grpc.ForceServerCodec(codec{}), grpc.MaxRecvMsgSize(receiveMost),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 2 * time.Second, PermitWithoutStream: true}),
		grpc.MaxConcurrentStreams(1024), grpc.ConnectionTimeout(callTime),
	)
	t.server.RegisterService(&service, t)
	return t, nil
}

// Addr returns where it listens.
func (t *Transport) Addr() string { return t.listen.Addr().String() }

// Serve accepts and sends until ctx ends; then every connection is closed.
func (t *Transport) Serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	t.mu.Lock()
	t.ctx = ctx
	where := t.where
	t.mu.Unlock()
	t.SetPeers(where)
	stop := context.AfterFunc(ctx, t.server.Stop)
	if err := t.server.Serve(t.listen); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		t.log.Error("other nodes cannot reach this one any more", "err", err)
		<-ctx.Done()
	}
	stop()
	cancel()
	t.server.Stop()
	t.mu.Lock()
	for id, p := range t.peers {
		p.close()
		delete(t.peers, id)
	}
	t.mu.Unlock()
	t.work.Wait()
}

// SetPeers says where the other members are. Connections to who is not among
// them are closed, those to who has moved are made anew.
func (t *Transport) SetPeers(where map[state.NodeID]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.where = where
	if t.ctx == nil || t.ctx.Err() != nil {
		return
	}
	for id, p := range t.peers {
		if where[id] != p.addr {
			p.close()
			delete(t.peers, id)
		}
	}
	for id, addr := range where {
		if t.peers[id] != nil {
			continue
		}
		p, err := t.connect(id, addr)
		if err != nil {
			t.log.Error("a member cannot be connected to", "node", id, "address", addr, "err", err)
			continue
		}
		t.peers[id] = p
	}
}

// Send queues a message. It never blocks on the network; what does not fit is
// dropped, and the handler told before Send returns.
func (t *Transport) Send(m *pb.Message) {
	id := state.NodeID(m.GetTo())
	t.mu.Lock()
	p := t.peers[id]
	t.mu.Unlock()
	if m.GetType() == pb.MsgSnap {
		t.sendSnapshot(p, m)
		return
	}
	if p == nil || !p.put(m) {
		t.h.Unreachable(id)
	}
}

// background runs f in a goroutine that Serve waits for, and reports whether it
// did: not before Serve, nor after.
func (t *Transport) background(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx == nil || t.ctx.Err() != nil {
		return false
	}
	t.work.Go(f)
	return true
}

// dial makes a connection that is made anew by itself.
func dial(addr string, tc *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(tc)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(receiveMost)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
	)
}
