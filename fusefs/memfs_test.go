package fusefs

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nexusfs/meta"
)

// memFS is a tree in memory, just enough of a filesystem for the kernel's side
// to be looked at. It knows no permissions: the kernel checks those.
type memFS struct {
	mu    sync.Mutex
	next  meta.Ino
	nodes map[meta.Ino]*memNode
	past  map[versionKey][]byte // content of versions, for .nexusfs
	whole map[meta.Ino]string   // files that hold an inode's content (P27)

	shared       atomic.Bool                       // other daemons change the tree
	beforeLookup atomic.Pointer[func(name string)] // runs without mu
	actors       map[string]meta.Actor             // by operation, the last one
}

type memNode struct {
	meta.Attr
	data   map[int64]*[memChunk]byte
	target string
	xattrs map[string][]byte
	names  map[string]*memNode
}

const memChunk = 4096

func newMemFS() *memFS {
	m := &memFS{next: meta.RootIno, nodes: map[meta.Ino]*memNode{}, past: map[versionKey][]byte{}, actors: map[string]meta.Actor{}}
	root := m.node(meta.Caller{}, meta.ModeDir|0o755, 0)
	root.Parent, root.Nlink = meta.RootIno, 2
	return m
}

func (m *memFS) node(c meta.Caller, mode, umask uint32) *memNode {
	now := time.Now().UnixNano()
	n := &memNode{Attr: meta.Attr{Ino: m.next, Mode: mode &^ umask, Nlink: 1, UID: c.UID, GID: c.GID,
		Atime: now, Mtime: now, Ctime: now, Btime: now, Rev: 1, Version: 1}}
	if n.IsDir() {
		n.names = map[string]*memNode{}
	}
	m.nodes[m.next] = n
	m.next++
	return n
}

func (m *memFS) did(op string, c meta.Caller) { m.actors[op] = c.Actor() }

func (m *memFS) get(ino meta.Ino) (*memNode, error) {
	if n := m.nodes[ino]; n != nil {
		return n, nil
	}
	return nil, meta.KindNotExist.Err()
}

func (m *memFS) child(parent meta.Ino, name string) (*memNode, *memNode, error) {
	if len(name) > meta.NameMax {
		return nil, nil, meta.KindNameTooLong.Err()
	}
	dir, err := m.get(parent)
	if err != nil {
		return nil, nil, err
	}
	return dir, dir.names[name], nil
}

func (m *memFS) Lookup(_ context.Context, parent meta.Ino, name string) (meta.Attr, error) {
	if fn := m.beforeLookup.Load(); fn != nil {
		(*fn)(name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, n, err := m.child(parent, name)
	if err != nil {
		return meta.Attr{}, err
	}
	if n == nil {
		return meta.Attr{}, meta.KindNotExist.Err()
	}
	return n.Attr, nil
}

func (m *memFS) GetAttr(_ context.Context, ino meta.Ino) (meta.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return meta.Attr{}, err
	}
	return n.Attr, nil
}

func dropPriv(n *memNode) {
	n.Mode &^= meta.ModeSetuid
	if n.Mode&0o010 != 0 {
		n.Mode &^= meta.ModeSetgid
	}
}

func (m *memFS) SetAttr(_ context.Context, c meta.Caller, ino meta.Ino, s meta.SetAttr, _ file) (meta.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return meta.Attr{}, err
	}
	m.did("setattr", c)
	now := time.Now().UnixNano()
	n.Ctime = now
	if s.Valid&meta.SetMode != 0 {
		n.Mode = n.Mode&meta.ModeType | s.Mode
	}
	if s.Valid&meta.SetUID != 0 {
		n.UID = s.UID
	}
	if s.Valid&meta.SetGID != 0 {
		n.GID = s.GID
	}
	if s.Valid&meta.SetSize != 0 {
		n.truncate(s.Size)
		n.Mtime = now
	}
	if s.Valid&meta.KillPriv != 0 {
		dropPriv(n)
	}
	for _, t := range []struct {
		set, now uint32
		to       *int64
		v        int64
	}{{meta.SetAtime, meta.SetAtimeNow, &n.Atime, s.Atime}, {meta.SetMtime, meta.SetMtimeNow, &n.Mtime, s.Mtime}} {
		if s.Valid&t.now != 0 {
			*t.to = now
		} else if s.Valid&t.set != 0 {
			*t.to = t.v
		}
	}
	return n.Attr, nil
}

func (m *memFS) StatFS(context.Context) (meta.StatFS, error) {
	return meta.StatFS{BlockSize: 4096, Blocks: 1000, Free: 500, Avail: 400, Files: 30, FilesFree: 20, NameMax: 255}, nil
}

func (m *memFS) Forget(meta.Ino)             {}
func (m *memFS) Shared() bool                { return m.shared.Load() }
func (m *memFS) Fresh(context.Context) error { return nil }

