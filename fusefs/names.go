package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// refused answers name operations that .nexusfs is concerned by: nobody
// creates, removes or renames in it, and the name itself is taken in the root.
func refused(parent uint64, name string) fuse.Status {
	if isVirtual(parent) || parent == rootNode && name == virtualName {
		return stPerm
	}
	return ok
}

// entry finishes a request that made a name.
func (r *rawFS) entry(op string, parent uint64, out *fuse.EntryOut, a *meta.Attr, err error) fuse.Status {
	if err != nil {
		return r.status(op, parent, err)
	}
	r.fillEntry(out, a)
	return ok
}

// Mkdir makes a directory. The mode comes without the umask applied, which a
// default ACL may replace.
func (r *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if st := refused(in.NodeId, name); st != ok {
		return st
	}
	a, err := r.fs.Mkdir(r.ctx, r.calling(&in.InHeader), meta.Ino(in.NodeId), name, in.Mode, in.Umask)
	return r.entry("mkdir", in.NodeId, out, &a, err)
}

// Mknod makes a file of any type but directory and symbolic link.
func (r *rawFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if st := refused(in.NodeId, name); st != ok {
		return st
	}
	a, err := r.fs.Mknod(r.ctx, r.calling(&in.InHeader), meta.Ino(in.NodeId), name, in.Mode, in.Umask, in.Rdev)
	return r.entry("mknod", in.NodeId, out, &a, err)
}

// Symlink makes a symbolic link.
func (r *rawFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if st := refused(h.NodeId, name); st != ok {
		return st
	}
	a, err := r.fs.Symlink(r.ctx, r.calling(h), meta.Ino(h.NodeId), name, target)
	return r.entry("symlink", h.NodeId, out, &a, err)
}

// Link gives a file another name.
func (r *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if isVirtual(in.Oldnodeid) {
		return stPerm
	}
	if st := refused(in.NodeId, name); st != ok {
		return st
	}
	a, err := r.fs.Link(r.ctx, r.calling(&in.InHeader), meta.Ino(in.Oldnodeid), meta.Ino(in.NodeId), name)
	return r.entry("link", in.NodeId, out, &a, err)
}

// Unlink removes the name of anything but a directory.
func (r *rawFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if st := refused(h.NodeId, name); st != ok {
		return st
	}
	return r.status("unlink", h.NodeId, r.fs.Unlink(r.ctx, r.calling(h), meta.Ino(h.NodeId), name))
}

// Rmdir removes an empty directory.
func (r *rawFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if st := refused(h.NodeId, name); st != ok {
		return st
	}
	return r.status("rmdir", h.NodeId, r.fs.Rmdir(r.ctx, r.calling(h), meta.Ino(h.NodeId), name))
}

// Rename moves a name, replaces another, or exchanges the two.
func (r *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	if st := refused(in.NodeId, name); st != ok {
		return st
	}
	if st := refused(in.Newdir, newName); st != ok {
		return st
	}
	const known = uint32(meta.RenameNoReplace | meta.RenameExchange)
	if in.Flags&^known != 0 {
		return stInvalid
	}
	return r.status("rename", in.NodeId, r.fs.Rename(r.ctx, r.calling(&in.InHeader),
		meta.Ino(in.NodeId), name, meta.Ino(in.Newdir), newName, meta.RenameFlags(in.Flags)))
}

// Readlink returns a symbolic link's target.
func (r *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if isVirtual(h.NodeId) {
		return nil, stInvalid
	}
	target, err := r.fs.Readlink(r.ctx, meta.Ino(h.NodeId))
	if err != nil {
		return nil, r.status("readlink", h.NodeId, err)
	}
	return []byte(target), ok
}
