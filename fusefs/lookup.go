package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// Lookup finds a name. "." and ".." come from an NFS server or from
// open_by_handle_at(2), which know a file by its number alone.
func (r *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if isVirtual(h.NodeId) || h.NodeId == rootNode && name == virtualName {
		return r.virtualLookup(h.NodeId, name, out)
	}
	var a meta.Attr
	var err error
	switch name {
	case ".":
		a, err = r.fs.GetAttr(r.ctx, meta.Ino(h.NodeId))
	case "..":
		if a, err = r.fs.GetAttr(r.ctx, meta.Ino(h.NodeId)); err == nil {
			a, err = r.fs.GetAttr(r.ctx, a.Parent)
		}
	default:
		a, err = r.fs.Lookup(r.ctx, meta.Ino(h.NodeId), name)
	}
	if err != nil {
		st := r.status("lookup", h.NodeId, err)
		if st == stNotExist && r.absent != (ttl{}) {
			// Node 0 is 'not there' with a time-out.
			out.NodeId = 0
			r.absent.entry(out)
			return ok
		}
		return st
	}
	r.fillEntry(out, &a)
	return ok
}
