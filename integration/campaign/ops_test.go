package campaign

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// makers builds an operation of each kind, or nil when the folder lacks what
// it needs.
var makers = map[string]func(w *worker) *operation{
	"create": (*worker).create, "write": (*worker).write, "rewrite": (*worker).rewrite,
	"overwrite-fsync": (*worker).overwriteFsync, "append": (*worker).append, "truncate": (*worker).truncate,
	"punch": (*worker).punch, "copy": (*worker).copyRange,
	"mkdir": (*worker).mkdir, "rmdir": (*worker).rmdir, "symlink": (*worker).symlink, "link": (*worker).link,
	"unlink": (*worker).unlink, "rename": (*worker).rename, "replace": (*worker).replace, "exchange": (*worker).exchange,
	"chmod": (*worker).chmod, "setxattr": (*worker).setxattr,
}

// opKinds lists the kinds in the order of the table.
var opKinds = []string{
	"create", "write", "rewrite", "overwrite-fsync", "append", "truncate", "punch", "copy", "mkdir", "rmdir",
	"symlink", "link", "unlink", "rename", "replace", "exchange", "chmod", "setxattr",
}

const manyNames = 40 // above, removals are preferred

func (w *worker) choose() *operation {
	kind := opKinds[w.rnd.IntN(len(opKinds))]
	if len(w.acked.names) > manyNames {
		kind = []string{"unlink", "rmdir", "replace"}[w.rnd.IntN(3)]
	}
	return makers[kind](w)
}

// op builds an operation with one step: absent or there.
func (w *worker) op(kind, text string, after state, do func() error) *operation {
	return &operation{kind: kind, text: kind + " " + text, allowed: []state{w.acked, after}, do: do}
}

// fresh is a new name, in the worker's folder or one below.
func (w *worker) fresh() string {
	w.next++
	name := fmt.Sprintf("n%d", w.next)
	if dir := w.acked.pick(w.rnd, 'd'); dir != "" && w.rnd.IntN(2) == 0 {
		return filepath.Join(dir, name)
	}
	return name
}

// bytes makes a content: inline, packed or with files of its own.
func (w *worker) bytes() []byte {
	size := []int{1, 100, 4096, 20000, 70000, 300000, 1 << 20, 3 << 20}[min(w.rnd.IntN(12), 7-w.rnd.IntN(3))]
	data := make([]byte, 1+w.rnd.IntN(size))
	r := rand.NewChaCha8([32]byte{byte(w.next), byte(w.done), byte(w.done >> 8), byte(w.rnd.Uint32())})
	_, _ = r.Read(data)
	return data
}

func (w *worker) add(name string, o object) state {
	w.next++
	id := w.next
	return w.acked.with(func(s state) { s.names[name], s.objects[id] = id, o })
}

