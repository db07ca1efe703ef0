package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	gpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"nexusfs/raftnode/certs"
	"nexusfs/raftnode/state"
)

// The service, in the words that gRPC's generator would write.
const (
	serviceName    = "nexusfs.raftnode.Peer"
	methodMessages = "/" + serviceName + "/Messages"
	methodSnapshot = "/" + serviceName + "/Snapshot"
	methodCall     = "/" + serviceName + "/Call"

	groupHeader = "nexusfs-group"
	nameHeader  = "nexusfs-method"
	sizeHeader  = "nexusfs-size"
	sumHeader   = "nexusfs-sha256"
)

var service = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Call", Handler: serveCall}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Messages", Handler: serveMessages, ClientStreams: true},
		{StreamName: "Snapshot", Handler: serveSnapshot, ClientStreams: true},
	},
}

func joining(pin string) *tls.Config { return certs.Joining(pin) }

// sender returns who is at the other end: 0 for who shows no certificate.
func sender(ctx context.Context) (state.NodeID, error) {
	p, ok := gpeer.FromContext(ctx)
	if !ok {
		return 0, status.Error(codes.Unauthenticated, "nobody is there")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return 0, status.Error(codes.Unauthenticated, "the connection is not encrypted")
	}
	name := certs.Name(info.State)
	if name == "" {
		return 0, nil
	}
	id, err := state.ParseNodeID(name)
	if err != nil {
		return 0, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, nil
}

// member returns the member at the other end, which must name this group.
func (t *Transport) member(ctx context.Context) (state.NodeID, error) {
	id, err := sender(ctx)
	switch {
	case err != nil:
		return 0, err
	case id == 0:
		return 0, status.Error(codes.Unauthenticated, "a member's certificate is needed")
	case header(ctx, groupHeader) != t.cfg.Group:
		return 0, status.Error(codes.PermissionDenied, "this is a node of another group")
	case t.h.Removed(id):
		return 0, status.Error(codes.FailedPrecondition, "that node was removed from the group")
	}
	return id, nil
}

func header(ctx context.Context, key string) string {
	if v := metadata.ValueFromIncomingContext(ctx, key); len(v) == 1 {
		return v[0]
	}
	return ""
}

func serveMessages(srv any, s grpc.ServerStream) error {
	t := srv.(*Transport)
	id, err := t.member(s.Context())
	if err != nil {
		return err
	}
	for {
		var f frame
		if err := s.RecvMsg(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if t.h.Removed(id) {
			return status.Error(codes.FailedPrecondition, "that node was removed from the group")
		}
		msgs, err := messages(f)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		for _, m := range msgs {
			if state.NodeID(m.GetFrom()) != id || state.NodeID(m.GetTo()) != t.cfg.ID {
				return status.Errorf(codes.PermissionDenied, "a message of %v to %v came from %v to %v",
					state.NodeID(m.GetFrom()), state.NodeID(m.GetTo()), id, t.cfg.ID)
			}
		}
		t.h.Receive(msgs)
	}
}

// serveSnapshot takes a snapshot in. It counts when all of it is there.
func serveSnapshot(srv any, s grpc.ServerStream) error {
	t := srv.(*Transport)
	id, err := t.member(s.Context())
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(header(s.Context(), sizeHeader))
	if err != nil || size < 0 || size > SnapshotMost {
		return status.Error(codes.InvalidArgument, "no snapshot of that size")
	}
	var f frame
	if err := s.RecvMsg(&f); err != nil {
		return err
	}
	msgs, err := messages(f)
	if err != nil || len(msgs) != 1 || msgs[0].GetSnapshot() == nil || state.NodeID(msgs[0].GetFrom()) != id || state.NodeID(msgs[0].GetTo()) != t.cfg.ID {
		return status.Error(codes.InvalidArgument, "a snapshot begins with its message")
	}
	var data []byte
	for len(data) < size {
		var part frame
		if err := s.RecvMsg(&part); err != nil {
			return err
		}
		if data = append(data, part...); len(data) > size {
			return status.Error(codes.InvalidArgument, "the snapshot is longer than it said")
		}
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != header(s.Context(), sumHeader) {
		return status.Error(codes.DataLoss, "the snapshot was damaged on its way")
	}
	msgs[0].Snapshot.Data = data
	t.h.Receive(msgs)
	return s.SendMsg(&frame{})
}

func serveCall(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	t := srv.(*Transport)
	id, err := sender(ctx)
	if err == nil && id != 0 {
		id, err = t.member(ctx)
	}
	if err != nil {
		return nil, err
	}
	var in frame
	if err := dec(&in); err != nil {
		return nil, err
	}
	out, err := t.h.Call(ctx, id, header(ctx, nameHeader), in)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	f := frame(out)
	return &f, nil
}
