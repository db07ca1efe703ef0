package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"nexusfs/meta"
)

// The body of a load is a sequence of frames: a head "LINE BYTES HASH\n" (the
// line's number, how many bytes of content follow, -1 for none, and their
// BLAKE3, "-" for none), the line itself, and the content. Lines are handed to
// many workers, so that their operations share transactions; what a line needs
// of an earlier one, its directory or the first name of its file, it waits for.
// Lines are handed out in order and a line waits for earlier ones alone, so
// somebody can always go on.

const (
	loadWorkers  = 512       // lines under way: two batches of the commit path
	loadMemory   = 32 << 20  // bytes of content under way
	loadBuffered = 256 << 10 // content that is handed to a worker; more is stored as it arrives
	loadMade     = 0o755     // permissions of directories that no line made
)

// loadEnd sums up a load.
type loadEnd struct {
	Lines    int64 `json:"lines"`
	Created  int64 `json:"created"`
	Same     int64 `json:"same"`
	Replaced int64 `json:"replaced"`
	Differ   int64 `json:"different"` // left as they are
	Failed   int64 `json:"failed"`
	Stopped  int64 `json:"stopped_at_line,omitempty"` // the rest was not looked at
}

// loadItem is a line that was not simply loaded.
type loadItem struct {
	Line int64     `json:"line"`
	Path bytesName `json:"path,omitempty"`
	Did  string    `json:"did"` // "replaced", "different" or "failed"
	Text string    `json:"text"`
}

// loader is one load.
type loader struct {
	c         *control
	s         *sender
	by        meta.Caller
	now       int64
	overwrite bool
	sparse    bool
	jobs      chan *loadJob
	busy      sync.WaitGroup // lines that are handed out and not done
	memory    byteGate

	// Of the goroutine that hands out the lines.
	dirs     map[string]*promise // by path from the base: what lines made, or found
	links    map[uint64]*promise // by the dump's inode number: files with several names
	header   bool
	complete bool

	mu    sync.Mutex
	end   loadEnd       // guarded by mu
	times []loadedTimes // guarded by mu; of directories, for the end
	fatal error         // guarded by mu: the first; nothing is done behind it
}

// promise is an inode that a line is about to make or find.
type promise struct {
	done chan struct{}
	ino  meta.Ino // valid after done; 0: it failed
	made bool     // by this load
}

func (p *promise) keep(ino meta.Ino, made bool) {
	p.ino, p.made = ino, made
	close(p.done)
}

// loadedTimes are a directory's, set when everything is in it.
type loadedTimes struct {
	ino          meta.Ino
	atime, mtime *stamp
}

// loadJob is one line on its way.
type loadJob struct {
	line    int64
	e       *dumpEntry
	path    string // from the base
	mode    uint32
	hash    string // of content
	size    int64  // of content; -1: none was given
	content []byte // nil when body has it
	body    io.Reader
	parent  *promise
	self    *promise // of a directory; nil for others
	link    *promise // of a file with several names; nil for others
	first   bool     // this line keeps self or link
	leave   bool     // what is there stays as it is, times too
}

// load is the store's side of `nexusfs load`.
func (c *control) load(ctx context.Context, r *http.Request, s *sender) (loadEnd, error) {
	if err := s.rc.EnableFullDuplex(); err != nil { // lines are answered while others arrive
		return loadEnd{}, err
	}
	by := c.caller(ctx)
	who := by.Actor()
	by.Known = &who
	l := &loader{
		c: c, s: s, by: by, now: time.Now().UnixNano(),
		overwrite: r.FormValue("overwrite") == "true", sparse: r.FormValue("sparse") == "true",
		jobs: make(chan *loadJob, loadWorkers), memory: newByteGate(loadMemory), dirs: map[string]*promise{}, links: map[uint64]*promise{},
	}
	if err := l.openBase(ctx, r.FormValue("path")); err != nil {
		return loadEnd{}, err
	}
	var wg sync.WaitGroup
	for range loadWorkers {
		wg.Go(func() {
			for j := range l.jobs {
				l.do(ctx, j)
				l.memory.give(len(j.content))
				l.busy.Done()
			}
		})
	}
	err := l.readBody(ctx, r.Body)
	close(l.jobs)
	wg.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return l.end, err
	}
	return l.finish(ctx)
}

