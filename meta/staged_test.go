package meta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// check fails when a stage's list breaks its promises.
func (s *stage) check(t *testing.T) {
	t.Helper()
	mem, end := int64(0), int64(0)
	for i := range s.runs {
		r := &s.runs[i]
		if r.n <= 0 || r.off < end || chunkOf(r.off) != chunkOf(r.end()-1) {
			t.Fatalf("run %d [%d,%d) after %d", i, r.off, r.end(), end)
		}
		end = r.end()
		mem += runOverhead
		if r.seal == nil {
			mem += r.buf.size()
			if r.lo+r.n > r.buf.size() {
				t.Fatalf("run %d reaches past its buffer", i)
			}
		}
	}
	if mem != s.mem {
		t.Fatalf("memory counted %d, is %d", s.mem, mem)
	}
}

// TestStageAgainstModel writes at random places, sealing some chunks and
// putting stages under each other, and compares every byte with an array.
func TestStageAgainstModel(t *testing.T) {
	const size = 3*BlobMax + 12345
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			model, known := make([]byte, size), make([]bool, size)
			n := &node{}
			var s stage
			for step := range 1500 {
				length := 1 + rnd.IntN(1<<rnd.IntN(20))
				off := rnd.Int64N(size)
				switch rnd.IntN(4) { // gather writes around the chunks' borders
				case 0:
					off = max(0, rnd.Int64N(4)*BlobMax-rnd.Int64N(int64(length)))
				case 1:
					off = off / 4096 * 4096
				}
				length = int(min(int64(length), size-off))
				data := make([]byte, length)
				for i := range data {
					data[i] = byte(rnd.Uint32())
				}
				copy(model[off:], data)
				for i := range data {
					known[off+int64(i)] = true
				}
				for len(data) > 0 {
					part := data[:min(int64(len(data)), chunkEnd(off)-off)]
					i := s.write(off, part)
					if s.full(i) && rnd.IntN(2) == 0 {
						s.sealRun(i, n)
					}
					off, data = off+int64(len(part)), data[len(part):]
				}
				if step%100 == 50 { // as a failed flush does
					older := s
					s = stage{}
					for range 20 {
						o := rnd.Int64N(size - 5000)
						b := bytes.Repeat([]byte{byte(step)}, int(min(5000, chunkEnd(o)-o)))
						s.write(o, b)
						s.since = 1
						copy(model[o:], b)
						for i := range b {
							known[o+int64(i)] = true
						}
					}
					s.under(&older)
				}
				s.check(t)
			}
			got := make([]byte, size)
			holes, parts := s.read(0, got, []hole{{0, size}}, nil)
			if len(parts) != 0 {
				t.Fatal("parts without a stored chunk")
			}
			covered := make([]bool, size)
			for i := range covered {
				covered[i] = true
			}
			for _, g := range holes {
				for i := g.off; i < g.end; i++ {
					covered[i] = false
				}
			}
			for i := range model {
				if covered[i] != known[i] || known[i] && got[i] != model[i] {
					t.Fatalf("byte %d: staged %v, want %v; %d, want %d", i, covered[i], known[i], got[i], model[i])
				}
			}
			s.release()
			for _, p := range n.unused {
				if p.refs != 0 {
					t.Fatalf("sealed chunk with %d references was dropped", p.refs)
				}
			}
		})
	}
}

// A small write holds little memory, a long one grows by few copies.
func TestStageMemory(t *testing.T) {
	var s stage
	s.write(123, make([]byte, 4096))
	if s.mem > 4096+runOverhead {
		t.Fatalf("a write of 4 KiB holds %d bytes", s.mem)
	}
	s.release()
	for off := int64(0); off < BlobMax; off += 128 << 10 {
		s.write(off, make([]byte, 128<<10))
	}
	if len(s.runs) != 1 || s.mem != BlobMax+runOverhead || !s.full(0) {
		t.Fatalf("%d runs, %d bytes", len(s.runs), s.mem)
	}
	s.write(BlobMax, make([]byte, 4096))
	if s.runs[1].buf.size() != BlobMax {
		t.Fatal("a sequential write does not get a whole chunk at once")
	}
	s.release()
}

func BenchmarkStageRandom4K(b *testing.B) {
	data := make([]byte, 4096)
	rnd := rand.New(rand.NewPCG(1, 2))
	var s stage
	for b.Loop() {
		s.write(rnd.Int64N(1<<18)*4096, data)
		if len(s.runs) >= runsMax {
			s.release()
		}
	}
	s.release()
}
