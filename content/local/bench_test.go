package local

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// BenchmarkPutSync is one put and its flush: what fsync(2) waits for. The
// variants without zeros written ahead show what those are worth.
func BenchmarkPutSync(b *testing.B) {
	for _, test := range []struct {
		name   string
		size   int
		noFill bool
	}{
		{"20KiB", 20 << 10, false},
		{"20KiB-no-fill", 20 << 10, true},
		{"1MiB-1", 1<<20 - 1, false},
		{"1MiB", 1 << 20, false},
		{"4MiB", meta.BlobMax, false},
	} {
		b.Run(test.name, func(b *testing.B) {
			s := benchOpen(b, nil)
			if test.noFill {
				s.work.fill = nil
			}
			data := randomBytes(1, test.size)
			var times []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := s.Put(context.Background(), data); err != nil {
					b.Fatal(err)
				}
				if err := s.Sync(context.Background()); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
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

// BenchmarkReadCold reads 256 MiB that are not in the page cache, against the
// same from a plain file. Ahead asks for the next blob while one is read.
func BenchmarkReadCold(b *testing.B) {
	for _, test := range []struct {
		name  string
		size  int
		ahead bool
	}{
		{"plain-file", 0, false}, {"4MiB-blobs", meta.BlobMax, false}, {"4MiB-blobs-ahead", meta.BlobMax, true},
		{"2MiB-files", 2 << 20, false}, {"2MiB-files-ahead", 2 << 20, true},
	} {
		b.Run(test.name, func(b *testing.B) { benchCold(b, test.size, test.ahead) })
	}
}

func benchCold(b *testing.B, size int, ahead bool) {
	const total = 256 << 20
	s := benchOpen(b, nil)
	var blobs []meta.Blob
	plain := filepath.Join(b.TempDir(), "plain")
	if size == 0 {
		if err := os.WriteFile(plain, randomBytes(1, total), 0o600); err != nil {
			b.Fatal(err)
		}
		unix.Sync()
	} else {
		for i := range total / size {
			blobs = append(blobs, mustPut(b, s, randomBytes(uint64(i), size)).Blob)
		}
	}
	if err := s.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(total)
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		evict(b, s.opts.Dir)
		evict(b, filepath.Dir(plain))
		b.StartTimer()
		if size == 0 {
			readPlain(b, plain, p)
			continue
		}
		for i, blob := range blobs {
			if ahead && i+1 < len(blobs) {
				s.Prefetch(blobs[i+1])
			}
			for off := 0; off < size; off += len(p) {
				if err := s.Read(context.Background(), blob, int64(off), p); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}

func readPlain(b *testing.B, path string, p []byte) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Read(p); err != nil {
			return
		}
	}
}

// evict drops a folder's files from the page cache.
func evict(b *testing.B, dir string) {
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOpen opens and closes an empty store, beside others that are open.
func BenchmarkOpen(b *testing.B) {
	for _, beside := range []int{0, 10} {
		b.Run(fmt.Sprintf("beside-%d", beside), func(b *testing.B) {
			s := benchOpen(b, nil)
			o := s.opts
			if beside == 0 {
				o.Dir = filepath.Join(b.TempDir(), "s")
			}
			for range beside - 1 {
				openBeside(b, o)
			}
			for b.Loop() {
				next, err := Open(context.Background(), o)
				if err != nil {
					b.Fatal(err)
				}
				if err := next.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFreeOfOthers frees 128 records of another writer, as one step of a
// collection does: by a note while he runs, in his place when he has ended.
func BenchmarkFreeOfOthers(b *testing.B) {
	for _, running := range []bool{true, false} {
		b.Run(fmt.Sprintf("running=%v", running), func(b *testing.B) {
			s := benchOpen(b, nil)
			for b.Loop() {
				b.StopTimer()
				owner, err := Open(context.Background(), s.opts)
				if err != nil {
					b.Fatal(err)
				}
				var blobs []meta.Blob
				for i := range 128 {
					blobs = append(blobs, mustPut(b, owner, randomBytes(uint64(i), 20_000)).Blob)
				}
				if !running {
					if err := owner.Close(); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := s.Free(context.Background(), blobs); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := owner.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkVerifyLock is what a Sync on a network filesystem costs more; here
// without the network's round trip.
func BenchmarkVerifyLock(b *testing.B) {
	s := benchOpen(b, nil)
	for b.Loop() {
		if err := s.lock.verify(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadOfOthers is BenchmarkRead's random 4 KiB in another writer's record.
func BenchmarkReadOfOthers(b *testing.B) {
	owner := benchOpen(b, nil)
	s := openBeside(b, owner.opts)
	blob := mustPut(b, owner, randomBytes(1, meta.BlobMax))
	buf := make([]byte, 4096)
	at := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if err := s.Read(context.Background(), blob.Blob, at.Int64N(meta.BlobMax-4096), buf); err != nil {
			b.Fatal(err)
		}
	}
}
