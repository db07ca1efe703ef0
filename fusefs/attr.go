package fusefs

import (
	"math"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// What stat(2) shows beside what meta knows.
const (
	blockSize     = 4096 // preferred size of requests, as on ext4
	dirSize       = 4096 // shown as a directory's size, as on ext4
	sectorSize    = 512  // unit of st_blocks
	nanos         = int64(time.Second)
	statxBasic    = 0x7ff                   // STATX_BASIC_STATS
	statxBirth    = 0x800                   // STATX_BTIME
	maxTimeSecond = math.MaxInt64/nanos - 1 // later times do not fit nanoseconds in 64 bits: 2262
	minTimeSecond = math.MinInt64/nanos + 1
)

// ttl is a time-out as the protocol carries it.
type ttl struct {
	sec  uint64
	nsec uint32
}

func newTTL(d time.Duration) ttl {
	d = max(d, 0)
	return ttl{uint64(d / time.Second), uint32(d % time.Second)}
}

func (t ttl) entry(o *fuse.EntryOut) { o.EntryValid, o.EntryValidNsec = t.sec, t.nsec }
func (t ttl) attr(o *fuse.EntryOut)  { o.AttrValid, o.AttrValidNsec = t.sec, t.nsec }

// fillAttr writes a as the kernel reads it.
func fillAttr(o *fuse.Attr, a *meta.Attr) {
	o.Ino = uint64(a.Ino)
	o.Size = uint64(a.Size)
	o.Blocks = uint64((a.Bytes + sectorSize - 1) / sectorSize)
	o.Atime, o.Atimensec = split(a.Atime)
	o.Mtime, o.Mtimensec = split(a.Mtime)
	o.Ctime, o.Ctimensec = split(a.Ctime)
	o.Mode = a.Mode
	o.Nlink = a.Nlink
	o.Uid, o.Gid = a.UID, a.GID
	o.Rdev = a.Rdev
	o.Blksize = blockSize
	if a.IsDir() {
		o.Size = dirSize
	}
}

// split turns nanoseconds since 1970 into seconds and a positive rest.
func split(ns int64) (sec uint64, nsec uint32) {
	s, n := ns/nanos, ns%nanos
	if n < 0 {
		s, n = s-1, n+nanos
	}
	return uint64(s), uint32(n)
}

// join is the reverse of split; what 64 bits of nanoseconds do not hold is
// clamped, as a filesystem with a smaller range of times does.
func join(sec uint64, nsec uint32) int64 {
	s := min(max(int64(sec), minTimeSecond), maxTimeSecond)
	return s*nanos + int64(nsec)
}

// maxDirTTL bounds how long the kernel keeps a directory's attributes. A name
// operation changes them without an answer that carries them: the kernel marks
// them as stale by itself, but an answer to stat(2) that was on its way while
// the operation went on undoes that mark. Names are kept for as long as the
// rest.
const maxDirTTL = time.Second

// attrTTL is how long the kernel may keep a. Attributes of a file with staged
// writes are not final (their commit decides about blocks and times), so they
// are asked for again.
func (r *rawFS) attrTTL(a *meta.Attr) ttl {
	switch {
	case a.IsRegular() && r.dirty.has(uint64(a.Ino)):
		return ttl{}
	case r.shared():
		return sharedTTL
	case a.IsDir():
		return r.cacheDir
	}
	return r.cache
}

// sharedTTL is how long the kernel may keep anything while other daemons change
// the zone.
var sharedTTL = newTTL(meta.KernelTTLShared)

// shared reports whether what is answered holds for a moment only.
func (r *rawFS) shared() bool { return r.several && (r.noEpoch || r.fs.Shared()) }

// nameTTL is how long the kernel may keep names.
func (r *rawFS) nameTTL() ttl {
	if r.shared() {
		return sharedTTL
	}
	return r.cache
}

func (r *rawFS) fillEntry(o *fuse.EntryOut, a *meta.Attr) {
	o.NodeId = uint64(a.Ino)
	r.nameTTL().entry(o)
	r.attrTTL(a).attr(o)
	fillAttr(&o.Attr, a)
}

func (r *rawFS) fillAttrOut(o *fuse.AttrOut, a *meta.Attr) {
	t := r.attrTTL(a)
	o.AttrValid, o.AttrValidNsec = t.sec, t.nsec
	fillAttr(&o.Attr, a)
}

// GetAttr answers stat(2) and its kin.
func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isVirtual(in.NodeId) {
		return r.virtualAttr(in.NodeId, out)
	}
	a, err := r.fs.GetAttr(r.ctx, meta.Ino(in.NodeId))
	if err != nil {
		return r.status("getattr", in.NodeId, err)
	}
	r.fillAttrOut(out, &a)
	return ok
}

