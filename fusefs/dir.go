package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// Offsets in a listing are the cookies of the entry before, so they hold while
// the directory changes; the two first are free for these.
const (
	offDot    = 1 // after "."
	offDotDot = 2 // after ".."
)

// Sizes that say how many entries to read for a reply of a given size.
const (
	direntBytes     = 24 + 16       // a short entry
	direntPlusBytes = 128 + 24 + 16 // one with attributes
	maxListed       = 1024          // entries read at once
)

// entryPool holds buffers of listings.
var entryPool = sync.Pool{New: func() any { return new([]meta.Entry) }}

// OpenDir opens a directory. Where this node alone can mount the store it
// answers 'not implemented': the kernel then opens directories by itself and
// keeps their listings until it is told otherwise, which spares two requests.
func (r *rawFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if r.noDirs {
		return stNotImplemented
	}
	if isVirtual(in.NodeId) {
		return ok
	}
	if err := r.fs.Fresh(r.ctx); err != nil {
		return r.status("opendir", in.NodeId, err)
	}
	r.notes.delivered(r.ctx, meta.Ino(in.NodeId))
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return ok
}

// ReadDir lists names, types and inode numbers.
func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(in, false, func(e fuse.DirEntry, _ *meta.Attr) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus lists names with attributes, each of which counts as a lookup.
func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(in, true, func(e fuse.DirEntry, a *meta.Attr) bool {
		o := out.AddDirLookupEntry(e)
		if o == nil {
			return false
		}
		if a != nil {
			if isVirtual(uint64(a.Ino)) {
				r.fillVirtualEntry(o, a)
			} else {
				r.fillEntry(o, a)
			}
		}
		return true
	})
}

// list hands entries to add, from the offset on, until add says that the reply
// is full. "." and ".." have no attributes: the kernel takes none.
func (r *rawFS) list(in *fuse.ReadIn, plus bool, add func(fuse.DirEntry, *meta.Attr) bool) fuse.Status {
	if isVirtual(in.NodeId) {
		return r.virtualList(in, plus, add)
	}
	dir := meta.Ino(in.NodeId)
	if in.Offset < offDotDot {
		a, err := r.fs.GetAttr(r.ctx, dir)
		if err != nil {
			return r.status("readdir", in.NodeId, err)
		}
		if !addDots(in.Offset, in.NodeId, uint64(a.Parent), add) {
			return ok
		}
	}
	limit := int(in.Size) / direntBytes
	if plus {
		limit = int(in.Size) / direntPlusBytes
	}
	buf := entryPool.Get().(*[]meta.Entry)
	defer func() {
		clear(*buf) // the names may be large
		*buf = (*buf)[:0]
		entryPool.Put(buf)
	}()
	var err error
	*buf, err = r.fs.ReadDir(r.ctx, dir, max(in.Offset, offDotDot), min(max(limit, 1), maxListed), plus, (*buf)[:0])
	if err != nil {
		return r.status("readdir", in.NodeId, err)
	}
	entries := *buf
	for i := range entries {
		e := &entries[i]
		off := e.Cookie
		if i+1 < len(entries) && entries[i+1].Cookie == off {
			// More names of this cookie follow: who goes on from here must get
			// the whole group again rather than lose its rest.
			off--
		}
		if !add(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Attr.Ino), Mode: e.Attr.Mode, Off: off}, &e.Attr) {
			break
		}
	}
	return ok
}

// addDots adds "." and ".." where the offset asks for them.
func addDots(off, self, parent uint64, add func(fuse.DirEntry, *meta.Attr) bool) bool {
	if off < offDot && !add(fuse.DirEntry{Name: ".", Ino: self, Mode: meta.ModeDir, Off: offDot}, nil) {
		return false
	}
	return add(fuse.DirEntry{Name: "..", Ino: parent, Mode: meta.ModeDir, Off: offDotDot}, nil)
}

// ReleaseDir has nothing to let go of: a listing's state is its offset.
func (r *rawFS) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir makes a directory's names durable.
func (r *rawFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isVirtual(in.NodeId) {
		return ok
	}
	return r.status("fsyncdir", in.NodeId, r.fs.SyncDir(r.ctx, meta.Ino(in.NodeId)))
}
