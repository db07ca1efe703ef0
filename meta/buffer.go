package meta

import (
	"math/bits"
	"sync"
)

// Staged bytes lie in buffers whose sizes are powers of two, so that a small
// write holds little and a long one grows by few copies. Buffers come from
// pools that the garbage collector empties when nobody writes.
const (
	bufferMin  = 64
	growDouble = 256 << 10 // a run that outgrows this gets the rest of its chunk at once
)

// buffer is a piece of memory with a class of the pools.
type buffer struct {
	b     []byte
	class int
}

var bufferPools [23]sync.Pool

// newBuffer returns a buffer of at least n bytes, n at most BlobMax.
func newBuffer(n int64) *buffer {
	class := bits.Len64(uint64(max(n, bufferMin) - 1))
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 1<<class), class: class}
}

// free gives the buffer back; nobody may use it after.
func (b *buffer) free() { bufferPools[b.class].Put(b) }

func (b *buffer) size() int64 { return int64(len(b.b)) }

// grown is the size of buffer that a run gets which needs need bytes and may
// never need more than room.
func grown(need, room int64) int64 {
	if need > growDouble {
		return room
	}
	return min(max(need, bufferMin), room)
}