// Statx is GetAttr with the birth time; the kernel asks it only where somebody
// wants to know that.
func (r *rawFS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var a meta.Attr
	var keep ttl
	if isVirtual(in.NodeId) {
		va, st := r.virtual.attr(r, in.NodeId)
		if st != ok {
			return st
		}
		a = va
	} else {
		ta, err := r.fs.GetAttr(r.ctx, meta.Ino(in.NodeId))
		if err != nil {
			return r.status("statx", in.NodeId, err)
		}
		a, keep = ta, r.attrTTL(&ta)
	}
	var o fuse.Attr
	fillAttr(&o, &a)
	out.AttrValid, out.AttrValidNsec = keep.sec, keep.nsec
	x := &out.Statx
	x.Mask = statxBasic | statxBirth
	x.Blksize, x.Nlink, x.Uid, x.Gid = o.Blksize, o.Nlink, o.Uid, o.Gid
	x.Mode, x.Ino, x.Size, x.Blocks = uint16(o.Mode), o.Ino, o.Size, o.Blocks
	x.Atime.Sec, x.Atime.Nsec = o.Atime, o.Atimensec
	x.Mtime.Sec, x.Mtime.Nsec = o.Mtime, o.Mtimensec
	x.Ctime.Sec, x.Ctime.Nsec = o.Ctime, o.Ctimensec
	x.Btime.Sec, x.Btime.Nsec = split(a.Btime)
	// The kernel's own encoding of a device number: 12 bits major, 20 bits minor.
	x.RdevMajor = o.Rdev & 0xfff00 >> 8
	x.RdevMinor = o.Rdev&0xff | o.Rdev>>12&0xfff00
	return ok
}

// SetAttr answers chmod, chown, truncate and utimensat.
func (r *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isVirtual(in.NodeId) {
		return stReadOnly
	}
	var h file
	if in.Valid&fuse.FATTR_FH != 0 {
		if of := r.files.get(in.Fh); of != nil {
			h = of.file
		}
	}
	ino := meta.Ino(in.NodeId)
	set := setAttr(in)
	if set.Valid == 0 && in.InHeader.Uid != 0 {
		// A request without content comes before a write or fallocate by
		// somebody who must not keep set-user-id bits; root may.
		set.Valid = meta.KillPriv
	}
	var a meta.Attr
	var err error
	switch {
	case set.Valid == 0:
		a, err = r.fs.GetAttr(r.ctx, ino)
	case set.Valid&meta.SetSize != 0 && in.Size > math.MaxInt64:
		return stTooBig
	default:
		a, err = r.fs.SetAttr(r.ctx, r.calling(&in.InHeader), ino, set, h)
	}
	if err != nil {
		return r.status("setattr", in.NodeId, err)
	}
	r.fillAttrOut(out, &a)
	return ok
}

// setAttrBits pairs the protocol's bits with meta's.
var setAttrBits = [...]struct{ wire, meta uint32 }{
	{fuse.FATTR_MODE, meta.SetMode},
	{fuse.FATTR_UID, meta.SetUID},
	{fuse.FATTR_GID, meta.SetGID},
	{fuse.FATTR_SIZE, meta.SetSize},
	{fuse.FATTR_ATIME, meta.SetAtime},
	{fuse.FATTR_MTIME, meta.SetMtime},
	{fuse.FATTR_ATIME_NOW, meta.SetAtimeNow},
	{fuse.FATTR_MTIME_NOW, meta.SetMtimeNow},
	{fuse.FATTR_CTIME, meta.SetCtime},
	{fuse.FATTR_KILL_SUIDGID, meta.KillPriv},
}

func setAttr(in *fuse.SetAttrIn) meta.SetAttr {
	s := meta.SetAttr{
		Mode: in.Mode & meta.ModePerm, UID: in.Uid, GID: in.Gid, Size: int64(in.Size),
		Atime: join(in.Atime, in.Atimensec),
		Mtime: join(in.Mtime, in.Mtimensec),
		Ctime: join(in.Ctime, in.Ctimensec),
	}
	for _, b := range setAttrBits {
		if in.Valid&b.wire != 0 {
			s.Valid |= b.meta
		}
	}
	return s
}

// StatFs answers statfs(2).
func (r *rawFS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	s, err := r.fs.StatFS(r.ctx)
	if err != nil {
		return r.status("statfs", in.NodeId, err)
	}
	out.Blocks, out.Bfree, out.Bavail = s.Blocks, s.Free, s.Avail
	out.Files, out.Ffree = s.Files, s.FilesFree
	out.Bsize, out.Frsize, out.NameLen = s.BlockSize, s.BlockSize, s.NameMax
	return ok
}
