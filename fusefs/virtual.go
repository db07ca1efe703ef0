package fusefs

import (
	"context"
	"strconv"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// The directory .nexusfs exists in the mount alone: it is found by name and
// never listed, and nothing in it can be changed.
//
//	.nexusfs/status             what 'nexusfs status --json' shows
//	.nexusfs/versions/PATH      a directory: the same names as in PATH
//	.nexusfs/versions/PATH/N    version N of the file PATH
//
// Node numbers: bit 63 says virtual, bits 60-62 what it is, the rest the inode
// number that it is about or, for a version's file, the place in a table.
const (
	virtualName = ".nexusfs"
	virtualBit  = uint64(1) << 63
	kindShift   = 60
	kindFixed   = uint64(0) // the two entries with fixed numbers
	kindTree    = uint64(1) // versions/PATH
	kindVersion = uint64(2) // versions/PATH/N
	payloadMask = uint64(1)<<kindShift - 1

	nodeTop    = virtualBit | 1 // .nexusfs
	nodeStatus = virtualBit | 2 // .nexusfs/status
	nodeTrees  = virtualBit | kindTree<<kindShift | rootNode

	statusName   = "status"
	versionsName = "versions"
)

func isVirtual(node uint64) bool { return node&virtualBit != 0 }

func splitNode(node uint64) (kind, payload uint64) {
	return node &^ virtualBit >> kindShift, node & payloadMask
}

func treeNode(ino meta.Ino) uint64 { return virtualBit | kindTree<<kindShift | uint64(ino) }

// virtualFile is an open file under .nexusfs.
type virtualFile interface {
	Read(ctx context.Context, off int64, p []byte) (int, error)
	Close() error
}

// versionKey names one version of one file.
type versionKey struct {
	ino meta.Ino
	n   int64
}

// virtual is the state of .nexusfs: the version files that the kernel knows.
type virtual struct {
	status  func() ([]byte, error) // nil: there is no status file
	started int64                  // time of the fixed entries, ns

	mu    sync.Mutex
	next  uint64                      // guarded by mu
	nodes map[uint64]*versionNode     // guarded by mu; by payload
	index map[versionKey]*versionNode // guarded by mu
}

// versionNode is a version file that the kernel has looked up.
type versionNode struct {
	versionKey
	node    uint64
	lookups uint64 // guarded by virtual.mu
}

// version returns the node of a version file and counts a lookup.
func (v *virtual) version(k versionKey) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.index[k]
	if n == nil {
		if v.index == nil {
			v.index, v.nodes = make(map[versionKey]*versionNode), make(map[uint64]*versionNode)
		}
		v.next++
		n = &versionNode{versionKey: k, node: virtualBit | kindVersion<<kindShift | v.next}
		v.index[k], v.nodes[v.next] = n, n
	}
	n.lookups++
	return n.node
}

// find returns what a version file's node stands for.
func (v *virtual) find(payload uint64) (versionKey, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.nodes[payload]
	if n == nil {
		return versionKey{}, false
	}
	return n.versionKey, true
}