// add makes a node with a name.
func (m *memFS) add(c meta.Caller, parent meta.Ino, name string, mode, umask uint32) (*memNode, error) {
	dir, old, err := m.child(parent, name)
	if err != nil {
		return nil, err
	}
	if old != nil {
		return nil, meta.KindExist.Err()
	}
	n := m.node(c, mode, umask)
	m.enter(dir, name, n)
	return n, nil
}

func (m *memFS) enter(dir *memNode, name string, n *memNode) {
	dir.names[name] = n
	dir.Mtime = time.Now().UnixNano()
	dir.Ctime = dir.Mtime
	if n.IsDir() {
		n.Parent = dir.Ino
		n.Nlink = 2
		dir.Nlink++
	}
}

func (m *memFS) leave(dir *memNode, name string, n *memNode, gone bool) {
	delete(dir.names, name)
	dir.Mtime = time.Now().UnixNano()
	dir.Ctime = dir.Mtime
	if n.IsDir() {
		dir.Nlink--
		if gone {
			n.Nlink = 0
		}
	} else if gone {
		n.Nlink--
		n.Ctime = dir.Mtime
	}
}

func (m *memFS) Create(_ context.Context, c meta.Caller, parent meta.Ino, name string, a meta.CreateArgs) (meta.Attr, file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.add(c, parent, name, meta.ModeRegular|a.Mode, a.Umask)
	if err != nil {
		return meta.Attr{}, nil, err
	}
	m.did("create", c)
	return n.Attr, &memFile{m, n}, nil
}

func (m *memFS) Tmpfile(_ context.Context, c meta.Caller, _ meta.Ino, a meta.CreateArgs) (meta.Attr, file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.node(c, meta.ModeRegular|a.Mode, a.Umask)
	n.Nlink = 0
	return n.Attr, &memFile{m, n}, nil
}

func (m *memFS) Mkdir(_ context.Context, c meta.Caller, parent meta.Ino, name string, mode, umask uint32) (meta.Attr, error) {
	return m.make(c, parent, name, meta.ModeDir|mode, umask, 0, "")
}

func (m *memFS) Mknod(_ context.Context, c meta.Caller, parent meta.Ino, name string, mode, umask, rdev uint32) (meta.Attr, error) {
	return m.make(c, parent, name, mode, umask, rdev, "")
}

func (m *memFS) Symlink(_ context.Context, c meta.Caller, parent meta.Ino, name, target string) (meta.Attr, error) {
	return m.make(c, parent, name, meta.ModeSymlink|0o777, 0, 0, target)
}

func (m *memFS) make(c meta.Caller, parent meta.Ino, name string, mode, umask, rdev uint32, target string) (meta.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.add(c, parent, name, mode, umask)
	if err != nil {
		return meta.Attr{}, err
	}
	m.did("make", c)
	n.Rdev, n.target = rdev, target
	if target != "" {
		n.Size = int64(len(target))
	}
	return n.Attr, nil
}

func (m *memFS) Link(_ context.Context, c meta.Caller, ino, parent meta.Ino, name string) (meta.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return meta.Attr{}, err
	}
	dir, old, err := m.child(parent, name)
	if err != nil {
		return meta.Attr{}, err
	}
	if old != nil {
		return meta.Attr{}, meta.KindExist.Err()
	}
	m.enter(dir, name, n)
	n.Nlink++
	n.Ctime = time.Now().UnixNano()
	return n.Attr, nil
}

func (m *memFS) Unlink(_ context.Context, c meta.Caller, parent meta.Ino, name string) error {
	return m.remove(parent, name, false)
}

func (m *memFS) Rmdir(_ context.Context, c meta.Caller, parent meta.Ino, name string) error {
	return m.remove(parent, name, true)
}

func (m *memFS) remove(parent meta.Ino, name string, wantDir bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, n, err := m.child(parent, name)
	switch {
	case err != nil:
		return err
	case n == nil:
		return meta.KindNotExist.Err()
	case n.IsDir() && !wantDir:
		return meta.KindIsDir.Err()
	case !n.IsDir() && wantDir:
		return meta.KindNotDir.Err()
	case len(n.names) > 0:
		return meta.KindNotEmpty.Err()
	}
	m.leave(dir, name, n, true)
	return nil
}

func (m *memFS) Rename(_ context.Context, c meta.Caller, parent meta.Ino, name string, newParent meta.Ino, newName string, flags meta.RenameFlags) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, n, err := m.child(parent, name)
	if err != nil {
		return err
	}
	newDir, old, err := m.child(newParent, newName)
	switch {
	case err != nil:
		return err
	case n == nil || flags&meta.RenameExchange != 0 && old == nil:
		return meta.KindNotExist.Err()
	case old != nil && flags&meta.RenameNoReplace != 0:
		return meta.KindExist.Err()
	case old == n:
		return nil
	case flags&meta.RenameExchange != 0:
		m.leave(dir, name, n, false)
		m.leave(newDir, newName, old, false)
		m.enter(dir, name, old)
		m.enter(newDir, newName, n)
		return nil
	case old != nil && len(old.names) > 0:
		return meta.KindNotEmpty.Err()
	}
	if old != nil {
		m.leave(newDir, newName, old, true)
	}
	m.leave(dir, name, n, false)
	m.enter(newDir, newName, n)
	n.Ctime = time.Now().UnixNano()
	return nil
}

