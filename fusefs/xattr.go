package fusefs

import (
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// Attributes that nexusfs answers itself. They are never listed, so that
// programs which copy all attributes do not meet them.
const (
	xattrOwn     = "user.nexusfs."
	xattrRev     = "user.nexusfs.rev"     // revision of the last change to the inode
	xattrVersion = "user.nexusfs.version" // number of the newest version of the content
	xattrIno     = "user.nexusfs.ino"     // inode number
	xattrStore   = "user.nexusfs.store"   // what is mounted here
	xattrControl = "user.nexusfs.control" // socket of the daemon that serves this mount
)

// knownXattr says whether a name belongs to a namespace that files have. The
// kernel checks who may use which (xattr(7)).
func knownXattr(name string) bool {
	switch name {
	case "system.posix_acl_access", "system.posix_acl_default":
		return true
	case "user.", "trusted.", "security.":
		return false
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "trusted.")
}

// GetXAttr answers getxattr(2). An empty dest asks for the size alone.
func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	ino, st := r.xattrInode(h.NodeId, name)
	if st != ok {
		return 0, st
	}
	if strings.HasPrefix(name, xattrOwn) {
		value, st := r.ownXattr(ino, name)
		if st != ok {
			return 0, st
		}
		return reply(dest, value)
	}
	if !knownXattr(name) {
		return 0, stNotSupported
	}
	value, err := r.fs.GetXattr(r.ctx, ino, name)
	if err != nil {
		return 0, r.status("getxattr", h.NodeId, err)
	}
	return reply(dest, value)
}

// xattrInode says whose attributes a node shows. Virtual nodes have none of
// their own, but the ACL of the file that they belong to decides who may read.
func (r *rawFS) xattrInode(node uint64, name string) (meta.Ino, fuse.Status) {
	if !isVirtual(node) {
		return meta.Ino(node), ok
	}
	switch {
	case name == "system.posix_acl_access":
		if ino := r.virtual.aclOf(node); ino != 0 {
			return ino, ok
		}
	case name == xattrStore || name == xattrControl:
		return meta.RootIno, ok
	}
	return 0, stNoData
}

// ownXattr answers the attributes under user.nexusfs.
func (r *rawFS) ownXattr(ino meta.Ino, name string) (string, fuse.Status) {
	switch name {
	case xattrStore:
		return text(r.store)
	case xattrControl:
		return text(r.control)
	case xattrIno:
		return strconv.FormatUint(uint64(ino), 10), ok
	case xattrRev, xattrVersion:
		a, err := r.fs.GetAttr(r.ctx, ino)
		switch {
		case err != nil:
			return "", r.status("getxattr", uint64(ino), err)
		case name == xattrRev:
			return strconv.FormatInt(int64(a.Rev), 10), ok
		case a.Version > 0:
			return strconv.FormatInt(a.Version, 10), ok
		}
	}
	return "", stNoData
}

func text(s string) (string, fuse.Status) {
	if s == "" {
		return "", stNoData
	}
	return s, ok
}

// reply copies a value into dest, or says how large dest must be.
func reply[T string | []byte](dest []byte, value T) (uint32, fuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), stRange
	}
	return uint32(copy(dest, value)), ok
}

// ListXAttr answers listxattr(2). As elsewhere on Linux only root sees that
// there are trusted attributes.
func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if isVirtual(h.NodeId) {
		return 0, ok
	}
	names, err := r.fs.ListXattr(r.ctx, meta.Ino(h.NodeId))
	if err != nil {
		return 0, r.status("listxattr", h.NodeId, err)
	}
	size := 0
	for _, n := range names {
		if h.Uid != 0 && strings.HasPrefix(n, "trusted.") {
			continue
		}
		if end := size + len(n) + 1; end <= len(dest) {
			copy(dest[size:], n)
			dest[end-1] = 0
		}
		size += len(n) + 1
	}
	if size > len(dest) {
		return uint32(size), stRange
	}
	return uint32(size), ok
}

// SetXAttr answers setxattr(2) and the setting of ACLs.
func (r *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if st := settable(in.NodeId, name); st != ok {
		return st
	}
	flags := meta.XattrFlags(in.Flags) & (meta.XattrCreate | meta.XattrReplace)
	if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		flags |= meta.XattrKillSgid
	}
	return r.status("setxattr", in.NodeId,
		r.fs.SetXattr(r.ctx, r.calling(&in.InHeader), meta.Ino(in.NodeId), name, value, flags))
}

// RemoveXAttr answers removexattr(2).
func (r *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if st := settable(h.NodeId, name); st != ok {
		return st
	}
	return r.status("removexattr", h.NodeId, r.fs.RemoveXattr(r.ctx, r.calling(h), meta.Ino(h.NodeId), name))
}

func settable(node uint64, name string) fuse.Status {
	switch {
	case isVirtual(node), strings.HasPrefix(name, xattrOwn):
		return stPerm
	case !knownXattr(name):
		return stNotSupported
	}
	return ok
}
