package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"nexusfs/meta"
)

// errNoContent says that a file has bytes and the load does not.
var errNoContent = errors.New("its content was not given: use --content DIR, or --sparse to make it of zeros")

// do loads one line, in a worker.
func (l *loader) do(ctx context.Context, j *loadJob) {
	ino, made, err := meta.Ino(0), false, l.gone()
	if err == nil {
		ino, made, err = l.line(ctx, j)
	}
	if err != nil {
		if isFatal(err) {
			l.stop(err)
		}
		if !errors.Is(err, errStopped) {
			l.report(j, "failed", err)
		}
	}
	if j.first && j.self != nil {
		j.self.keep(ino, made)
	}
	if j.first && j.link != nil {
		j.link.keep(ino, made)
	}
	if ino != 0 && j.self != nil && !j.leave && (j.e.Mtime != nil || j.e.Atime != nil) {
		l.mu.Lock()
		l.times = append(l.times, loadedTimes{ino, j.e.Atime, j.e.Mtime})
		l.mu.Unlock()
	}
}

// errStopped is of lines behind the one that ended the load.
var errStopped = errors.New("stopped")

func (l *loader) gone() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal != nil {
		return errStopped
	}
	return nil
}

// line makes what a line says, or compares it with what is there. made: this
// load made it.
func (l *loader) line(ctx context.Context, j *loadJob) (ino meta.Ino, made bool, err error) {
	fs := l.c.engine.fs
	if j.self != nil && !j.first { // the base, or made for a line before
		<-j.self.done
		if j.self.ino == 0 {
			return 0, false, errors.New("it could not be made for a line before")
		}
		a, err := fs.GetAttr(ctx, j.self.ino)
		if err != nil {
			return 0, false, err
		}
		return l.present(ctx, j, &a, j.self.made)
	}
	<-j.parent.done
	if j.parent.ino == 0 {
		return 0, false, errors.New("its directory is not there and could not be made")
	}
	name := path.Base(j.path)
	if j.link != nil && !j.first {
		if <-j.link.done; j.link.ino != 0 {
			return l.linkTo(ctx, j, name)
		}
	}
	a, err := fs.Lookup(ctx, j.parent.ino, name)
	switch {
	case err == nil && a.Mode&meta.ModeType == j.mode&meta.ModeType:
		return l.present(ctx, j, &a, false)
	case err == nil && !l.overwrite:
		return 0, false, l.differs(j, "it is a "+typeText(a.Mode)+" here")
	case err == nil:
		if err := l.remove(ctx, j.parent.ino, name, &a); err != nil {
			return 0, false, err
		}
	case meta.KindOf(err) != meta.KindNotExist:
		return 0, false, err
	}
	old, fresh := typeText(a.Mode), err != nil
	if a, err = l.create(ctx, j, name); err != nil {
		return 0, false, err
	}
	if fresh {
		l.count(func(e *loadEnd) { e.Created++ })
	} else {
		l.replaced(j, "it was a "+old)
	}
	return a.Ino, true, nil
}

// linkTo gives a file that an earlier line made another name.
func (l *loader) linkTo(ctx context.Context, j *loadJob, name string) (meta.Ino, bool, error) {
	fs := l.c.engine.fs
	a, err := fs.Lookup(ctx, j.parent.ino, name)
	switch {
	case err == nil && a.Ino == j.link.ino:
		l.count(func(e *loadEnd) { e.Same++ })
		return a.Ino, false, nil
	case err == nil && !l.overwrite:
		return 0, false, l.differs(j, "it is not the same file as its other names here")
	case err == nil:
		if err := l.remove(ctx, j.parent.ino, name, &a); err != nil {
			return 0, false, err
		}
		l.replaced(j, "it was not the same file as its other names")
	case meta.KindOf(err) != meta.KindNotExist:
		return 0, false, err
	default:
		l.count(func(e *loadEnd) { e.Created++ })
	}
	_, err = fs.Link(ctx, l.by, j.link.ino, j.parent.ino, name)
	return j.link.ino, false, err
}

func (l *loader) differs(j *loadJob, why string) error {
	l.report(j, "different", errors.New(why))
	return nil
}

