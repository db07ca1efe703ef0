package sqlite

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// SQLite writes each page of a commit into its log with two system calls, and
// takes and drops locks with six more: a third of a small commit's time. This
// file registers a VFS that lies over SQLite's own "unix-excl" VFS (which keeps
// the index of the log in memory and locks the database file once, for the
// whole process) and gathers the frames of a transaction into one write.
//
// INVARIANT: nothing is held back when SQLite believes a transaction committed.
// The last frame of a commit says so in its header; with its page everything
// gathered is written, before the write of that page returns. So kill -9 finds
// the same bytes in the file as without this VFS, and an error of the disk
// reaches SQLite inside the commit that it belongs to. Everything that is not
// the plain sequence of appended frames is passed through at once: the log's
// header, rewritten checksums, frames after a rolled back spill.

const (
	baseVFS = "unix-excl"
	vfsName = "nexusfs"

	frameHeader = 24
	// gatherMax bounds the bytes of one transaction that are held back. SQLite's
	// unix VFS writes at most 128 KiB - 1 at once.
	gatherMax = 120 << 10
	// pageMax is SQLite's largest page.
	pageMax = 64 << 10
	// diskBlock is a multiple of what file systems read when they are asked to
	// write a part of it.
	diskBlock = 4 << 10
)

var registerVFS = sync.OnceValue(func() error {
	tls := libc.NewTLS() // for the life of the process, as the VFS
	name, err := libc.CString(baseVFS)
	if err != nil {
		return err
	}
	defer libc.Xfree(tls, name)
	base := lib.Xsqlite3_vfs_find(tls, name)
	if base == 0 {
		return errors.New("SQLite was built without the VFS " + baseVFS)
	}
	own := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(lib.Tsqlite3_vfs{})))
	ownName, err := libc.CString(vfsName)
	if own == 0 || err != nil {
		return errors.New("out of memory")
	}
	baseVFSPtr = base
	v := at[lib.Tsqlite3_vfs](own)
	*v = *at[lib.Tsqlite3_vfs](base)
	v.FpNext, v.FzName = 0, ownName
	v.FxOpen = funcPtr(vfsOpen)
	if rc := lib.Xsqlite3_vfs_register(tls, own, 0); rc != lib.SQLITE_OK {
		return errors.New("SQLite refused the VFS " + vfsName)
	}
	return nil
})

// baseVFSPtr is written once, before the VFS is registered.
var baseVFSPtr uintptr

// at gives access to a C struct.
func at[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// bytesAt gives access to n bytes of C memory. Not inlined: Go 1.26.8 fails to
// compile a copy of a known length from a pointer made of an integer.
//
//go:noinline
func bytesAt(p uintptr, n int32) []byte { return unsafe.Slice(at[byte](p), n) }

// funcPtr makes a function value as C code calls it; f must not be a closure.
func funcPtr[T any](f T) uintptr { return *(*uintptr)(unsafe.Pointer(&struct{ f T }{f})) }

// call turns a C function pointer back into a function.
func call[T any](p uintptr) T { return *(*T)(unsafe.Pointer(&struct{ p uintptr }{p})) }

type (
	openFunc  = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32
	ioFunc    = func(tls *libc.TLS, file, buf uintptr, n int32, off int64) int32
	sizeFunc  = func(tls *libc.TLS, file, out uintptr) int32
	cutFunc   = func(tls *libc.TLS, file uintptr, size int64) int32
	flagFunc  = func(tls *libc.TLS, file uintptr, flags int32) int32
	closeFunc = func(tls *libc.TLS, file uintptr) int32
)

// walFile gathers the frames that one connection appends to the log. It is
// used by one goroutine at a time, as its connection is.
type walFile struct {
	base    *lib.Tsqlite3_io_methods
	methods uintptr       // this file's own, in C memory
	mem     uintptr       // gatherMax+diskBlock bytes of C memory; 0 until the first frame
	buf     []byte        // over mem
	start   int64         // where buf belongs
	next    int64         // where the next appended frame begins
	high    int64         // the log's end: how far it was written since it began anew
	end     *atomic.Int64 // high, for who asks by the log's name
	inFrame bool          // a header without its page ends buf
	commit  bool          // that header, or the last one, ends a transaction
}

// walFiles finds the state of an open log by its C struct.
var walFiles sync.Map // uintptr -> *walFile

// logEnds finds by a log's path how long it is: of its file the part that was
// written since it began anew. Connections of one store share it, and one of
// them writes.
var logEnds sync.Map // string -> *atomic.Int64

// logEnd returns where the length of the log at path is counted.
func logEnd(path string) *atomic.Int64 {
	end, _ := logEnds.LoadOrStore(path, new(atomic.Int64))
	return end.(*atomic.Int64)
}

func walOf(file uintptr) *walFile {
	w, _ := walFiles.Load(file)
	return w.(*walFile)
}

func vfsOpen(tls *libc.TLS, _, name, file uintptr, flags int32, out uintptr) int32 {
	base := at[lib.Tsqlite3_vfs](baseVFSPtr)
	rc := call[openFunc](base.FxOpen)(tls, baseVFSPtr, name, file, flags, out)
	if rc != lib.SQLITE_OK || flags&lib.SQLITE_OPEN_WAL == 0 {
		return rc
	}
	f := at[lib.Tsqlite3_file](file)
	w := &walFile{base: at[lib.Tsqlite3_io_methods](f.FpMethods), next: -1, end: logEnd(libc.GoString(name))}
	w.methods = libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*w.base)))
	if w.methods == 0 {
		call[closeFunc](w.base.FxClose)(tls, file)
		f.FpMethods = 0 // SQLite must not close it again
		return lib.SQLITE_NOMEM
	}
	m := at[lib.Tsqlite3_io_methods](w.methods)
	*m = *w.base
	m.FxWrite, m.FxRead, m.FxSync = funcPtr(walWrite), funcPtr(walRead), funcPtr(walSync)
	m.FxTruncate, m.FxFileSize, m.FxClose = funcPtr(walTruncate), funcPtr(walFileSize), funcPtr(walClose)
	walFiles.Store(file, w)
	f.FpMethods = w.methods
	return rc
}

