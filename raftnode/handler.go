package raftnode

import (
	"context"
	"encoding/json"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"nexusfs/raftnode/state"
)

// handler is what the transport brings to the node.
type handler struct{ n *Node }

// Receive implements transport.Handler.
func (h handler) Receive(m *pb.Message) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.core.failed == nil {
		h.n.core.step(m)
		h.n.pump(pumpOwn)
	}
}

// Unreachable implements transport.Handler.
func (h handler) Unreachable(id state.NodeID) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.n.core.rn.ReportUnreachable(uint64(id))
}

// SnapshotSent implements transport.Handler.
func (h handler) SnapshotSent(id state.NodeID, ok bool) {
	s := raft.SnapshotFailure
	if ok {
		s = raft.SnapshotFinish
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.n.core.rn.ReportSnapshot(uint64(id), s)
	h.n.pump(pumpOwn)
}

// Removed implements transport.Handler.
func (h handler) Removed(id state.NodeID) bool {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	return h.n.core.st.Removed[id]
}

// WasRemoved implements transport.Handler.
func (h handler) WasRemoved() {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.core.failed == nil {
		h.n.core.stop(ErrRemoved)
		h.n.stopped()
		h.n.kickRun()
	}
}

// The methods that nodes call on each other.
const (
	methodJoin    = "join"
	methodRenew   = "renew"
	methodPromote = "promote"
)

// Call implements transport.Handler.
func (h handler) Call(ctx context.Context, from state.NodeID, method string, body []byte) ([]byte, error) {
	switch {
	case method == methodJoin:
		return answer(body, func(q *joinRequest) (*joinAnswer, error) { return h.n.admit(ctx, q) })
	case from == 0:
		return nil, fmt.Errorf("%s is for members", method)
	case method == methodRenew:
		return answer(body, func(q *renewRequest) (*joinAnswer, error) { return h.n.reissue(from, q) })
	case method == methodPromote:
		return answer(body, func(q *promoteRequest) (*struct{}, error) { return nil, h.n.Promote(ctx, q.ID) })
	}
	return nil, fmt.Errorf("this version of nexusfs does not know %q", method)
}

// answer decodes a request, runs f and encodes what it returns.
func answer[Q, A any](body []byte, f func(*Q) (*A, error)) ([]byte, error) {
	q := new(Q)
	if err := json.Unmarshal(body, q); err != nil {
		return nil, err
	}
	a, err := f(q)
	if err != nil {
		return nil, err
	}
	return json.Marshal(a)
}
