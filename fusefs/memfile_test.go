package fusefs

import (
	"context"
	"os"
	"time"

	"nexusfs/meta"
)

type memFile struct {
	m *memFS
	n *memNode
}

func (f *memFile) Read(_ context.Context, off int64, p []byte) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := min(int64(len(p)), max(f.n.Size-off, 0))
	f.n.read(off, p[:n])
	return int(n), nil
}

func (f *memFile) Write(_ context.Context, c meta.Caller, off int64, data []byte, kill bool) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if off == meta.AtEnd {
		off = f.n.Size
	}
	f.n.write(off, data)
	f.m.did("write", c)
	if kill {
		dropPriv(f.n)
	}
	return len(data), nil
}

func (f *memFile) Flush(_ context.Context, c meta.Caller) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.m.did("flush", c)
	return nil
}
func (f *memFile) Fsync(context.Context, meta.Caller, bool) error { return nil }
func (f *memFile) Release(context.Context)                        {}

type osBacking struct{ *os.File }

// Backing implements backed.
func (f *memFile) Backing(context.Context) (meta.Backing, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	path, has := f.m.whole[f.n.Ino]
	if !has {
		return nil, meta.KindNotSupported.Err()
	}
	file, err := os.Open(path)
	return osBacking{file}, err
}

func (f *memFile) Fallocate(_ context.Context, _ meta.Caller, off, n int64, mode meta.FallocMode) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if mode&(meta.FallocPunchHole|meta.FallocZeroRange) != 0 {
		f.n.write(off, make([]byte, max(min(n, f.n.Size-off), 0)))
	}
	if mode&meta.FallocKeepSize == 0 {
		f.n.Size = max(f.n.Size, off+n)
	}
	return nil
}

func (f *memFile) Seek(_ context.Context, off int64, hole bool) (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if off >= f.n.Size {
		return 0, meta.KindNoDevice.Err()
	}
	at := off
	if hole {
		for ; f.n.data[at/memChunk] != nil; at = (at/memChunk + 1) * memChunk {
		}
		return min(at, f.n.Size), nil
	}
	next := int64(-1)
	for i := range f.n.data {
		if i >= at/memChunk && (next < 0 || i < next) {
			next = i
		}
	}
	if next < 0 {
		return 0, meta.KindNoDevice.Err()
	}
	return max(next*memChunk, off), nil
}

func (n *memNode) read(off int64, p []byte) {
	clear(p)
	for i := 0; i < len(p); {
		at := off + int64(i)
		size := min(len(p)-i, int(memChunk-at%memChunk))
		if c := n.data[at/memChunk]; c != nil {
			copy(p[i:i+size], c[at%memChunk:])
		}
		i += size
	}
}

func (n *memNode) write(off int64, p []byte) {
	for i := 0; i < len(p); {
		at := off + int64(i)
		if n.data == nil {
			n.data = map[int64]*[memChunk]byte{}
		}
		c := n.data[at/memChunk]
		if c == nil {
			c = new([memChunk]byte)
			n.data[at/memChunk] = c
		}
		i += copy(c[at%memChunk:], p[i:])
	}
	n.Size = max(n.Size, off+int64(len(p)))
	n.Bytes = int64(len(n.data)) * memChunk
	n.Mtime = time.Now().UnixNano()
	n.Ctime = n.Mtime
}

func (n *memNode) truncate(size int64) {
	for i := range n.data {
		if i*memChunk >= size {
			delete(n.data, i)
		} else if (i+1)*memChunk > size {
			clear(n.data[i][size-i*memChunk:])
		}
	}
	n.Size = size
	n.Bytes = int64(len(n.data)) * memChunk
}
