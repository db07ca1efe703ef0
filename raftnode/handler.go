package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// handler is what the transport brings to the node.
type handler struct{ n *Node }

// Receive implements transport.Handler.
func (h handler) Receive(msgs []*pb.Message) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.core.failed != nil {
		return
	}
	for _, m := range msgs {
		h.n.core.step(m)
	}
	h.n.pump(pumpOwn)
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
	return h.n.core.former(id)
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
	methodJoin     = "join"
	methodRenew    = "renew"
	methodPromote  = "promote"
	methodTransfer = "transfer"
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
		return answer(body, func(q *about) (*struct{}, error) { return &struct{}{}, h.n.Promote(ctx, q.ID) })
	case method == methodTransfer:
		return answer(body, func(q *about) (*struct{}, error) { return &struct{}{}, h.n.Transfer(ctx, q.ID) })
	}
	return nil, fmt.Errorf("this version of nexusfs does not know %q", method)
}

// reply is what a method came to, as it travels.
type reply struct {
	Body  json.RawMessage `json:",omitempty"`
	Kind  meta.Kind       `json:",omitempty"`
	Error string          `json:",omitempty"`
}

// answer decodes a request, runs f and encodes what it returns.
func answer[Q, A any](body []byte, f func(*Q) (*A, error)) ([]byte, error) {
	q := new(Q)
	if err := json.Unmarshal(body, q); err != nil {
		return nil, err
	}
	var r reply
	a, err := f(q)
	if err == nil {
		r.Body, err = json.Marshal(a)
	}
	if err != nil {
		r = reply{Kind: meta.KindOf(err), Error: err.Error()}
		if e := (*meta.Error)(nil); errors.As(err, &e) && e.Err != nil {
			r.Error = e.Err.Error()
		}
	}
	return json.Marshal(r)
}

// answered decodes what answer encoded. Its errors have the kind that they had
// on the other node.
func answered[A any](op string, b []byte, err error) (*A, error) {
	var r reply
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, refused(op, err)
	}
	if r.Error != "" {
		return nil, meta.E(op, 0, "", r.Kind, errors.New(r.Error))
	}
	a := new(A)
	if err := json.Unmarshal(r.Body, a); err != nil {
		return nil, refused(op, err)
	}
	return a, nil
}