func (m *memFS) Readlink(_ context.Context, ino meta.Ino) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return "", err
	}
	return n.target, nil
}

func (m *memFS) ReadDir(_ context.Context, dir meta.Ino, after uint64, limit int, _ bool, buf []meta.Entry) ([]meta.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.get(dir)
	if err != nil {
		return buf, err
	}
	var all []meta.Entry
	for name, n := range d.names {
		if c := memCookie(name); c > after {
			all = append(all, meta.Entry{Name: name, Cookie: c, Attr: n.Attr})
		}
	}
	slices.SortFunc(all, func(a, b meta.Entry) int { return cmp.Or(cmp.Compare(a.Cookie, b.Cookie), cmp.Compare(a.Name, b.Name)) })
	for i, e := range all {
		if i >= limit && e.Cookie != all[i-1].Cookie {
			break
		}
		buf = append(buf, e)
	}
	return buf, nil
}

// memCookie gives names that begin with "same" one cookie.
func memCookie(name string) uint64 {
	if len(name) > 4 && name[:4] == "same" {
		return meta.NameCookie("same")
	}
	return meta.NameCookie(name)
}

func (m *memFS) SyncDir(context.Context, meta.Ino) error { return nil }

func (m *memFS) GetXattr(_ context.Context, ino meta.Ino, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return nil, err
	}
	if v, has := n.xattrs[name]; has {
		return v, nil
	}
	return nil, meta.KindNoData.Err()
}

func (m *memFS) ListXattr(_ context.Context, ino meta.Ino) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return nil, err
	}
	var out []string
	for name := range n.xattrs {
		out = append(out, name)
	}
	slices.Sort(out)
	return out, nil
}

func (m *memFS) SetXattr(_ context.Context, _ meta.Caller, ino meta.Ino, name string, value []byte, flags meta.XattrFlags) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return err
	}
	_, has := n.xattrs[name]
	if has && flags&meta.XattrCreate != 0 {
		return meta.KindExist.Err()
	}
	if !has && flags&meta.XattrReplace != 0 {
		return meta.KindNoData.Err()
	}
	if n.xattrs == nil {
		n.xattrs = map[string][]byte{}
	}
	n.xattrs[name] = slices.Clone(value)
	return nil
}

func (m *memFS) RemoveXattr(_ context.Context, _ meta.Caller, ino meta.Ino, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return err
	}
	if _, has := n.xattrs[name]; !has {
		return meta.KindNoData.Err()
	}
	delete(n.xattrs, name)
	return nil
}

func (m *memFS) OpenFile(_ context.Context, c meta.Caller, ino meta.Ino, f meta.OpenFlags) (file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return nil, err
	}
	if f.Trunc {
		n.truncate(0)
		if f.KillPriv {
			dropPriv(n)
		}
	}
	m.did("open", c)
	return &memFile{m, n}, nil
}

func (m *memFS) CopyRange(_ context.Context, c meta.Caller, in file, offIn int64, out file, offOut, n int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	src, dst := in.(*memFile).n, out.(*memFile).n
	buf := make([]byte, min(n, max(src.Size-offIn, 0)))
	src.read(offIn, buf)
	dst.write(offOut, buf)
	return int64(len(buf)), nil
}

func (m *memFS) Versions(_ context.Context, ino meta.Ino) ([]meta.Version, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []meta.Version
	for k, content := range m.past {
		if k.ino == ino {
			out = append(out, meta.Version{N: k.n, Size: int64(len(content)), Time: k.n * int64(time.Second)})
		}
	}
	slices.SortFunc(out, func(a, b meta.Version) int { return cmp.Compare(a.N, b.N) })
	return out, nil
}

func (m *memFS) OpenVersion(_ context.Context, ino meta.Ino, n int64) (versionFile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	content, has := m.past[versionKey{ino, n}]
	if !has {
		return nil, meta.KindNotExist.Err()
	}
	return memVersion(content), nil
}

type memVersion []byte

func (v memVersion) Read(_ context.Context, off int64, p []byte) (int, error) {
	return copy(p, v[min(off, int64(len(v))):]), nil
}
func (v memVersion) Size() int64  { return int64(len(v)) }
func (v memVersion) Close() error { return nil }

// behind changes a file without the kernel's knowledge, as another node or a
// command would.
func (m *memFS) behind(ino meta.Ino, content string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	n.truncate(0)
	n.write(0, []byte(content))
}
