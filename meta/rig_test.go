package meta

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// rig is a filesystem on fakes.
type rig struct {
	*FS
	t     *testing.T
	store *fakeStore
	disk  *fakeContent
	clock atomic.Int64 // ns, moves by one with each look
	logs  *bytes.Buffer
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, store: newFakeStore(), disk: newFakeContent(), logs: new(bytes.Buffer)}
	r.clock.Store(1_000_000)
	o := Options{
		Store: r.store, History: r.store, Sessions: r.store, Upkeep: r.store, Content: r.disk,
		Zone: "default", Node: "n", BootID: "boot", Retention: DefaultRetention(),
		Now: func() time.Time { return time.Unix(0, r.clock.Add(1)) },
		Log: slog.New(slog.NewTextHandler(&lockedWriter{w: r.logs}, nil)),
	}
	for _, c := range change {
		c(&o)
	}
	r.FS = New(o)
	if err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if got := r.nodes.count(); got != 0 {
			return // handles are open on purpose
		}
		if got := r.nodes.staged.Load(); got != 0 {
			t.Errorf("staged bytes after the last close: %d", got)
		}
		if got := r.nodes.dirty.Load(); got != 0 {
			t.Errorf("dirty files after the last close: %d", got)
		}
		if got := r.nodes.mapped.Load(); got != 0 {
			t.Errorf("mapped extents after the last close: %d", got)
		}
		if got := len(r.nodes.pins.m); got != 0 {
			t.Errorf("pinned blobs after the last close: %d", got)
		}
	})
	return r
}

type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

var user = Caller{UID: 1000, GID: 1000, PID: 42}

func (r *rig) create(name string) *Handle {
	r.t.Helper()
	_, h, err := r.Create(r.t.Context(), user, RootIno, name, CreateArgs{Mode: 0o644, Flags: OpenFlags{Read: true, Write: true, Excl: true}})
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) open(ino Ino) *Handle {
	r.t.Helper()
	h, err := r.OpenFile(r.t.Context(), user, ino, OpenFlags{Read: true, Write: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) write(h *Handle, off int64, data []byte) {
	r.t.Helper()
	if n, err := h.Write(r.t.Context(), user, off, data, false); err != nil || n != len(data) {
		r.t.Fatalf("write %d at %d: %d, %v", len(data), off, n, err)
	}
}

func (r *rig) flush(h *Handle) {
	r.t.Helper()
	if err := h.Flush(r.t.Context(), user); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close(h *Handle) {
	r.t.Helper()
	r.flush(h)
	h.Release(r.t.Context())
}

func (r *rig) read(h *Handle, off int64, n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	got, err := h.Read(r.t.Context(), off, p)
	if err != nil {
		r.t.Fatalf("read %d at %d: %v", n, off, err)
	}
	return p[:got]
}

func (r *rig) stat(ino Ino) Attr {
	r.t.Helper()
	a, err := r.GetAttr(r.t.Context(), ino)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func (r *rig) wantKind(err error, want Kind) {
	r.t.Helper()
	if err == nil || KindOf(err) != want {
		r.t.Fatalf("got %v, want %v", err, want)
	}
}

var errDisk = errors.New("disk")
