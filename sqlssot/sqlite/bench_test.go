package sqlite

import (
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"nexusfs/meta"
)

// world is a store with a session, for benchmarks.
type world struct {
	*Store
	tb      testing.TB
	session int64
	epoch   int64
	next    meta.Ino
	last    meta.Ino
	dir     meta.Ino
}

func newWorld(tb testing.TB) *world {
	ctx := context.Background()
	s, err := Create(ctx, Options{Path: filepath.Join(tb.TempDir(), "meta.db"), Mode: 0o755})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	w := &world{Store: s, tb: tb, dir: meta.RootIno}
	w.session, w.epoch, _, err = s.Begin(ctx, meta.SessionInfo{Node: "n", BootID: "b"})
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

func (w *world) ino() meta.Ino {
	if w.next == w.last {
		first, err := w.Inos(context.Background(), 1<<16)
		if err != nil {
			w.tb.Fatal(err)
		}
		w.next, w.last = first, first+1<<16
	}
	w.next++
	return w.next - 1
}

func (w *world) create(dir bool) *meta.Change {
	now := time.Now().UnixNano()
	a := meta.Attr{Ino: w.ino(), Mode: meta.ModeRegular | 0o644, Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now}
	c := &meta.Change{Record: meta.Record{Kind: meta.OpCreate, Ino: a.Ino, Parent: w.dir, Name: fmt.Sprintf("file-number-%d", a.Ino), Time: now,
		Seq: int64(a.Ino), Before: fmt.Sprintf(`{"pmtime":%d,"pctime":%d}`, now, now), After: `{"mode":33188,"uid":0,"gid":0}`,
		Actor: meta.Actor{PID: 77, StartTime: 12345, Exe: "/usr/bin/touch", Node: "node"}}}
	d := meta.DirDelta{Ino: w.dir, Entries: 1, Time: now}
	if dir {
		a.Mode, a.Nlink, a.Parent, d.Nlink = meta.ModeDir|0o755, 2, w.dir, 1
		c.Record.Kind = meta.OpMkdir
	} else {
		a.Version, a.ContentRev = 1, meta.RevPending
		c.Record.Version = 1
		c.Version = &meta.VersionChange{Ino: a.Ino, N: 1, New: true}
	}
	c.Inodes = []meta.InodeChange{{After: a}}
	c.Dirs = []meta.DirDelta{d}
	c.Names = []meta.NameChange{{Parent: w.dir, Name: c.Record.Name, After: a.Ino, AfterType: a.Mode & meta.ModeType}}
	return c
}

// write fills a file that create made at revision rev.
func (w *world) write(made *meta.Change, rev meta.Rev, data []byte) *meta.Change {
	before := made.Inodes[0].After
	before.Rev, before.ContentRev = rev, rev
	after := before
	after.Size, after.Version, after.ContentRev = int64(len(data)), 2, meta.RevPending
	id := meta.BlobID(sha256.Sum256(data))
	b := meta.Blob{ID: id, Size: int64(len(data))}
	return &meta.Change{
		Record: meta.Record{Kind: meta.OpWrite, Ino: after.Ino, Time: after.Mtime, Size: after.Size, Version: 2,
			Before: `{"size":0}`, After: `{"size":4096}`, Actor: made.Record.Actor},
		Inodes: []meta.InodeChange{{Before: &before, After: after}},
		Content: &meta.ContentChange{Ino: after.Ino, Fresh: true, Blobs: []meta.NewBlob{{Blob: b, Data: data}},
			Ranges: []meta.RangeChange{{Len: after.Size, Extents: []meta.Extent{{Len: after.Size, Blob: b}}}}},
		Version: &meta.VersionChange{Ino: after.Ino, N: 2, New: true, Size: after.Size},
	}
}

func (w *world) commit(c ...*meta.Change) []meta.Outcome {
	out, err := w.Commit(context.Background(), &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: c})
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, o := range out {
		if o.Err != nil {
			w.tb.Fatal(o.Err)
		}
	}
	return out
}

// measure runs fn b.N times and reports its p50 and the process's CPU per run.
func measure(b *testing.B, every int, maintain func(), fn func(i int)) {
	d := make([]time.Duration, 0, b.N)
	var before, after syscall.Rusage
	b.ResetTimer()
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for i := range b.N {
		t := time.Now()
		fn(i)
		d = append(d, time.Since(t))
		if every > 0 && i%every == every-1 {
			b.StopTimer()
			maintain()
			b.StartTimer()
		}
	}
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(d[len(d)/10].Nanoseconds())/1e3, "p10-us")
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e3/float64(b.N), "cpu-us")
}

func BenchmarkCommit(b *testing.B) {
	for _, kind := range []string{"mkdir", "create"} {
		for _, n := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/batch=%d", kind, n), func(b *testing.B) {
				w := newWorld(b)
				batch := make([]*meta.Change, n)
				measure(b, 4000/n+1, func() { w.checkpoint() }, func(int) {
					for i := range batch {
						batch[i] = w.create(kind == "mkdir")
					}
					w.commit(batch...)
				})
				b.ReportMetric(float64(n), "ops/commit")
			})
		}
	}
}

