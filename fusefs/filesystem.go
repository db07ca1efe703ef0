package fusefs

import (
	"context"

	"nexusfs/meta"
)

// filesystem is what the edge needs of meta.FS, one method per request. The
// second implementation is the tree in memory with which the tests of this
// package look at the kernel's behaviour.
type filesystem interface {
	Lookup(ctx context.Context, parent meta.Ino, name string) (meta.Attr, error)
	GetAttr(ctx context.Context, ino meta.Ino) (meta.Attr, error)
	SetAttr(ctx context.Context, c meta.Caller, ino meta.Ino, s meta.SetAttr, h file) (meta.Attr, error)
	StatFS(ctx context.Context) (meta.StatFS, error)
	Forget(ino meta.Ino)
	Shared() bool
	Fresh(ctx context.Context) error

	Create(ctx context.Context, c meta.Caller, parent meta.Ino, name string, a meta.CreateArgs) (meta.Attr, file, error)
	Tmpfile(ctx context.Context, c meta.Caller, parent meta.Ino, a meta.CreateArgs) (meta.Attr, file, error)
	Mkdir(ctx context.Context, c meta.Caller, parent meta.Ino, name string, mode, umask uint32) (meta.Attr, error)
	Mknod(ctx context.Context, c meta.Caller, parent meta.Ino, name string, mode, umask, rdev uint32) (meta.Attr, error)
	Symlink(ctx context.Context, c meta.Caller, parent meta.Ino, name, target string) (meta.Attr, error)
	Link(ctx context.Context, c meta.Caller, ino, parent meta.Ino, name string) (meta.Attr, error)
	Unlink(ctx context.Context, c meta.Caller, parent meta.Ino, name string) error
	Rmdir(ctx context.Context, c meta.Caller, parent meta.Ino, name string) error
	Rename(ctx context.Context, c meta.Caller, parent meta.Ino, name string, newParent meta.Ino, newName string, flags meta.RenameFlags) error
	Readlink(ctx context.Context, ino meta.Ino) (string, error)
	ReadDir(ctx context.Context, dir meta.Ino, after uint64, limit int, attrs bool, buf []meta.Entry) ([]meta.Entry, error)
	SyncDir(ctx context.Context, ino meta.Ino) error

	GetXattr(ctx context.Context, ino meta.Ino, name string) ([]byte, error)
	ListXattr(ctx context.Context, ino meta.Ino) ([]string, error)
	SetXattr(ctx context.Context, c meta.Caller, ino meta.Ino, name string, value []byte, flags meta.XattrFlags) error
	RemoveXattr(ctx context.Context, c meta.Caller, ino meta.Ino, name string) error

	OpenFile(ctx context.Context, c meta.Caller, ino meta.Ino, f meta.OpenFlags) (file, error)
	CopyRange(ctx context.Context, c meta.Caller, in file, offIn int64, out file, offOut, n int64) (int64, error)
	Versions(ctx context.Context, ino meta.Ino) ([]meta.Version, error)
	OpenVersion(ctx context.Context, ino meta.Ino, n int64) (versionFile, error)
}

// file is an open file of the tree: *meta.Handle.
type file interface {
	Read(ctx context.Context, off int64, p []byte) (int, error)
	Write(ctx context.Context, c meta.Caller, off int64, data []byte, killPriv bool) (int, error)
	Flush(ctx context.Context, c meta.Caller) error
	Fsync(ctx context.Context, c meta.Caller, dataOnly bool) error
	Release(ctx context.Context)
	Fallocate(ctx context.Context, c meta.Caller, off, n int64, mode meta.FallocMode) error
	Seek(ctx context.Context, off int64, hole bool) (int64, error)
}

// versionFile is an open version of a file's content: *meta.VersionHandle.
type versionFile interface {
	Read(ctx context.Context, off int64, p []byte) (int, error)
	Size() int64
	Close() error
}

// core makes a filesystem of meta.FS: it only narrows the handles' types.
type core struct{ *meta.FS }

func asFile(h *meta.Handle, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return h, nil
}

func asHandle(f file) *meta.Handle {
	h, _ := f.(*meta.Handle)
	return h
}

func (c core) SetAttr(ctx context.Context, by meta.Caller, ino meta.Ino, s meta.SetAttr, h file) (meta.Attr, error) {
	s.Handle = asHandle(h)
	return c.FS.SetAttr(ctx, by, ino, s)
}

func (c core) Create(ctx context.Context, by meta.Caller, parent meta.Ino, name string, a meta.CreateArgs) (meta.Attr, file, error) {
	attr, h, err := c.FS.Create(ctx, by, parent, name, a)
	f, err := asFile(h, err)
	return attr, f, err
}

func (c core) Tmpfile(ctx context.Context, by meta.Caller, parent meta.Ino, a meta.CreateArgs) (meta.Attr, file, error) {
	attr, h, err := c.FS.Tmpfile(ctx, by, parent, a)
	f, err := asFile(h, err)
	return attr, f, err
}

func (c core) OpenFile(ctx context.Context, by meta.Caller, ino meta.Ino, f meta.OpenFlags) (file, error) {
	return asFile(c.FS.OpenFile(ctx, by, ino, f))
}

func (c core) CopyRange(ctx context.Context, by meta.Caller, in file, offIn int64, out file, offOut, n int64) (int64, error) {
	return c.FS.CopyRange(ctx, by, asHandle(in), offIn, asHandle(out), offOut, n)
}

func (c core) OpenVersion(ctx context.Context, ino meta.Ino, n int64) (versionFile, error) {
	v, err := c.FS.OpenVersion(ctx, ino, n)
	if err != nil {
		return nil, err
	}
	return v, nil
}
