package main

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"nexusfs/meta"
)

// deletedLimit bounds how many ended names of one directory are looked at to
// find a deleted file by its name.
const deletedLimit = 100_000

// found is what a path turned out to be.
type found struct {
	ino     meta.Ino
	parent  meta.Ino         // of the last name; 0 for the root
	live    bool             // a name of today
	deleted meta.DeletedName // when not live
}

// find walks a path from the root without following symbolic links. Where a
// name does not exist today the newest deleted one counts, so that history can
// be asked for what is gone.
func (c *control) find(ctx context.Context, p string) (found, error) {
	at := found{ino: meta.RootIno, live: true}
	for name := range strings.SplitSeq(path.Clean("/"+p), "/") {
		if name == "" {
			continue
		}
		next, err := c.step(ctx, at, name)
		if meta.KindOf(err) == meta.KindNotExist || meta.KindOf(err) == meta.KindNotDir {
			return found{}, fail(exitMissing, "there is no %s, and no deleted one is kept", escapeName(p))
		}
		if err != nil {
			return found{}, err
		}
		at = next
	}
	return at, nil
}

func (c *control) step(ctx context.Context, at found, name string) (found, error) {
	if at.live {
		a, err := c.engine.fs.Lookup(ctx, at.ino, name)
		if err == nil {
			return found{ino: a.Ino, parent: at.ino, live: true}, nil
		}
		if meta.KindOf(err) != meta.KindNotExist {
			return found{}, err
		}
	}
	gone, err := c.engine.history.Deleted(ctx, at.ino, deletedLimit)
	if err != nil {
		return found{}, err
	}
	for _, d := range gone {
		if d.Name == name {
			return found{ino: d.Ino, parent: at.ino, deleted: d}, nil
		}
	}
	return found{}, meta.E("find", at.ino, name, meta.KindNotExist, nil)
}

// findVersion reads PATH or PATH@N. A name that exists as written wins over
// @N; a version given apart is never ambiguous. n is 0 when none was named.
func (c *control) findVersion(ctx context.Context, p string, version int64) (at found, n int64, err error) {
	at, err = c.find(ctx, p)
	if version > 0 || err == nil && at.live {
		return at, version, err
	}
	base, n, ok := splitVersion(p)
	if !ok {
		return at, 0, err
	}
	if withN, berr := c.find(ctx, base); berr == nil {
		return withN, n, nil
	}
	if err != nil {
		err = fail(exitMissing, "there is no %s, and no deleted one is kept", escapeName(base))
	}
	return at, 0, err
}

// splitVersion splits PATH@N.
func splitVersion(p string) (base string, n int64, ok bool) {
	i := strings.LastIndexByte(p, '@')
	if i <= 0 || p[i-1] == '/' {
		return "", 0, false
	}
	digits := p[i+1:]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || digits[0] == '+' {
		return "", 0, false
	}
	return p[:i], n, true
}

// pathNames turns inodes into today's paths and remembers them for one answer.
type pathNames struct {
	c     *control
	known map[meta.Ino]string
}

// rememberedPaths bounds what one answer keeps.
const rememberedPaths = 4096

func (c *control) pathNames() *pathNames {
	return &pathNames{c: c, known: map[meta.Ino]string{}}
}

// of returns a path, or "" for an inode that has no name any more.
func (p *pathNames) of(ctx context.Context, ino meta.Ino) string {
	if s, ok := p.known[ino]; ok {
		return s
	}
	s, err := p.c.engine.history.PathOf(ctx, ino)
	if err != nil {
		s = ""
	}
	if len(p.known) >= rememberedPaths {
		clear(p.known)
	}
	p.known[ino] = s
	return s
}

// name returns the path of a name in a directory; the directory's number
// stands for one that is gone.
func (p *pathNames) name(ctx context.Context, parent meta.Ino, name string) bytesName {
	dir := p.of(ctx, parent)
	if dir == "" {
		dir = fmt.Sprintf("(deleted directory %d)", parent)
	}
	return bytesName(strings.TrimSuffix(dir, "/") + "/" + name)
}