func (l *loader) replaced(j *loadJob, why string) { l.report(j, "replaced", errors.New(why)) }

// remove takes a name away that stands in the way. A directory must be empty.
func (l *loader) remove(ctx context.Context, dir meta.Ino, name string, a *meta.Attr) error {
	if a.IsDir() {
		return l.c.engine.fs.Rmdir(ctx, l.by, dir, name)
	}
	return l.c.engine.fs.Unlink(ctx, l.by, dir, name)
}

// create makes what a line says, in one operation where that can be.
func (l *loader) create(ctx context.Context, j *loadJob, name string) (meta.Attr, error) {
	fs := l.c.engine.fs
	uid, gid := l.owner(j)
	o := meta.Object{Mode: j.mode, UID: uid, GID: gid, Target: string(j.e.Target), Atime: l.stamp(j.e.Atime), Mtime: l.stamp(j.e.Mtime)}
	if j.e.Rdev != nil {
		o.Rdev = uint32(*j.e.Rdev)
	}
	if o.Mode&meta.ModeType == meta.ModeRegular && (j.size > meta.InlineMax || j.size < 0 && l.size(j) > 0) {
		return l.createFilled(ctx, j, name, o)
	}
	if j.size > 0 {
		if err := l.matches(j, hashOf(j.content)); err != nil {
			return meta.Attr{}, err
		}
		o.Content = j.content
	}
	a, err := fs.Make(ctx, l.by, j.parent.ino, name, o)
	if err != nil {
		return a, err
	}
	return a, l.orRemove(ctx, j, name, &a, l.setXattrs(ctx, j, &a))
}

// createFilled makes a file whose content does not ride along with its name.
func (l *loader) createFilled(ctx context.Context, j *loadJob, name string, o meta.Object) (meta.Attr, error) {
	if j.size < 0 && !l.sparse {
		return meta.Attr{}, errNoContent
	}
	a, h, err := l.c.engine.fs.MakeFile(ctx, l.by, j.parent.ino, name, o)
	if err != nil {
		return a, err
	}
	defer h.Release(ctx)
	set := meta.SetAttr{Valid: meta.SetAtime | meta.SetMtime, Atime: o.Atime, Mtime: o.Mtime, Handle: h}
	if j.size < 0 {
		set.Valid |= meta.SetSize
		set.Size = l.size(j)
	} else {
		err = l.write(ctx, j, h)
	}
	if err == nil {
		_, err = l.c.engine.fs.SetAttr(ctx, l.by, a.Ino, set)
	}
	if err == nil {
		err = l.setXattrs(ctx, j, &a)
	}
	return a, l.orRemove(ctx, j, name, &a, err)
}

// orRemove takes the name away again when err is not nil: nothing half done
// stays under it.
func (l *loader) orRemove(ctx context.Context, j *loadJob, name string, a *meta.Attr, err error) error {
	if err == nil {
		return nil
	}
	if rerr := l.remove(context.WithoutCancel(ctx), j.parent.ino, name, a); rerr != nil {
		return fmt.Errorf("%w; and what was made of it could not be removed: %w", err, rerr)
	}
	return err
}

func hashOf(data []byte) []byte {
	h := newContentHash()
	h.Write(data)
	return h.Sum(nil)
}

// size is that of a line without content.
func (l *loader) size(j *loadJob) int64 {
	if j.e.Size != nil {
		return *j.e.Size
	}
	return 0
}

func (l *loader) stamp(s *stamp) int64 {
	if s != nil {
		return int64(*s)
	}
	return l.now
}

// owner is the line's, or the caller.
func (l *loader) owner(j *loadJob) (uid, gid uint32) {
	uid, gid = l.by.UID, l.by.GID
	if j.e.UID != nil {
		uid = *j.e.UID
	}
	if j.e.GID != nil {
		gid = *j.e.GID
	}
	return uid, gid
}

