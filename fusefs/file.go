package fusefs

import (
	"math"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// openFlags translates open(2)'s flags as they come in OPEN and CREATE.
func openFlags(flags, open uint32) meta.OpenFlags {
	access := flags & unix.O_ACCMODE
	return meta.OpenFlags{
		Read:     access == unix.O_RDONLY || access == unix.O_RDWR,
		Write:    access == unix.O_WRONLY || access == unix.O_RDWR,
		Append:   flags&unix.O_APPEND != 0,
		Trunc:    flags&unix.O_TRUNC != 0,
		Excl:     flags&unix.O_EXCL != 0,
		Sync:     flags&unix.O_SYNC == unix.O_SYNC,
		DSync:    flags&unix.O_DSYNC != 0,
		KillPriv: open&fuse.OPEN_KILL_SUIDGID != 0,
	}
}

// Create makes and opens a file that the kernel believes to be absent.
func (r *rawFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if st := refused(in.NodeId, name); st != ok {
		return st
	}
	args := meta.CreateArgs{Mode: in.Mode, Umask: in.Umask, Flags: openFlags(in.Flags, in.OpenFlags)}
	a, f, err := r.fs.Create(r.ctx, r.calling(&in.InHeader), meta.Ino(in.NodeId), name, args)
	if err != nil {
		return r.status("create", in.NodeId, err)
	}
	return r.created(in.Flags, &a, f, out)
}

// Tmpfile makes and opens a file without a name (O_TMPFILE).
func (r *rawFS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if isVirtual(in.NodeId) {
		return stPerm
	}
	args := meta.CreateArgs{Mode: in.Mode, Umask: in.Umask, Flags: openFlags(in.Flags, in.OpenFlags)}
	a, f, err := r.fs.Tmpfile(r.ctx, r.calling(&in.InHeader), meta.Ino(in.NodeId), args)
	if err != nil {
		return r.status("tmpfile", in.NodeId, err)
	}
	return r.created(in.Flags, &a, f, out)
}

func (r *rawFS) created(flags uint32, a *meta.Attr, f file, out *fuse.CreateOut) fuse.Status {
	r.fillEntry(&out.EntryOut, a)
	return r.opened(flags, &openFile{file: f, node: uint64(a.Ino)}, &out.OpenOut)
}

// opened gives an open file its number and tells the kernel how to treat it:
// pages stay, as invalidations are explicit, and the close of a file that was
// only read need not be told (the locks are the kernel's own, P21).
func (r *rawFS) opened(flags uint32, of *openFile, out *fuse.OpenOut) fuse.Status {
	fh, fits := r.files.add(of)
	if !fits {
		of.close(r)
		return stTooManyFiles
	}
	out.Fh = fh
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	if readOnly(flags) {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
	return ok
}

// Open opens a file that exists.
func (r *rawFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isVirtual(in.NodeId) {
		return r.virtualOpen(in, out)
	}
	ino := meta.Ino(in.NodeId)
	f, err := r.fs.OpenFile(r.ctx, r.caller(&in.InHeader), ino, openFlags(in.Flags, in.Mode))
	if err != nil {
		return r.status("open", in.NodeId, err)
	}
	of := &openFile{file: f, node: in.NodeId}
	if st := r.opened(in.Flags, of, out); st != ok {
		return st
	}
	// A truncating open holds the kernel's writes back until it is answered,
	// and an invalidation may have to write pages first: waiting here for it
	// would never end. The kernel drops the pages of such an open itself.
	if in.Flags&unix.O_TRUNC == 0 {
		r.notes.delivered(r.ctx, ino)
	}
	if r.pass.wantsTree() {
		r.pass.open(r.ctx, of, f, out)
	}
	return ok
}

// data is a ReadResult that is used again, so that a read allocates nothing.
type data struct{ b []byte }

var dataPool = sync.Pool{New: func() any { return new(data) }}

func (d *data) Bytes([]byte) ([]byte, fuse.Status) { return d.b, ok }
func (d *data) Size() int                          { return len(d.b) }
func (d *data) Done()                              { d.b = nil; dataPool.Put(d) }

// Read reads from an open file. Fewer bytes than asked for are the file's end.
func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	of := r.files.get(in.Fh)
	if of == nil {
		return nil, stBadHandle
	}
	if in.Offset > math.MaxInt64 {
		return nil, stInvalid
	}
	var n int
	var err error
	if of.file != nil {
		n, err = of.file.Read(r.ctx, int64(in.Offset), buf)
	} else {
		n, err = of.virtual.Read(r.ctx, int64(in.Offset), buf)
	}
	if err != nil {
		return nil, r.status("read", in.NodeId, err)
	}
	d := dataPool.Get().(*data)
	d.b = buf[:n]
	return d, ok
}

// Write writes to an open file; the handle copies the bytes. Whether a write
// appends is said by each request, as fcntl(2) may change it; pages that were
// mapped come with their own place whatever handle they come through.
func (r *rawFS) Write(_ <-chan struct{}, in *fuse.WriteIn, bytes []byte) (uint32, fuse.Status) {
	of := r.files.get(in.Fh)
	if of == nil || of.file == nil {
		return 0, stBadHandle
	}
	if in.Offset > math.MaxInt64-uint64(len(bytes)) {
		return 0, stTooBig
	}
	off := int64(in.Offset)
	if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		off = meta.AtEnd
	}
	by := r.caller(&in.InHeader)
	by.Calling = in.WriteFlags&fuse.WRITE_CACHE == 0
	r.dirty.wrote(of)
	n, err := of.file.Write(r.ctx, by, off, bytes, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	if err != nil && n == 0 {
		return 0, r.status("write", in.NodeId, err)
	}
	return uint32(n), ok
}

// Flush is close(2) of one descriptor: what was written is committed.
func (r *rawFS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	of := r.files.get(in.Fh)
	if of == nil || of.file == nil {
		return ok
	}
	err := r.dirty.commit(of, func() error { return of.file.Flush(r.ctx, r.caller(&in.InHeader)) })
	return r.status("close", in.NodeId, err)
}

// fsyncDataOnly is the flag of fdatasync(2).
const fsyncDataOnly = 1

// Fsync answers fsync(2) and fdatasync(2).
func (r *rawFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	of := r.files.get(in.Fh)
	if of == nil {
		return stBadHandle
	}
	if of.file == nil {
		return ok
	}
	err := r.dirty.commit(of, func() error {
		return of.file.Fsync(r.ctx, r.calling(&in.InHeader), in.FsyncFlags&fsyncDataOnly != 0)
	})
	return r.status("fsync", in.NodeId, err)
}

// Release is the last close of an open file.
func (r *rawFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if of := r.files.remove(in.Fh); of != nil {
		of.close(r)
	}
}

// close lets go of what an open file holds.
func (of *openFile) close(r *rawFS) {
	if of.backing != nil {
		r.pass.release(of.backing)
	}
	if of.file != nil {
		of.file.Release(r.ctx)
		if of.dirty.Swap(false) {
			r.dirty.add(of.node, -1)
		}
	}
	if of.virtual != nil {
		if err := of.virtual.Close(); err != nil {
			r.log.Debug("closing a file of "+virtualName, "err", err)
		}
	}
}

// Fallocate reserves, punches and zeroes ranges.
func (r *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	of := r.files.get(in.Fh)
	if of == nil || of.file == nil {
		return stBadHandle
	}
	const known = uint32(meta.FallocKeepSize | meta.FallocPunchHole | meta.FallocZeroRange)
	switch {
	case in.Mode&^known != 0:
		return stNotSupported
	case in.Length == 0 || in.Offset > math.MaxInt64 || in.Length > math.MaxInt64:
		return stInvalid
	case in.Length > math.MaxInt64-in.Offset:
		return stTooBig
	}
	return r.status("fallocate", in.NodeId, of.file.Fallocate(r.ctx, r.caller(&in.InHeader),
		int64(in.Offset), int64(in.Length), meta.FallocMode(in.Mode)))
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others.
func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	of := r.files.get(in.Fh)
	if of == nil {
		return stBadHandle
	}
	if of.file == nil {
		return stNotImplemented
	}
	if in.Offset > math.MaxInt64 {
		return stNoDevice
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return stInvalid
	}
	off, err := of.file.Seek(r.ctx, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return r.status("lseek", in.NodeId, err)
	}
	out.Offset = uint64(off)
	return ok
}

// CopyFileRange lets one file share a range of another.
func (r *rawFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := r.files.get(in.FhIn), r.files.get(in.FhOut)
	if from == nil || to == nil || to.file == nil {
		return 0, stBadHandle
	}
	if from.file == nil || in.Flags != 0 {
		return 0, stInvalid
	}
	n := min(in.Len, math.MaxInt32)
	if in.OffIn > math.MaxInt64-n || in.OffOut > math.MaxInt64-n {
		return 0, stTooBig
	}
	copied, err := r.fs.CopyRange(r.ctx, r.caller(&in.InHeader), from.file, int64(in.OffIn),
		to.file, int64(in.OffOut), int64(n))
	if err != nil {
		return 0, r.status("copy_file_range", in.NodeIdOut, err)
	}
	return uint32(copied), ok
}

// Ioctl refuses: no request of ioctl(2) is known here.
func (r *rawFS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return stNotTTY
}