// openBase finds the directory that is loaded into, and makes it when it is missing.
func (l *loader) openBase(ctx context.Context, p string) error {
	fs := l.c.engine.fs
	dir, made := meta.RootIno, false
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+p), "/"), "/") {
		if name == "" {
			continue
		}
		a, err := fs.Lookup(ctx, dir, name)
		if err != nil && meta.KindOf(err) == meta.KindNotExist {
			a, err = l.mkdir(ctx, dir, name)
			made = true
		}
		if err == nil && !a.IsDir() {
			err = fail(exitFailed, "%s is not a directory", escapeName(p))
		}
		if err != nil {
			return err
		}
		dir = a.Ino
	}
	if !made {
		list, err := fs.ReadDir(ctx, dir, 0, 1, false, nil)
		if err != nil {
			return err
		}
		made = len(list) == 0 // an empty one is given the attributes of the dump's root
	}
	base := &promise{done: make(chan struct{})}
	base.keep(dir, made)
	l.dirs[""] = base
	return nil
}

func (l *loader) mkdir(ctx context.Context, dir meta.Ino, name string) (meta.Attr, error) {
	return l.c.engine.fs.Make(ctx, l.by, dir, name, meta.Object{
		Mode: meta.ModeDir | loadMade, UID: l.by.UID, GID: l.by.GID, Atime: l.now, Mtime: l.now,
	})
}

// readBody hands out the lines until the body ends or something is fatal.
func (l *loader) readBody(ctx context.Context, body io.Reader) error {
	in := bufio.NewReaderSize(body, 256<<10)
	for ctx.Err() == nil {
		j := new(loadJob)
		head, err := in.ReadString('\n')
		if err == io.EOF && head == "" {
			return nil
		}
		if err == nil {
			_, err = fmt.Sscanf(head, "%d %d %s\n", &j.line, &j.size, &j.hash)
		}
		var line []byte
		if err == nil {
			line, err = in.ReadBytes('\n')
		}
		if err != nil {
			return fail(exitFailed, "the lines that arrived were cut: %w", err)
		}
		l.count(func(e *loadEnd) { e.Lines++ })
		if l.stopped(j.line) {
			return nil
		}
		if err := l.handOut(ctx, j, line, in); err != nil {
			return err
		}
	}
	return nil
}

// handOut parses a line, finds out what it waits for, and gives it to a worker
// or, when its content is large, does it here.
func (l *loader) handOut(ctx context.Context, j *loadJob, line []byte, in *bufio.Reader) error {
	if j.size > 0 && j.size <= loadBuffered {
		j.content = make([]byte, j.size)
		if _, err := io.ReadFull(in, j.content); err != nil {
			return fail(exitFailed, "content of line %d was cut: %w", j.line, err)
		}
	}
	large := j.size > loadBuffered
	if large {
		j.body = io.LimitReader(in, j.size)
	}
	var err error
	j.e, j.path, j.mode, err = parseEntry(line)
	switch {
	case err != nil:
		l.report(j, "failed", err)
	case j.e.Dump != 0:
		l.header = true
	case j.e.End:
		l.complete = true
	default:
		if j.e.Size != nil && j.size >= 0 && *j.e.Size != j.size {
			l.report(j, "failed", fmt.Errorf("it says %d bytes, its content has %d", *j.e.Size, j.size))
			break
		}
		l.depend(ctx, j)
		if !large {
			l.memory.take(len(j.content))
			l.busy.Add(1)
			l.jobs <- j
			return nil
		}
		l.do(ctx, j)
	}
	if large {
		_, err := io.Copy(io.Discard, j.body)
		return err
	}
	return nil
}

// depend fills in what a line waits for.
func (l *loader) depend(ctx context.Context, j *loadJob) {
	if j.path != "" {
		j.parent = l.directory(ctx, path.Dir(j.path))
	}
	switch bits := j.mode & meta.ModeType; {
	case bits == meta.ModeDir:
		j.self = &promise{done: make(chan struct{})}
		if known, ok := l.dirs[j.path]; ok {
			j.self = known // the base, or made for a line before
		} else {
			l.dirs[j.path] = j.self
			j.first = true
		}
	case j.e.Ino != 0 && j.e.Nlink > 1:
		j.link = l.links[j.e.Ino]
		if j.link == nil {
			j.link, j.first = &promise{done: make(chan struct{})}, true
			l.links[j.e.Ino] = j.link
		}
	}
}