func (w *worker) create() *operation {
	name := w.fresh()
	return w.op("create", name, w.add(name, object{kind: 'f', mode: 0o640}), func() error {
		f, err := os.OpenFile(w.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// write makes a file with content: absent, empty, or whole.
func (w *worker) write() *operation {
	name, data := w.fresh(), w.bytes()
	empty := w.add(name, object{kind: 'f', mode: 0o640})
	whole := empty.with(func(s state) { s.set(s.names[name], func(o *object) { o.data = data }) })
	op := w.op("write", fmt.Sprintf("%s (%d bytes)", name, len(data)), whole, func() error {
		return writeFile(w.path(name), os.O_CREATE|os.O_EXCL, data, -1, false)
	})
	op.allowed = []state{w.acked, empty, whole}
	return op
}

// rewrite replaces a content through O_TRUNC: old, empty, or new.
func (w *worker) rewrite() *operation {
	name := w.acked.pick(w.rnd, 'f')
	if name == "" {
		return nil
	}
	data := w.bytes()
	empty := w.change(name, func(o *object) { o.data = nil })
	whole := w.change(name, func(o *object) { o.data = data })
	op := w.op("rewrite", fmt.Sprintf("%s (%d bytes)", name, len(data)), whole, func() error {
		return writeFile(w.path(name), os.O_TRUNC, data, -1, false)
	})
	op.allowed = []state{w.acked, empty, whole}
	return op
}

func (w *worker) change(name string, f func(*object)) state {
	return w.acked.with(func(s state) { s.set(s.names[name], f) })
}

func writeFile(path string, flags int, data []byte, off int64, sync bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o640)
	if err != nil {
		return err
	}
	if off < 0 {
		_, err = f.Write(data)
	} else {
		_, err = f.WriteAt(data, off)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func overlay(old, data []byte, off int) []byte {
	out := make([]byte, max(len(old), off+len(data)))
	copy(out, old)
	copy(out[off:], data)
	return out
}

func (w *worker) overwriteFsync() *operation {
	name := w.acked.pick(w.rnd, 'f')
	if name == "" {
		return nil
	}
	data := w.bytes()
	off := w.rnd.IntN(100000)
	after := w.change(name, func(o *object) { o.data = overlay(o.data, data, off) })
	return w.op("overwrite-fsync", fmt.Sprintf("%s (%d at %d)", name, len(data), off), after, func() error {
		return writeFile(w.path(name), 0, data, int64(off), true)
	})
}

func (w *worker) append() *operation {
	name := w.acked.pick(w.rnd, 'f')
	if name == "" {
		return nil
	}
	data := w.bytes()
	after := w.change(name, func(o *object) { o.data = append(bytes.Clone(o.data), data...) })
	return w.op("append", fmt.Sprintf("%s (%d bytes)", name, len(data)), after, func() error {
		return writeFile(w.path(name), os.O_APPEND, data, -1, false)
	})
}

func (w *worker) truncate() *operation {
	name := w.acked.pick(w.rnd, 'f')
	if name == "" {
		return nil
	}
	n := w.rnd.IntN(200000)
	after := w.change(name, func(o *object) { o.data = overlay(o.data, nil, max(n, len(o.data)))[:n] })
	return w.op("truncate", fmt.Sprintf("%s to %d", name, n), after, func() error {
		return os.Truncate(w.path(name), int64(n))
	})
}

func (w *worker) punch() *operation {
	name := w.acked.pick(w.rnd, 'f')
	if name == "" {
		return nil
	}
	off, n := w.rnd.IntN(1+len(w.acked.objects[w.acked.names[name]].data)), 1+w.rnd.IntN(50000)
	after := w.change(name, func(o *object) {
		o.data = bytes.Clone(o.data)
		clear(o.data[min(off, len(o.data)):min(off+n, len(o.data))])
	})
	return w.op("punch", fmt.Sprintf("%s %d+%d", name, off, n), after, func() error {
		f, err := os.OpenFile(w.path(name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	})
}

// copyRange copies a whole file into a new one.
func (w *worker) copyRange() *operation {
	from := w.acked.pick(w.rnd, 'f')
	if from == "" || len(w.acked.objects[w.acked.names[from]].data) == 0 {
		return nil
	}
	name := w.fresh()
	data := w.acked.objects[w.acked.names[from]].data
	empty := w.add(name, object{kind: 'f', mode: 0o640})
	whole := empty.with(func(s state) { s.set(s.names[name], func(o *object) { o.data = data }) })
	op := w.op("copy", from+" to "+name, whole, func() error { return copyWhole(w.path(from), w.path(name), len(data)) })
	op.allowed = []state{w.acked, empty, whole}
	return op
}

func copyWhole(from, to string, n int) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	for left := n; left > 0 && err == nil; { // one call may copy less than it is asked for
		var got int
		got, err = unix.CopyFileRange(int(in.Fd()), nil, int(out.Fd()), nil, left, 0)
		if left -= got; err == nil && got == 0 {
			err = fmt.Errorf("copy_file_range stops with %d of %d bytes left", left, n)
		}
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

func (w *worker) mkdir() *operation {
	name := w.fresh()
	return w.op("mkdir", name, w.add(name, object{kind: 'd', mode: 0o750}), func() error { return os.Mkdir(w.path(name), 0o750) })
}

func (w *worker) rmdir() *operation {
	name := w.acked.pick(w.rnd, 'd')
	if name == "" || !w.acked.hasNothingIn(name) {
		return nil
	}
	return w.op("rmdir", name, w.acked.with(func(s state) { s.drop(name) }), func() error { return unix.Rmdir(w.path(name)) })
}

func (w *worker) symlink() *operation {
	name := w.fresh()
	target := fmt.Sprintf("target-%d", w.rnd.Uint32())
	return w.op("symlink", name, w.add(name, object{kind: 'l', data: []byte(target)}), func() error { return os.Symlink(target, w.path(name)) })
}

func (w *worker) link() *operation {
	from := w.acked.pick(w.rnd, 'f')
	if from == "" {
		return nil
	}
	name := w.fresh()
	after := w.acked.with(func(s state) { s.names[name] = s.names[from] })
	return w.op("link", from+" as "+name, after, func() error { return os.Link(w.path(from), w.path(name)) })
}

func (w *worker) unlink() *operation {
	name := w.acked.pick(w.rnd, "ffl"[w.rnd.IntN(3)])
	if name == "" {
		return nil
	}
	return w.op("unlink", name, w.acked.with(func(s state) { s.drop(name) }), func() error { return unix.Unlink(w.path(name)) })
}

// rename moves a file, or an empty directory, to a new name.
func (w *worker) rename() *operation {
	from := w.acked.pick(w.rnd, "ffld"[w.rnd.IntN(4)])
	if from == "" || w.acked.objects[w.acked.names[from]].kind == 'd' && !w.acked.hasNothingIn(from) {
		return nil
	}
	name := w.fresh()
	if filepath.Dir(name) == from {
		return nil
	}
	after := w.acked.with(func(s state) { s.names[name] = s.names[from]; delete(s.names, from) })
	return w.op("rename", from+" to "+name, after, func() error { return os.Rename(w.path(from), w.path(name)) })
}

// replace renames one file over another.
func (w *worker) replace() *operation {
	from, to := w.acked.pick(w.rnd, 'f'), w.acked.pick(w.rnd, 'f')
	if from == to || w.acked.names[from] == w.acked.names[to] {
		return nil
	}
	after := w.acked.with(func(s state) { s.drop(to); s.names[to] = s.names[from]; delete(s.names, from) })
	return w.op("replace", from+" over "+to, after, func() error { return os.Rename(w.path(from), w.path(to)) })
}

func (w *worker) exchange() *operation {
	a, b := w.acked.pick(w.rnd, 'f'), w.acked.pick(w.rnd, "fl"[w.rnd.IntN(2)])
	if a == "" || b == "" || w.acked.names[a] == w.acked.names[b] {
		return nil
	}
	after := w.acked.with(func(s state) { s.names[a], s.names[b] = s.names[b], s.names[a] })
	return w.op("exchange", a+" and "+b, after, func() error {
		return unix.Renameat2(unix.AT_FDCWD, w.path(a), unix.AT_FDCWD, w.path(b), unix.RENAME_EXCHANGE)
	})
}

func (w *worker) chmod() *operation {
	name := w.acked.pick(w.rnd, "fd"[w.rnd.IntN(2)])
	if name == "" {
		return nil
	}
	mode := 0o400 | uint32(w.rnd.IntN(0o400))
	return w.op("chmod", fmt.Sprintf("%s %o", name, mode), w.change(name, func(o *object) { o.mode = mode }), func() error {
		return unix.Chmod(w.path(name), mode)
	})
}

func (w *worker) setxattr() *operation {
	name := w.acked.pick(w.rnd, "fd"[w.rnd.IntN(2)])
	if name == "" {
		return nil
	}
	value := fmt.Sprintf("value-%d", w.rnd.Uint32())
	return w.op("setxattr", name+" "+value, w.change(name, func(o *object) { o.xattr = value }), func() error {
		return unix.Setxattr(w.path(name), "user.x", []byte(value), 0)
	})
}