func (w *world) checkpoint() {
	if err := w.Checkpoint(context.Background(), true); err != nil {
		w.tb.Fatal(err)
	}
}

func BenchmarkWrite4kInline(b *testing.B) {
	w := newWorld(b)
	data := make([]byte, 4096)
	const ahead = 2000
	var made []*meta.Change
	var revs []meta.Rev
	fill := func() {
		made, revs = made[:0], revs[:0]
		for range ahead {
			c := w.create(false)
			made, revs = append(made, c), append(revs, w.commit(c)[0].Rev)
		}
		w.checkpoint()
	}
	fill()
	measure(b, ahead, fill, func(i int) {
		copy(data, fmt.Sprint(i))
		w.commit(w.write(made[i%ahead], revs[i%ahead], data))
	})
}

// unlink takes away a file that create made at revision rev.
func (w *world) unlink(made *meta.Change, rev meta.Rev) *meta.Change {
	before := made.Inodes[0].After
	before.Rev, before.ContentRev = rev, rev
	after := before
	after.Nlink = 0
	return &meta.Change{
		Record: meta.Record{Kind: meta.OpUnlink, Ino: after.Ino, Parent: w.dir, Name: made.Record.Name, Time: after.Mtime,
			Before: made.Record.Before, Actor: made.Record.Actor},
		Inodes: []meta.InodeChange{{Before: &before, After: after}},
		Dirs:   []meta.DirDelta{{Ino: w.dir, Entries: -1, Time: after.Mtime}},
		Names:  []meta.NameChange{{Parent: w.dir, Name: made.Record.Name, Before: after.Ino, BeforeType: meta.ModeRegular}},
	}
}

func BenchmarkUnlink(b *testing.B) {
	w := newWorld(b)
	const ahead = 2000
	var made []*meta.Change
	var revs []meta.Rev
	fill := func() {
		made, revs = made[:0], revs[:0]
		for range ahead {
			c := w.create(false)
			made, revs = append(made, c), append(revs, w.commit(c)[0].Rev)
		}
		w.checkpoint()
	}
	fill()
	measure(b, ahead, fill, func(i int) { w.commit(w.unlink(made[i%ahead], revs[i%ahead])) })
}

func BenchmarkLookup(b *testing.B) {
	w := newWorld(b)
	var names []string
	for range 200 {
		batch := make([]*meta.Change, 100)
		for i := range batch {
			batch[i] = w.create(false)
			names = append(names, batch[i].Record.Name)
		}
		w.commit(batch...)
	}
	w.checkpoint()
	ctx := context.Background()
	b.ReportAllocs()
	measure(b, 0, nil, func(i int) {
		if _, err := w.Lookup(ctx, w.dir, names[i*7919%len(names)]); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkFileBytes creates b.N empty files, each in a commit of its own, and
// reports what a file takes in the database: -benchtime 1000000x.
func BenchmarkFileBytes(b *testing.B) {
	w := newWorld(b)
	dirs := make([]meta.Ino, 0, 1000)
	for range cap(dirs) {
		c := w.create(true)
		dirs = append(dirs, c.Record.Ino)
		w.commit(c)
	}
	b.ResetTimer()
	for i := range b.N {
		w.dir = dirs[i*len(dirs)/b.N]
		w.commit(w.create(false))
		if i%4000 == 3999 {
			w.checkpoint()
		}
	}
	w.checkpoint()
	st, err := w.Stats(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(st.FileBytes)/float64(b.N), "bytes/file")
}

// BenchmarkCommitSync is what strict durability costs a single caller.
func BenchmarkCommitSync(b *testing.B) {
	w := newWorld(b)
	measure(b, 500, w.checkpoint, func(int) {
		w.commit(w.create(true))
		if err := w.Sync(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkChmod changes files all over a store of 50,000, so that commits
// touch pages in no order, as they do in daily use.
func BenchmarkChmod(b *testing.B) {
	w := newWorld(b)
	const files = 50_000
	attrs := make([]meta.Attr, files)
	for from := 0; from < files; from += 250 {
		batch := make([]*meta.Change, 250)
		for i := range batch {
			batch[i] = w.create(false)
		}
		for i, o := range w.commit(batch...) {
			a := batch[i].Inodes[0].After
			a.Rev, a.ContentRev = o.Rev, o.Rev
			attrs[from+i] = a
		}
	}
	w.checkpoint()
	measure(b, 4000, w.checkpoint, func(i int) {
		before := &attrs[i*7919%files]
		after := *before
		after.Mode ^= 0o111
		after.Ctime++
		rec := meta.Record{Kind: meta.OpSetattr, Ino: after.Ino, Time: after.Ctime, Before: `{"mode":33188}`, After: `{"mode":33261}`,
			Actor: meta.Actor{PID: 77, StartTime: 12345, Exe: "/usr/bin/chmod", Node: "node"}}
		o := w.commit(&meta.Change{Record: rec, Inodes: []meta.InodeChange{{Before: before, After: after}}})
		after.Rev = o[0].Rev
		*before = after
	})
}
