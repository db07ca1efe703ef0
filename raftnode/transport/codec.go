package transport

import (
	"encoding/binary"
	"errors"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// frame is what goes over the wire: bytes that this package makes itself.
type frame []byte

// codec hands frames through gRPC as they are.
type codec struct{}

// Name implements encoding.Codec.
func (codec) Name() string { return "nexusfs-frame" }

// Marshal implements encoding.Codec.
func (codec) Marshal(v any) ([]byte, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("transport: %T is no frame", v)
	}
	return *f, nil
}

// Unmarshal implements encoding.Codec. The bytes are copied: gRPC takes its
// buffer back.
func (codec) Unmarshal(b []byte, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("transport: %T is no frame", v)
	}
	*f = append((*f)[:0:0], b...)
	return nil
}

var errFrame = errors.New("a frame is damaged")

// appendMessage adds a message to a frame, behind its length.
func appendMessage(f frame, m *pb.Message) (frame, error) {
	size := proto.Size(m)
	f = binary.AppendUvarint(f, uint64(size))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(f, m)
}

// messages takes a frame apart.
func messages(f frame) ([]*pb.Message, error) {
	var out []*pb.Message
	for len(f) > 0 {
		n, w := binary.Uvarint(f)
		if w <= 0 || n > uint64(len(f)-w) {
			return nil, errFrame
		}
		m := new(pb.Message)
		if err := proto.Unmarshal(f[w:w+int(n)], m); err != nil {
			return nil, err
		}
		out = append(out, m)
		f = f[w+int(n):]
	}
	return out, nil
}
