package local

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// benchOpen opens a store on the disk under $TMPDIR.
func benchOpen(b *testing.B, set func(*Options)) *Store {
	o := Options{Dir: filepath.Join(b.TempDir(), "s")}
	if set != nil {
		set(&o)
	}
	return mustOpen(b, o)
}

// BenchmarkPut puts without flushing. Every 256 MiB it frees what it put,
// outside of the measured time, so that it does not measure the disk.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 20 << 10, 64 << 10, 256 << 10, 1<<20 - 1, 1 << 20, meta.BlobMax} {
		b.Run(fmt.Sprintf("%dKiB", (size+1)>>10), func(b *testing.B) {
			s := benchOpen(b, nil)
			data := randomBytes(1, size)
			b.SetBytes(int64(size))
			var done []meta.Blob
			for b.Loop() {
				blob, err := s.Put(context.Background(), data)
				if err != nil {
					b.Fatal(err)
				}
				if done = append(done, blob); len(done)*size >= 256<<20 {
					b.StopTimer()
					benchFree(b, s, done)
					done = done[:0]
					b.StartTimer()
				}
			}
		})
	}
}

func benchFree(b *testing.B, s *Store, blobs []meta.Blob) {
	if err := s.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	if err := s.Free(context.Background(), blobs); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPutSync is one small put and its flush: what fsync(2) waits for.
func BenchmarkPutSync(b *testing.B) {
	for _, size := range []int{20 << 10, 1 << 20, meta.BlobMax} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := benchOpen(b, nil)
			data := randomBytes(1, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := s.Put(context.Background(), data); err != nil {
					b.Fatal(err)
				}
				if err := s.Sync(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWrite256MiB is a large file: 64 blobs of 4 MiB and one Sync.
func BenchmarkWrite256MiB(b *testing.B) {
	for name, threshold := range map[string]int64{"files": 0, "packs": meta.BlobMax + 1} {
		b.Run(name, func(b *testing.B) { benchWrite(b, threshold) })
	}
}

func benchWrite(b *testing.B, threshold int64) {
	s := benchOpen(b, func(o *Options) { o.FileThreshold, o.FileLimit = threshold, meta.BlobMax+1 })
	data := randomBytes(1, meta.BlobMax)
	b.SetBytes(64 * meta.BlobMax)
	var put, cpu time.Duration
	for b.Loop() {
		var done []meta.Blob
		start, before := time.Now(), cpuTime()
		for range 64 {
			blob, err := s.Put(context.Background(), data)
			if err != nil {
				b.Fatal(err)
			}
			done = append(done, blob)
		}
		put += time.Since(start)
		if err := s.Sync(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cpu += cpuTime() - before
		benchFree(b, s, done)
		b.StartTimer()
	}
	b.ReportMetric(float64(put.Milliseconds())/float64(b.N), "put-ms/op")
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
}

// cpuTime returns what this process has used of the processors, in the kernel too.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRead reads from the page cache: what the daemon adds to it.
func BenchmarkRead(b *testing.B) {
	for _, test := range []struct {
		name     string
		blob, n  int
		random   bool
		noLeaves bool
	}{
		{name: "4KiB-random-of-4MiB", blob: meta.BlobMax, n: 4096, random: true},
		{name: "4KiB-random-of-4MiB-no-leaf-cache", blob: meta.BlobMax, n: 4096, random: true, noLeaves: true},
		{name: "4KiB-sequential-of-4MiB", blob: meta.BlobMax, n: 4096},
		{name: "4KiB-sequential-of-4MiB-no-leaf-cache", blob: meta.BlobMax, n: 4096, noLeaves: true},
		{name: "64KiB-of-pack", blob: 64 << 10, n: 64 << 10},
		{name: "1MiB-of-4MiB", blob: meta.BlobMax, n: 1 << 20},
	} {
		b.Run(test.name, func(b *testing.B) {
			s := benchOpen(b, func(o *Options) {
				if test.noLeaves {
					o.LeafCache = -1
				}
			})
			var blobs []meta.Blob
			for i := range 64 {
				blobs = append(blobs, mustPut(b, s, randomBytes(uint64(i), test.blob)).Blob)
			}
			p := make([]byte, test.n)
			rnd := rand.New(rand.NewPCG(1, 2))
			per := test.blob / test.n
			b.SetBytes(int64(test.n))
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				blob, at := blobs[i/per%len(blobs)], i%per
				if test.random {
					blob, at = blobs[rnd.IntN(len(blobs))], rnd.IntN(per)
				}
				if err := s.Read(context.Background(), blob, int64(at*test.n), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
