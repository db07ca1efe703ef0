package diskcache

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"nexusfs/content"
	"nexusfs/content/contenttest"
	"nexusfs/content/local"
	"nexusfs/content/s3"
	"nexusfs/internal/s3test"
	"nexusfs/meta"
)

const bucket = "cached-blobs"

// server is shared by the tests of this package: each uses a prefix of its own.
var server *s3test.Server

func TestMain(m *testing.M) {
	os.Exit(s3test.Main(m, bucket, func(s *s3test.Server) { server = s }))
}

var prefixes atomic.Int64

// below is a kind of store to put the cache in front of.
type below struct {
	name   string
	unfree contenttest.Finder
	open   func(ctx context.Context, dir, prefix string) (closer, error)
	find   func(dir, prefix string, b meta.Blob) (path string, base int64)
}

type closer interface {
	meta.Content
	Close() error
}

func stores() []below {
	return []below{
		{
			"local", contenttest.Compacted,
			func(ctx context.Context, dir, _ string) (closer, error) {
				return local.Open(ctx, local.Options{Dir: dir})
			},
			func(dir, _ string, b meta.Blob) (string, int64) {
				if b.Place == meta.PlaceFile {
					return filepath.Join(dir, "files", fmt.Sprintf("%08d", b.Segment), fmt.Sprintf("%x-%x", b.Offset, b.ID)), 0
				}
				return filepath.Join(dir, "segments", fmt.Sprintf("%08d.seg", b.Segment)), b.Offset + 64 + content.TableLen(b.Size)
			},
		},
		{
			"s3", contenttest.Walked,
			func(ctx context.Context, _, prefix string) (closer, error) { return s3.Open(ctx, s3Options(prefix)) },
			func(_, prefix string, b meta.Blob) (string, int64) {
				id := hex.EncodeToString(b.ID[:])
				name := fmt.Sprintf("%s-%x-%x-%x", id, b.Size, b.Segment, b.Offset)
				return filepath.Join(server.Dir, bucket, prefix, "blobs", id[:2], name), content.TableLen(b.Size)
			},
		},
	}
}

func s3Options(prefix string) s3.Options {
	l, err := s3.ParseLocation(fmt.Sprintf("s3://%s/%s?endpoint=http://%s&path_style=true", bucket, prefix, server.Addr))
	if err != nil {
		panic(err)
	}
	return s3.Options{Location: l, ID: "store of tests", Create: true}
}

func setKeys(t testing.TB) {
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
}

func TestConformance(t *testing.T) {
	for _, kind := range stores() {
		t.Run(kind.name, func(t *testing.T) {
			contenttest.Run(t, func(t *testing.T) *contenttest.Harness { return newHarness(t, kind) })
		})
	}
}

// newHarness opens a cache in front of an empty store. Damage hits what is
// stored and the copy of it alike: a copy that is sound is served, rightly.
func newHarness(t *testing.T, kind below) *contenttest.Harness {
	setKeys(t)
	checkLeaks(t)
	dir, copies, prefix := t.TempDir(), t.TempDir(), fmt.Sprint("zone/", prefixes.Add(1))
	ctx := context.WithoutCancel(t.Context())
	var store closer
	var cache *Cache
	open := func() (c meta.Content, err error) {
		if store, err = kind.open(ctx, dir, prefix); err == nil {
			cache, err = Open(ctx, store, Options{Dir: copies, Bytes: 1 << 30})
		}
		return cache, err
	}
	shut := func() error {
		if err := cache.Close(); err != nil {
			return err
		}
		return store.Close()
	}
	c, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shut(); err != nil {
			t.Error(err)
		}
	})
	return &contenttest.Harness{
		Content: c, Unfreed: kind.unfree,
		Reopen: func() (meta.Content, error) {
			if err := shut(); err != nil {
				return nil, err
			}
			return open()
		},
		Damage: func(b meta.Blob, how contenttest.Damage) error {
			for _, path := range copiesOf(t, copies, b) {
				if err := damageFile(path, 0, how); err != nil {
					return err
				}
			}
			path, base := kind.find(dir, prefix, b)
			return damageFile(path, base, how)
		},
	}
}

