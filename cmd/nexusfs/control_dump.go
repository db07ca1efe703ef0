package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"

	"nexusfs/meta"
)

// dumpPage is how many names of one directory are read at once. The walk keeps
// one page for each directory on its way down: memory follows the depth.
const dumpPage = 256

// dump answers with the lines of a dump.
func (c *control) dump(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	p := r.FormValue("path")
	at, err := c.find(ctx, p)
	if err == nil && !at.live {
		err = fail(exitMissing, "%s is deleted: restore it first, or dump its directory", escapeName(p))
	}
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Trailer", errorTrailer)
	w.WriteHeader(http.StatusOK)
	d := dumper{c: c, w: bufio.NewWriterSize(w, 64<<10), hash: r.FormValue("hash") == "true"}
	if err := errors.Join(d.run(ctx, at, p), d.w.Flush()); err != nil {
		w.Header().Set(errorTrailer, escapeName(err.Error()))
	}
}

// dumper walks a tree and writes its lines. It stops at the first write that fails.
type dumper struct {
	c       *control
	w       *bufio.Writer
	hash    bool
	entries int64
	line    []byte
	buf     []byte // content, for its hash
}

// dumpDir is a directory on the way down.
type dumpDir struct {
	ino   meta.Ino
	path  string // from the dump's root, "" for that
	after uint64
	page  []meta.Entry // entries that are left of what was read
	more  bool         // there may be others behind them
}

func (d *dumper) run(ctx context.Context, at found, p string) error {
	fs := d.c.engine.fs
	a, err := fs.GetAttr(ctx, at.ino)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(d.w, "{\"nexusfs_dump\":%d,\"zone\":%s,\"root\":%s,\"revision\":%d}\n",
		dumpVersion, mustJSON(d.c.engine.zone), mustJSON(bytesName(p)), fs.Status().Revision); err != nil {
		return err
	}
	if a.IsDir() {
		err = d.tree(ctx, a)
	} else {
		err = d.entry(ctx, "/"+path.Base(p), &a)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(d.w, "{\"end\":true,\"entries\":%d,\"revision\":%d}\n", d.entries, fs.Status().Revision)
	return err
}

// tree writes a directory and all below it, parents before children.
func (d *dumper) tree(ctx context.Context, root meta.Attr) error {
	if err := d.entry(ctx, "/", &root); err != nil {
		return err
	}
	for dirs := []*dumpDir{{ino: root.Ino, more: true}}; len(dirs) > 0; {
		at := dirs[len(dirs)-1]
		e, err := d.next(ctx, at)
		switch {
		case err != nil:
			return err
		case e == nil:
			dirs = dirs[:len(dirs)-1]
			continue
		}
		p := at.path + "/" + e.Name
		if err := d.entry(ctx, p, &e.Attr); err != nil {
			return err
		}
		if e.Attr.IsDir() {
			dirs = append(dirs, &dumpDir{ino: e.Attr.Ino, path: p, more: true})
		}
	}
	return nil
}

// next returns a directory's next entry, nil at its end.
func (d *dumper) next(ctx context.Context, at *dumpDir) (*meta.Entry, error) {
	if len(at.page) == 0 && at.more {
		page, err := d.c.engine.fs.ReadDir(ctx, at.ino, at.after, dumpPage, true, nil)
		if err != nil {
			return nil, err
		}
		at.page, at.more = page, len(page) >= dumpPage
		if len(page) > 0 {
			at.after = page[len(page)-1].Cookie
		}
	}
	if len(at.page) == 0 {
		return nil, nil
	}
	e := &at.page[0]
	at.page = at.page[1:]
	return e, nil
}

// entry writes one line. What was removed since its directory was read has none.
func (d *dumper) entry(ctx context.Context, p string, a *meta.Attr) error {
	e := dumpEntry{Path: bytesName(p), Type: typeText(a.Mode)}
	err := d.details(ctx, &e, a)
	if err != nil && meta.KindOf(err) == meta.KindNotExist {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	d.entries++
	d.line = appendEntry(d.line[:0], &e, a)
	_, err = d.w.Write(d.line)
	return err
}

// details reads what is not in the attributes.
func (d *dumper) details(ctx context.Context, e *dumpEntry, a *meta.Attr) error {
	fs := d.c.engine.fs
	if a.IsSymlink() {
		target, err := fs.Readlink(ctx, a.Ino)
		if err != nil {
			return err
		}
		e.Target = bytesName(target)
	}
	if a.Flags&meta.FlagXattrs != 0 {
		names, err := fs.ListXattr(ctx, a.Ino)
		if err != nil {
			return err
		}
		for _, name := range names {
			value, err := fs.GetXattr(ctx, a.Ino, name)
			if err != nil && meta.KindOf(err) == meta.KindNoData {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
			e.Xattrs = append(e.Xattrs, dumpXattr{bytesName(name), value})
		}
	}
	if !d.hash || !a.IsRegular() {
		return nil
	}
	if d.buf == nil {
		d.buf = make([]byte, 1<<20)
	}
	h := newContentHash()
	n, err := d.c.copyFile(ctx, h, a.Ino, d.buf)
	a.Size = n // what was hashed
	e.Hash = hex.EncodeToString(h.Sum(nil))
	return err
}

// copyFile writes a file's content, as it is now, to w and returns its size.
func (c *control) copyFile(ctx context.Context, w io.Writer, ino meta.Ino, buf []byte) (size int64, err error) {
	h, err := c.engine.fs.OpenFile(ctx, meta.Caller{}, ino, meta.OpenFlags{Read: true})
	if err != nil {
		return 0, err
	}
	defer h.Release(ctx)
	for {
		n, err := h.Read(ctx, size, buf)
		if err != nil || n == 0 {
			return size, err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return size, err
		}
		size += int64(n)
	}
}

// read answers with the content of a file, by its inode.
func (c *control) read(w http.ResponseWriter, r *http.Request) {
	q := query{r: r}
	ino := q.int("ino")
	if q.err != nil {
		writeError(w, q.err)
		return
	}
	a, err := c.engine.fs.GetAttr(r.Context(), meta.Ino(ino))
	if err == nil && !a.IsRegular() {
		err = fail(exitUsage, "inode %d is no regular file", ino)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", errorTrailer)
	w.WriteHeader(http.StatusOK)
	if _, err := c.copyFile(r.Context(), w, a.Ino, make([]byte, min(max(a.Size, 4096), 1<<20))); err != nil {
		w.Header().Set(errorTrailer, escapeName(err.Error()))
	}
}