// write writes the line's content, verified by its hash, to an empty file.
func (l *loader) write(ctx context.Context, j *loadJob, h *meta.Handle) error {
	if j.content != nil {
		if err := l.matches(j, hashOf(j.content)); err != nil {
			return err
		}
		if _, err := h.Write(ctx, l.by, 0, j.content, false); err != nil {
			return err
		}
		return h.Flush(ctx, l.by)
	}
	sum, buf := newContentHash(), make([]byte, 1<<20)
	for off := int64(0); j.body != nil; {
		n, err := io.ReadFull(j.body, buf)
		if n > 0 {
			sum.Write(buf[:n])
			if _, err := h.Write(ctx, l.by, off, buf[:n], false); err != nil {
				return err
			}
			off += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if off < j.size {
				return fmt.Errorf("only %d of %d bytes arrived", off, j.size)
			}
			break
		}
		if err != nil {
			return err
		}
	}
	if err := l.matches(j, sum.Sum(nil)); err != nil {
		return err
	}
	return h.Flush(ctx, l.by)
}

// matches compares content with the hash that its sender found, and with the line's.
func (l *loader) matches(j *loadJob, sum []byte) error {
	have := hex.EncodeToString(sum)
	if j.hash != "-" && have != j.hash || j.e.Hash != "" && have != j.e.Hash {
		return fmt.Errorf("its content has the hash %s, not the one that was given", have)
	}
	return nil
}

// present compares a line with what is there and has its type, and makes it
// equal when this load made it or may overwrite it.
func (l *loader) present(ctx context.Context, j *loadJob, a *meta.Attr, own bool) (meta.Ino, bool, error) {
	set, what, err := l.compare(ctx, j, a)
	if err != nil {
		return 0, false, err
	}
	switch {
	case len(what) == 0:
		l.count(func(e *loadEnd) { e.Same++ })
		return a.Ino, own, nil
	case !own && !l.overwrite:
		j.leave = true
		if !a.IsDir() {
			a.Ino = 0 // no other name is given to it
		}
		return a.Ino, false, l.differs(j, "other "+strings.Join(what, ", ")+" here")
	}
	if err := l.makeEqual(ctx, j, a, set); err != nil {
		return a.Ino, own, fmt.Errorf("it is half replaced, and its old content a version: %w", err)
	}
	if own {
		l.count(func(e *loadEnd) { e.Created++ })
	} else {
		l.replaced(j, "it had other "+strings.Join(what, ", "))
	}
	return a.Ino, own, nil
}

// change is what makes an object equal to its line.
type loadChange struct {
	attr    meta.SetAttr
	content bool
	target  bool
	xattrs  bool
}

// compare finds out in what an object differs from its line. What the line does
// not say does not differ. A directory's times are looked at in the end.
func (l *loader) compare(ctx context.Context, j *loadJob, a *meta.Attr) (set loadChange, what []string, err error) {
	differ := func(name string, valid uint32) {
		what = append(what, name)
		set.attr.Valid |= valid
	}
	if j.e.Mode != nil && !a.IsSymlink() && uint32(*j.e.Mode) != a.Mode&meta.ModePerm {
		differ("mode", meta.SetMode)
		set.attr.Mode = uint32(*j.e.Mode)
	}
	if j.e.UID != nil && *j.e.UID != a.UID || j.e.GID != nil && *j.e.GID != a.GID {
		differ("owner", meta.SetUID|meta.SetGID)
		set.attr.UID, set.attr.GID = l.owner(j)
	}
	if j.e.Mtime != nil && int64(*j.e.Mtime) != a.Mtime && !a.IsDir() {
		differ("mtime", meta.SetMtime)
		set.attr.Mtime = int64(*j.e.Mtime)
	}
	if j.e.Rdev != nil && uint32(*j.e.Rdev) != a.Rdev {
		differ("rdev", 0)
		set.target = true
	}
	switch {
	case a.IsRegular():
		set.content, err = l.otherContent(ctx, j, a)
	case a.IsSymlink():
		var target string
		target, err = l.c.engine.fs.Readlink(ctx, a.Ino)
		if target != string(j.e.Target) {
			set.target = true
			differ("target", 0)
		}
	}
	if set.content {
		differ("content", 0)
	}
	if err == nil {
		set.xattrs, err = l.otherXattrs(ctx, j, a)
	}
	if set.xattrs {
		differ("attributes", 0)
	}
	return set, what, err
}

