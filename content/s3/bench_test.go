package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"nexusfs/content/diskcache"
	"nexusfs/meta"
)

// Each benchmark runs the client library alone, as its manual shows it, and the
// driver with the same parallelism, on the same server.
//
//	go test ./content/s3 -run xxx -bench . -benchtime 2s

// inParallel calls fn for 0 to b.N-1 from workers goroutines.
func inParallel(b *testing.B, workers int, fn func(i int) error) {
	b.Helper()
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < b.N; i = int(next.Add(1)) - 1 {
				if err := fn(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

var benchShapes = []struct{ size, workers int }{
	{meta.BlobMax, 1}, {meta.BlobMax, 4}, {64 << 10, 1}, {64 << 10, 8}, {64 << 10, 32},
}

func BenchmarkPut(b *testing.B) {
	for _, shape := range benchShapes {
		data := noise(shape.size)
		b.Run(fmt.Sprintf("library/%dK/%d", shape.size>>10, shape.workers), func(b *testing.B) {
			b.SetBytes(int64(shape.size))
			o := options(b)
			s := mustOpen(b, o)
			inParallel(b, shape.workers, func(i int) error {
				_, err := s.core.Client.PutObject(b.Context(), bucket, s.key(fmt.Sprint("raw/", i)), bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{})
				return err
			})
		})
		b.Run(fmt.Sprintf("driver/%dK/%d", shape.size>>10, shape.workers), func(b *testing.B) {
			b.SetBytes(int64(shape.size))
			s := mustOpen(b, options(b))
			inParallel(b, shape.workers, func(int) error { _, err := s.Put(b.Context(), data); return err })
		})
		b.Run(fmt.Sprintf("cache/%dK/%d", shape.size>>10, shape.workers), func(b *testing.B) {
			b.SetBytes(int64(shape.size))
			c := mustCache(b, mustOpen(b, options(b)))
			inParallel(b, shape.workers, func(int) error { _, err := c.Put(b.Context(), data); return err })
		})
	}
}

func mustCache(b *testing.B, s *Store) *diskcache.Cache {
	c, err := diskcache.Open(b.Context(), s, diskcache.Options{Dir: b.TempDir(), Bytes: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func BenchmarkGet(b *testing.B) {
	for _, shape := range benchShapes {
		s := mustOpen(b, options(b))
		blob, err := s.Put(b.Context(), noise(shape.size))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("library/%dK/%d", shape.size>>10, shape.workers), func(b *testing.B) {
			b.SetBytes(int64(shape.size))
			inParallel(b, shape.workers, func(int) error { return libraryGet(b.Context(), s, blob) })
		})
		b.Run(fmt.Sprintf("driver/%dK/%d", shape.size>>10, shape.workers), func(b *testing.B) {
			b.SetBytes(int64(shape.size))
			room := make(chan []byte, shape.workers)
			for range shape.workers {
				room <- make([]byte, shape.size)
			}
			inParallel(b, shape.workers, func(int) error {
				p := <-room
				defer func() { room <- p }()
				return s.Read(b.Context(), blob, 0, p)
			})
		})
	}
}

func libraryGet(ctx context.Context, s *Store, b meta.Blob) error {
	o, err := s.core.Client.GetObject(ctx, bucket, s.key(objectKey(b)), minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer o.Close()
	_, err = io.Copy(io.Discard, o)
	return err
}

// seqBlobs is the file that the sequential benchmarks read: 128 MiB.
const seqBlobs = 32

// BenchmarkSequential reads a file of many blobs with read(2)s of 1 MiB as
// meta does: whenever less than one blob is asked for ahead, the next two are.
// On loopback the two cores are all in use by client and server; far away, each
// answer takes 20 ms longer.
func BenchmarkSequential(b *testing.B) {
	o := options(b)
	near := mustOpen(b, o)
	data := noise(meta.BlobMax)
	var blobs []meta.Blob
	for range seqBlobs {
		data[0]++
		blob, err := near.Put(b.Context(), data)
		if err != nil {
			b.Fatal(err)
		}
		blobs = append(blobs, blob)
	}
	b.Run("loopback", func(b *testing.B) { sequentialOn(b, near, blobs) })
	o.transport = far()
	s, err := newStore(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("far", func(b *testing.B) { sequentialOn(b, s, blobs) })
}

// far makes each request take 20 ms longer.
func far() http.RoundTripper {
	inner := newTransport(Options{Timeout: defaultTimeout, Parallel: defaultParallel})
	return &fault{do: func(_ int64, req *http.Request) (*http.Response, error) {
		time.Sleep(20 * time.Millisecond)
		return inner.RoundTrip(req)
	}}
}

func sequentialOn(b *testing.B, s *Store, blobs []meta.Blob) {
	for _, ahead := range []int{1, 2, 3} { // blobs under way at a time
		b.Run(fmt.Sprintf("library/%d", ahead), func(b *testing.B) {
			b.SetBytes(seqBlobs * meta.BlobMax)
			for b.Loop() {
				libraryFile(b, s, blobs, ahead)
			}
		})
	}
	b.Run("driver and cold cache", func(b *testing.B) {
		b.SetBytes(seqBlobs * meta.BlobMax)
		for b.Loop() {
			b.StopTimer()
			c := mustCache(b, s)
			b.StartTimer()
			sequential(b, c, blobs)
			b.StopTimer()
			c.Close()
			b.StartTimer()
		}
	})
	b.Run("warm cache", func(b *testing.B) {
		b.SetBytes(seqBlobs * meta.BlobMax)
		c := mustCache(b, s)
		for c.Figures().Blobs < seqBlobs {
			sequential(b, c, blobs)
		}
		for b.Loop() {
			sequential(b, c, blobs)
		}
	})
}

func libraryFile(b *testing.B, s *Store, blobs []meta.Blob, workers int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < seqBlobs; i = next.Add(1) - 1 {
				if err := libraryGet(b.Context(), s, blobs[i]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func sequential(b *testing.B, c meta.Content, blobs []meta.Blob) {
	const piece, step = 1 << 20, 2 * meta.BlobMax
	p := make([]byte, piece)
	ahead := 0 // bytes asked for
	for off := 0; off < len(blobs)*meta.BlobMax; off += piece {
		if err := c.Read(b.Context(), blobs[off/meta.BlobMax], int64(off%meta.BlobMax), p); err != nil {
			b.Fatal(err)
		}
		end := off + piece
		if from := max(ahead, end); from <= end+step/2 {
			ahead = end + step
			for i := (from + meta.BlobMax - 1) / meta.BlobMax; i < len(blobs) && i*meta.BlobMax < ahead; i++ {
				c.Prefetch(blobs[i])
			}
		}
	}
}

// BenchmarkLatency is what a user far from the server sees: each request takes
// 20 ms longer.
func BenchmarkLatency(b *testing.B) {
	o := options(b)
	mustOpen(b, o)
	o.transport = far()
	for _, workers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("put/64K/%d", workers), func(b *testing.B) {
			b.SetBytes(64 << 10)
			s, err := newStore(o)
			if err != nil {
				b.Fatal(err)
			}
			data := noise(64 << 10)
			inParallel(b, workers, func(int) error { _, err := s.Put(b.Context(), data); return err })
		})
	}
}
