package fusefs

import (
	"context"
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// backed is an open file whose whole content may lie in one file of the
// content store, which the kernel can then read without us.
type backed interface {
	// Backing opens that file, verified. KindNotSupported when there is none.
	Backing(ctx context.Context) (meta.Backing, error)
}

// passthrough lets the kernel read files that cannot change from their backing
// files (P27): versions, and everything on a read-only mount. The kernel binds
// an inode to one way of reading while it is open, so the first open decides
// and the others follow.
type passthrough struct {
	server *fuse.Server // nil: the kernel or our rights do not allow it
	tree   bool         // files of the tree too: the mount is read-only

	mu    sync.Mutex
	nodes map[uint64]*backingFile // guarded by mu; inodes that are open
}

// backingFile is how an open inode is read.
type backingFile struct {
	node uint64
	id   int32        // the kernel's number for file; 0: through requests and the page cache
	file meta.Backing // nil with id 0
	refs int          // guarded by passthrough.mu
}

// init switches passthrough on where the kernel has it and we may use it.
func (p *passthrough) init(s *Server) {
	if os.Geteuid() == 0 && s.fuse.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH != 0 {
		p.server, p.tree = s.fuse, s.set.ReadOnly
		p.nodes = make(map[uint64]*backingFile)
	}
}

// wantsTree reports whether files of the tree may be read by the kernel itself.
func (p *passthrough) wantsTree() bool { return p.server != nil && p.tree }

// wantsVersion reports whether versions may.
func (p *passthrough) wantsVersion() bool { return p.server != nil }

// open decides how an inode that was just opened for reading is read, and
// tells the kernel in out. It may read the whole file to verify it.
func (p *passthrough) open(ctx context.Context, of *openFile, src any, out *fuse.OpenOut) {
	b := p.join(of.node)
	if b == nil {
		b = p.first(&backingFile{node: of.node}, p.look(ctx, src))
	}
	of.backing = b
	if b.id != 0 {
		out.OpenFlags = out.OpenFlags&fuse.FOPEN_NOFLUSH | fuse.FOPEN_PASSTHROUGH
		out.BackingID = b.id
	}
}

// look opens the backing file, nil when there is none. Damage is left for the
// reads to find: they say where it is.
func (p *passthrough) look(ctx context.Context, src any) meta.Backing {
	if s, can := src.(backed); can {
		if file, err := s.Backing(ctx); err == nil {
			return file
		}
	}
	return nil
}

// join returns how an inode is read by those who have it open, nil when nobody has.
func (p *passthrough) join(node uint64) *backingFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.nodes[node]
	if b != nil {
		b.refs++
	}
	return b
}

// first registers b unless somebody was faster; file is taken over.
func (p *passthrough) first(b *backingFile, file meta.Backing) *backingFile {
	if file != nil {
		id, errno := p.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(file.Fd())})
		if errno == 0 {
			b.id, b.file = id, file
		} else {
			file.Close()
		}
	}
	p.mu.Lock()
	old := p.nodes[b.node]
	if old == nil {
		b.refs = 1
		p.nodes[b.node] = b
		p.mu.Unlock()
		return b
	}
	old.refs++
	p.mu.Unlock()
	p.drop(b)
	return old
}

// release is the counterpart of open.
func (p *passthrough) release(b *backingFile) {
	p.mu.Lock()
	b.refs--
	last := b.refs == 0
	if last {
		delete(p.nodes, b.node)
	}
	p.mu.Unlock()
	if last {
		p.drop(b)
	}
}

func (p *passthrough) drop(b *backingFile) {
	if b.id != 0 {
		p.server.UnregisterBackingFd(b.id)
		b.file.Close()
	}
}

// readOnly reports whether open(2)'s flags ask for reading alone.
func readOnly(flags uint32) bool { return flags&unix.O_ACCMODE == unix.O_RDONLY }