// walWrite gathers appended frames: a header of frameHeader bytes, then a page.
func walWrite(tls *libc.TLS, file, buf uintptr, n int32, off int64) int32 {
	w := walOf(file)
	data := bytesAt(buf, n)
	switch {
	case off == w.next && n == frameHeader && !w.inFrame:
		if w.mem == 0 {
			if w.mem = libc.Xmalloc(tls, gatherMax+diskBlock); w.mem == 0 {
				return lib.SQLITE_NOMEM
			}
			w.buf = bytesAt(w.mem, gatherMax+diskBlock)[:0]
		}
		if len(w.buf) == 0 {
			w.start = off
		}
		w.buf = append(w.buf, data...)
		w.inFrame = true
		w.commit = data[4]|data[5]|data[6]|data[7] != 0 // size of the database, on the last frame only
		w.next = off + int64(n)
		return lib.SQLITE_OK
	case off == w.next && w.inFrame && int(n) <= pageMax:
		w.buf = append(w.buf, data...)
		w.inFrame = false
		w.next = off + int64(n)
		if w.commit || len(w.buf)+frameHeader+int(n) > gatherMax {
			return w.flush(tls, file)
		}
		return lib.SQLITE_OK
	}
	if rc := w.flush(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	rc := call[ioFunc](w.base.FxWrite)(tls, file, buf, n, off)
	w.next = off + int64(n)
	if off == 0 { // the log's header: it begins anew
		w.high = 0
	}
	w.grew(w.next)
	if rc != lib.SQLITE_OK {
		w.next = -1
	}
	return rc
}

// flush writes what was gathered. At the end of the log it writes zeros up to
// the end of the block: what is there belongs to no transaction any more, and
// to keep it the file system would have to read it first, from the disk when
// its cache has dropped it. Nobody reads behind the last commit.
func (w *walFile) flush(tls *libc.TLS, file uintptr) int32 {
	if len(w.buf) == 0 {
		return lib.SQLITE_OK
	}
	data, end := w.buf, w.start+int64(len(w.buf))
	if end >= w.high {
		w.grew(end)
		n := len(data)
		data = data[:n+int(-end&(diskBlock-1))]
		clear(data[n:])
	}
	rc := call[ioFunc](w.base.FxWrite)(tls, file, w.mem, int32(len(data)), w.start)
	w.buf, w.inFrame, w.commit = w.buf[:0], false, false
	if rc != lib.SQLITE_OK {
		w.next = -1
	}
	return rc
}

// grew notes how far the log has been written.
func (w *walFile) grew(end int64) {
	if end > w.high {
		w.high = end
		w.end.Store(end)
	}
}

func walRead(tls *libc.TLS, file, buf uintptr, n int32, off int64) int32 {
	w := walOf(file)
	if rc := w.flush(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return call[ioFunc](w.base.FxRead)(tls, file, buf, n, off)
}

func walSync(tls *libc.TLS, file uintptr, flags int32) int32 {
	w := walOf(file)
	if rc := w.flush(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return call[flagFunc](w.base.FxSync)(tls, file, flags)
}

func walTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	w := walOf(file)
	if rc := w.flush(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return call[cutFunc](w.base.FxTruncate)(tls, file, size)
}

func walFileSize(tls *libc.TLS, file, out uintptr) int32 {
	w := walOf(file)
	if rc := w.flush(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return call[sizeFunc](w.base.FxFileSize)(tls, file, out)
}

func walClose(tls *libc.TLS, file uintptr) int32 {
	w := walOf(file)
	walFiles.Delete(file)
	libc.Xfree(tls, w.mem) // what it holds belongs to no commit
	libc.Xfree(tls, w.methods)
	return call[closeFunc](w.base.FxClose)(tls, file)
}