// otherContent reports whether a file's content is not the line's.
func (l *loader) otherContent(ctx context.Context, j *loadJob, a *meta.Attr) (bool, error) {
	size, hash := j.size, j.e.Hash
	if size < 0 && j.e.Size != nil {
		size = *j.e.Size
	}
	if size >= 0 && size != a.Size {
		return true, nil
	}
	if hash == "" && j.hash != "-" {
		hash = j.hash
	}
	if hash == "" || size < 0 && j.e.Hash == "" {
		return false, nil
	}
	h := newContentHash()
	_, err := l.c.copyFile(ctx, h, a.Ino, make([]byte, min(max(a.Size, 4096), 1<<20)))
	return hex.EncodeToString(h.Sum(nil)) != hash, err
}

// makeEqual makes an object equal to its line.
func (l *loader) makeEqual(ctx context.Context, j *loadJob, a *meta.Attr, set loadChange) error {
	fs := l.c.engine.fs
	if set.target { // a link's target and a device's number cannot be changed
		if err := l.remove(ctx, j.parent.ino, path.Base(j.path), a); err != nil {
			return err
		}
		made, err := l.create(ctx, j, path.Base(j.path))
		*a = made
		return err
	}
	if set.content {
		switch {
		case j.size >= 0:
			if err := l.rewrite(ctx, j, a.Ino); err != nil {
				return err
			}
		case l.size(j) > 0 && !l.sparse:
			return errNoContent
		default:
			if _, err := fs.SetAttr(ctx, l.by, a.Ino, meta.SetAttr{Valid: meta.SetSize}); err != nil {
				return err
			}
			set.attr.Valid |= meta.SetSize
			set.attr.Size = l.size(j)
		}
		set.attr.Valid |= meta.SetMtime
		set.attr.Mtime = l.stamp(j.e.Mtime)
	}
	if set.attr.Valid != 0 {
		if _, err := fs.SetAttr(ctx, l.by, a.Ino, set.attr); err != nil {
			return err
		}
		if set.attr.Valid&meta.SetUID != 0 && j.mode&(meta.ModeSetuid|meta.ModeSetgid) != 0 && j.e.Mode != nil { // a new owner clears them
			if _, err := fs.SetAttr(ctx, l.by, a.Ino, meta.SetAttr{Valid: meta.SetMode, Mode: uint32(*j.e.Mode)}); err != nil {
				return err
			}
		}
	}
	if set.xattrs {
		return l.setXattrs(ctx, j, a)
	}
	return nil
}

// rewrite replaces a file's content; what it had is a version of its own.
func (l *loader) rewrite(ctx context.Context, j *loadJob, ino meta.Ino) error {
	h, err := l.c.engine.fs.OpenFile(ctx, l.by, ino, meta.OpenFlags{Write: true, Trunc: true})
	if err != nil {
		return err
	}
	defer h.Release(ctx)
	return l.write(ctx, j, h)
}

// otherXattrs reports whether an attribute of the line is not there as it says.
func (l *loader) otherXattrs(ctx context.Context, j *loadJob, a *meta.Attr) (bool, error) {
	for _, x := range j.e.Xattrs {
		have, err := l.c.engine.fs.GetXattr(ctx, a.Ino, string(x.Name))
		switch {
		case err != nil && meta.KindOf(err) == meta.KindNoData:
			return true, nil
		case err != nil:
			return false, err
		case string(have) != string(x.Value):
			return true, nil
		}
	}
	return false, nil
}

func (l *loader) setXattrs(ctx context.Context, j *loadJob, a *meta.Attr) error {
	for _, x := range j.e.Xattrs {
		if err := l.c.engine.fs.SetXattr(ctx, l.by, a.Ino, string(x.Name), x.Value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

// setTimes sets a directory's times unless they are so already.
func (l *loader) setTimes(ctx context.Context, t loadedTimes) error {
	a, err := l.c.engine.fs.GetAttr(ctx, t.ino)
	if err != nil || t.mtime == nil || int64(*t.mtime) == a.Mtime {
		return err
	}
	set := meta.SetAttr{Valid: meta.SetMtime, Mtime: int64(*t.mtime)}
	if t.atime != nil {
		set.Valid |= meta.SetAtime
		set.Atime = int64(*t.atime)
	}
	_, err = l.c.engine.fs.SetAttr(ctx, l.by, t.ino, set)
	return err
}