// directory returns the promise of a line's directory. When no line was about
// it, it is found in the store, or made.
//
// p is a path.Dir: "." is the base.
func (l *loader) directory(ctx context.Context, p string) *promise {
	if p == "." {
		p = ""
	}
	if d, ok := l.dirs[p]; ok {
		return d
	}
	above := l.directory(ctx, path.Dir(p))
	d := &promise{done: make(chan struct{})}
	l.dirs[p] = d
	<-above.done
	if above.ino == 0 {
		d.keep(0, false)
		return d
	}
	name, made := path.Base(p), false
	a, err := l.c.engine.fs.Lookup(ctx, above.ino, name)
	if err != nil && meta.KindOf(err) == meta.KindNotExist {
		l.busy.Wait() // an earlier line may be about to make something else of this name
		a, err = l.c.engine.fs.Lookup(ctx, above.ino, name)
	}
	if err != nil && meta.KindOf(err) == meta.KindNotExist {
		a, err = l.mkdir(ctx, above.ino, name)
		made = true
	}
	if err != nil || !a.IsDir() {
		d.keep(0, false)
		return d
	}
	d.keep(a.Ino, made)
	return d
}

func (l *loader) count(fn func(*loadEnd)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(&l.end)
}

// byteGate bounds bytes of memory.
type byteGate struct {
	mu    *sync.Mutex
	freed *sync.Cond
	free  int // guarded by mu
}

func newByteGate(n int) byteGate {
	mu := new(sync.Mutex)
	return byteGate{mu: mu, freed: sync.NewCond(mu), free: n}
}

// take waits for n bytes, which are fewer than the gate has.
func (g *byteGate) take(n int) {
	g.mu.Lock()
	for g.free < n {
		g.freed.Wait()
	}
	g.free -= n
	g.mu.Unlock()
}

func (g *byteGate) give(n int) {
	g.mu.Lock()
	g.free += n
	g.mu.Unlock()
	g.freed.Signal()
}

// stopped reports whether an error ended the load; the first line behind it is noted.
func (l *loader) stopped(line int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal != nil && l.end.Stopped == 0 {
		l.end.Stopped = line
	}
	return l.fatal != nil
}

// report counts a line that was not simply loaded, and tells about it.
func (l *loader) report(j *loadJob, did string, err error) {
	switch did {
	case "replaced":
		l.count(func(e *loadEnd) { e.Replaced++ })
	case "different":
		l.count(func(e *loadEnd) { e.Differ++ })
	default:
		l.count(func(e *loadEnd) { e.Failed++ })
	}
	item := loadItem{Line: j.line, Did: did, Text: userText(err)}
	if j.e != nil {
		item.Path = j.e.Path
	}
	if serr := l.s.item(item); serr != nil {
		l.stop(serr)
	}
}

func (l *loader) stop(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal == nil {
		l.fatal = err
	}
}

// finish gives directories their times and makes everything durable.
func (l *loader) finish(ctx context.Context) (loadEnd, error) {
	fs := l.c.engine.fs
	for i := len(l.times) - 1; i >= 0 && l.fatal == nil; i-- {
		if err := l.setTimes(ctx, l.times[i]); err != nil && meta.KindOf(err) != meta.KindNotExist {
			l.stop(err)
		}
	}
	if err := fs.Sync(ctx); err != nil {
		return l.end, err
	}
	if err := l.c.engine.settleKernel(ctx); err != nil {
		return l.end, err
	}
	switch {
	case l.fatal != nil:
		return l.end, fail(exitFailed, "stopped before line %d; the lines before it are loaded, but for those named above. Mend this and run the same command again: %w", max(l.end.Stopped, l.end.Lines), l.fatal)
	case l.header && !l.complete:
		return l.end, fail(exitFailed, "the dump was cut behind line %d: its last line is missing. What is there is loaded", l.end.Lines)
	}
	return l.end, nil
}

// isFatal says whether an error concerns every line that follows.
func isFatal(err error) bool {
	switch meta.KindOf(err) {
	case meta.KindNoSpace, meta.KindQuota, meta.KindReadOnly, meta.KindShutdown, meta.KindFenced, meta.KindInterrupted:
		return true
	case meta.KindIO:
		var e *meta.Error
		return errors.As(err, &e)
	}
	return false
}