func (v *virtual) forget(node, lookups uint64) {
	kind, payload := splitNode(node)
	if kind != kindVersion {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.nodes[payload]
	if n == nil {
		return
	}
	if n.lookups > lookups {
		n.lookups -= lookups
		return
	}
	delete(v.nodes, payload)
	delete(v.index, n.versionKey)
}

// aclOf returns the inode whose ACL decides who may use a node, 0 without one.
func (v *virtual) aclOf(node uint64) meta.Ino {
	switch kind, payload := splitNode(node); kind {
	case kindTree:
		return meta.Ino(payload)
	case kindVersion:
		if k, found := v.find(payload); found {
			return k.ino
		}
	}
	return 0
}

// fixed returns the attributes of what belongs to nobody's file.
func (v *virtual) fixed(node uint64, mode uint32) meta.Attr {
	return meta.Attr{Ino: meta.Ino(node), Mode: mode, Nlink: 1, Parent: meta.RootIno,
		Atime: v.started, Mtime: v.started, Ctime: v.started, Btime: v.started}
}

// attr returns the attributes of a virtual node.
func (v *virtual) attr(r *rawFS, node uint64) (meta.Attr, fuse.Status) {
	kind, payload := splitNode(node)
	switch {
	case node == nodeTop:
		return v.fixed(node, meta.ModeDir|0o555), ok
	case node == nodeStatus && v.status != nil:
		return v.fixed(node, meta.ModeRegular|0o444), ok
	case kind == kindTree:
		a, err := r.fs.GetAttr(r.ctx, meta.Ino(payload))
		if err != nil {
			return meta.Attr{}, r.status("versions", payload, err)
		}
		return treeAttr(a), ok
	case kind == kindVersion:
		k, found := v.find(payload)
		if !found {
			return meta.Attr{}, stNotExist
		}
		a, err := r.fs.GetAttr(r.ctx, k.ino)
		if err != nil {
			return meta.Attr{}, r.status("versions", uint64(k.ino), err)
		}
		ver, st := r.versionOf(k)
		if st != ok {
			return meta.Attr{}, st
		}
		return versionAttr(a, ver, node), ok
	}
	return meta.Attr{}, stNotExist
}

// treeAttr shows a directory as itself without the right to write, and a file
// as a directory of its versions, whose numbers are no secret to who may walk
// there.
func treeAttr(a meta.Attr) meta.Attr {
	parent := treeNode(a.Parent)
	mode := meta.ModeDir | 0o555
	if a.IsDir() {
		mode = meta.ModeDir | a.Mode&0o555
		if a.Ino == meta.RootIno {
			parent = nodeTop
		}
	} else {
		parent = nodeTrees
		a.Flags &^= meta.FlagACL
	}
	a.Ino, a.Mode, a.Nlink, a.Size, a.Bytes, a.Parent = meta.Ino(treeNode(a.Ino)), mode, 1, 0, 0, meta.Ino(parent)
	return a
}

// versionAttr shows a version with the rights that its file has now.
func versionAttr(a meta.Attr, ver meta.Version, node uint64) meta.Attr {
	a.Ino, a.Mode, a.Nlink = meta.Ino(node), meta.ModeRegular|a.Mode&0o444, 1
	a.Size, a.Bytes = ver.Size, ver.Size
	a.Atime, a.Mtime, a.Ctime, a.Btime = ver.Time, ver.Time, ver.Time, ver.Time
	return a
}

// versionOf finds one version in a file's list.
func (r *rawFS) versionOf(k versionKey) (meta.Version, fuse.Status) {
	all, err := r.fs.Versions(r.ctx, k.ino)
	if err != nil {
		return meta.Version{}, r.status("versions", uint64(k.ino), err)
	}
	for _, ver := range all {
		if ver.N == k.n {
			return ver, ok
		}
	}
	return meta.Version{}, stNotExist
}

// fillVirtualEntry answers a lookup below .nexusfs. Nothing there is kept by
// the kernel, as it changes with the tree.
func (r *rawFS) fillVirtualEntry(out *fuse.EntryOut, a *meta.Attr) {
	out.NodeId = uint64(a.Ino)
	fillAttr(&out.Attr, a)
}

func (r *rawFS) virtualAttr(node uint64, out *fuse.AttrOut) fuse.Status {
	a, st := r.virtual.attr(r, node)
	if st == ok {
		fillAttr(&out.Attr, &a)
	}
	return st
}

// virtualLookup finds .nexusfs in the root, and names below it.
func (r *rawFS) virtualLookup(parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	node, st := uint64(0), ok
	switch {
	case !isVirtual(parent):
		node = nodeTop
	case name == ".":
		node = parent
	case parent == nodeTop && name == statusName && r.virtual.status != nil:
		node = nodeStatus
	case parent == nodeTop && name == versionsName:
		node = nodeTrees
	default:
		node, st = r.treeLookup(parent, name)
	}
	if st != ok {
		return st
	}
	a, st := r.virtual.attr(r, node)
	if st != ok {
		r.virtual.forget(node, 1)
		return st
	}
	r.fillVirtualEntry(out, &a)
	return ok
}

// treeLookup finds PATH/NAME below versions/PATH, or version N of the file PATH.
func (r *rawFS) treeLookup(parent uint64, name string) (uint64, fuse.Status) {
	kind, payload := splitNode(parent)
	if kind != kindTree {
		return 0, stNotExist
	}
	at, err := r.fs.GetAttr(r.ctx, meta.Ino(payload))
	if err != nil {
		return 0, r.status("versions", payload, err)
	}
	if at.IsDir() {
		a, err := r.fs.Lookup(r.ctx, at.Ino, name)
		if err != nil {
			return 0, r.status("versions", payload, err)
		}
		if !a.IsDir() && !a.IsRegular() {
			return 0, stNotExist // only files have versions
		}
		return treeNode(a.Ino), ok
	}
	n, err := strconv.ParseInt(name, 10, 64)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != name {
		return 0, stNotExist
	}
	return r.virtual.version(versionKey{at.Ino, n}), ok
}

// virtualOpen opens a file under .nexusfs for reading.
func (r *rawFS) virtualOpen(in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !readOnly(in.Flags) || in.Flags&unix.O_TRUNC != 0 {
		return stReadOnly
	}
	of := &openFile{node: in.NodeId}
	if in.NodeId == nodeStatus && r.virtual.status != nil {
		text, err := r.virtual.status()
		if err != nil {
			return r.status("status", in.NodeId, err)
		}
		// Its size is not known before it is read, so reads go past the kernel's cache.
		of.virtual = statusFile(text)
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	} else {
		kind, payload := splitNode(in.NodeId)
		k, found := r.virtual.find(payload)
		if kind != kindVersion || !found {
			return stNotExist
		}
		f, err := r.fs.OpenVersion(r.ctx, k.ino, k.n)
		if err != nil {
			return r.status("open version", uint64(k.ino), err)
		}
		of.virtual = f
	}
	fh, fits := r.files.add(of)
	if !fits {
		of.close(r)
		return stTooManyFiles
	}
	out.Fh = fh
	out.OpenFlags |= fuse.FOPEN_NOFLUSH
	if in.NodeId != nodeStatus && r.pass.wantsVersion() {
		r.pass.open(r.ctx, of, of.virtual, out)
	}
	return ok
}

// statusFile is the status as of its opening.
type statusFile []byte

func (s statusFile) Read(_ context.Context, off int64, p []byte) (int, error) {
	if off >= int64(len(s)) {
		return 0, nil
	}
	return copy(p, s[off:]), nil
}

func (s statusFile) Close() error { return nil }

// virtualList lists a directory below .nexusfs.
func (r *rawFS) virtualList(in *fuse.ReadIn, plus bool, add func(fuse.DirEntry, *meta.Attr) bool) fuse.Status {
	dir, st := r.virtual.attr(r, in.NodeId)
	if st != ok {
		return st
	}
	if !dir.IsDir() {
		return stNotDir
	}
	if in.Offset < offDotDot && !addDots(in.Offset, in.NodeId, uint64(dir.Parent), add) {
		return ok
	}
	if in.NodeId == nodeTop {
		return r.listTop(in.Offset, add)
	}
	_, payload := splitNode(in.NodeId)
	at, err := r.fs.GetAttr(r.ctx, meta.Ino(payload))
	if err != nil {
		return r.status("versions", payload, err)
	}
	if at.IsDir() {
		return r.listTree(in, at.Ino, plus, add)
	}
	return r.listVersions(in, at, plus, add)
}

func (r *rawFS) listTop(off uint64, add func(fuse.DirEntry, *meta.Attr) bool) fuse.Status {
	for i, e := range []struct {
		name string
		node uint64
	}{{statusName, nodeStatus}, {versionsName, nodeTrees}} {
		next := uint64(i) + meta.FirstCookie
		if next <= off {
			continue
		}
		a, st := r.virtual.attr(r, e.node)
		if st != ok {
			continue // no status here
		}
		if !add(fuse.DirEntry{Name: e.name, Ino: e.node, Mode: a.Mode, Off: next}, &a) {
			break
		}
	}
	return ok
}

// listTree lists the directories and files of a directory, each as a directory.
func (r *rawFS) listTree(in *fuse.ReadIn, dir meta.Ino, plus bool, add func(fuse.DirEntry, *meta.Attr) bool) fuse.Status {
	after := max(in.Offset, offDotDot)
	for {
		entries, err := r.fs.ReadDir(r.ctx, dir, after, maxListed/4, plus, nil)
		if err != nil {
			return r.status("versions", uint64(dir), err)
		}
		if len(entries) == 0 {
			return ok
		}
		for i := range entries {
			e := &entries[i]
			after = e.Cookie
			if !e.Attr.IsDir() && !e.Attr.IsRegular() {
				continue
			}
			off := e.Cookie
			if i+1 < len(entries) && entries[i+1].Cookie == off {
				off--
			}
			a := e.Attr
			if plus {
				a = treeAttr(a)
			}
			if !add(fuse.DirEntry{Name: e.Name, Ino: treeNode(e.Attr.Ino), Mode: meta.ModeDir, Off: off}, &a) {
				return ok
			}
		}
	}
}

// listVersions lists the numbers of a file's versions.
func (r *rawFS) listVersions(in *fuse.ReadIn, at meta.Attr, plus bool, add func(fuse.DirEntry, *meta.Attr) bool) fuse.Status {
	all, err := r.fs.Versions(r.ctx, at.Ino)
	if err != nil {
		return r.status("versions", uint64(at.Ino), err)
	}
	for _, ver := range all {
		off := uint64(ver.N) + offDotDot
		if off <= in.Offset {
			continue
		}
		node := uint64(fuse.FUSE_UNKNOWN_INO)
		var a *meta.Attr
		if plus {
			node = r.virtual.version(versionKey{at.Ino, ver.N})
			va := versionAttr(at, ver, node)
			a = &va
		}
		if !add(fuse.DirEntry{Name: strconv.FormatInt(ver.N, 10), Ino: node, Mode: meta.ModeRegular, Off: off}, a) {
			if plus {
				r.virtual.forget(node, 1)
			}
			break
		}
	}
	return ok
}