// copiesOf finds the files that hold a blob in a cache's folder.
func copiesOf(t testing.TB, dir string, b meta.Blob) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "blobs", "files", "*", "*-"+hex.EncodeToString(b.ID[:])))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func damageFile(path string, base int64, how contenttest.Damage) error {
	switch how.Kind {
	case contenttest.Cut:
		return os.Truncate(path, base+how.Off)
	case contenttest.Remove:
		return os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], base+how.Off); err != nil {
		return err
	}
	p[0] ^= 0x10
	_, err = f.WriteAt(p[:], base+how.Off)
	return err
}

// checkLeaks compares goroutines and descriptors at the end with those now.
func checkLeaks(t testing.TB) {
	goroutines, fds := runtime.NumGoroutine(), openFDs(t)
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second) // what has ended may still be counted
		for (runtime.NumGoroutine() > goroutines || openFDs(t) > fds) && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		if n := openFDs(t); n > fds {
			t.Errorf("%d open files, %d before", n, fds)
		}
	})
}

func openFDs(t testing.TB) int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// counted is a local store that counts reads, and makes them wait or fail.
type counted struct {
	meta.Content
	reads atomic.Int64
	bytes atomic.Int64
	gate  chan struct{} // when set, each read takes one from it,
	at    chan struct{} // having left one here
	err   atomic.Pointer[error]
}

func (c *counted) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	if c.gate != nil {
		c.at <- struct{}{}
		select {
		case <-c.gate:
		case <-ctx.Done():
			return meta.E("read content", 0, "", meta.KindInterrupted, ctx.Err())
		}
	}
	if err := c.err.Load(); err != nil {
		return *err
	}
	return c.Content.Read(ctx, b, off, p)
}

// rig is a cache in front of a counted store that has blobs which the cache
// does not.
type rig struct {
	*Cache
	t      *testing.T
	store  *counted
	opts   Options
	landed chan struct{} // one for each flight that ended
}

func newRig(t *testing.T, set func(*Options)) *rig {
	t.Helper()
	checkLeaks(t)
	s, err := local.Open(t.Context(), local.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := &rig{t: t, store: &counted{Content: s, at: make(chan struct{}, 1000)}, landed: make(chan struct{}, 1000)}
	r.opts = Options{Dir: t.TempDir(), Bytes: MinBytes, Log: slog.New(slog.DiscardHandler), landed: func() { r.landed <- struct{}{} }}
	if set != nil {
		set(&r.opts)
	}
	r.open()
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *rig) open() {
	r.t.Helper()
	c, err := Open(context.WithoutCancel(r.t.Context()), r.store, r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Cache = c
}

func (r *rig) reopen() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

// far stores a blob below, past the cache.
func (r *rig) far(size int) (meta.Blob, []byte) {
	r.t.Helper()
	data := bytesOf(size)
	b, err := r.store.Put(r.t.Context(), data)
	if err != nil {
		r.t.Fatal(err)
	}
	b.Place = meta.PlaceFile // as all are in S3; the local store keeps them in files from 1 MiB on
	if size < 1<<20 || size == meta.BlobMax {
		b.Place = meta.PlacePack
	}
	return b, data
}

func bytesOf(size int) []byte {
	p := make([]byte, size)
	for i := 0; i+8 <= size; i += 512 {
		v := rand.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// anyReads is a number of reads below that depends on what runs in the background.
const anyReads = -1

// read wants the right bytes and n more reads below.
func (r *rig) read(b meta.Blob, data []byte, off, size int, n int64) {
	r.t.Helper()
	before := r.store.reads.Load()
	p := make([]byte, size)
	if err := r.Read(r.t.Context(), b, int64(off), p); err != nil {
		r.t.Fatalf("read %d bytes at %d: %v", size, off, err)
	}
	if !slices.Equal(p, data[off:off+size]) {
		r.t.Fatalf("read %d bytes at %d: wrong bytes", size, off)
	}
	if got := r.store.reads.Load() - before; got != n && n != anyReads {
		r.t.Fatalf("read %d bytes at %d: %d reads below, want %d", size, off, got, n)
	}
}

// land waits for n flights to end.
func (r *rig) land(n int) {
	for range n {
		<-r.landed
	}
}
