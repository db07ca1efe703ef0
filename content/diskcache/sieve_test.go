package diskcache

import (
	"testing"

	"pgregory.net/rapid"

	"nexusfs/meta"
)

func blobAt(id byte, offset int64) meta.Blob {
	return meta.Blob{ID: meta.BlobID{id}, Size: 4096, Offset: offset}
}

// The policy, told by what is evicted: "+a" adds a, "?a" reads it, "-a" drops it.
func TestSieve(t *testing.T) {
	tests := []struct {
		name, ops, out string
	}{
		{"the oldest goes first", "+a +b +c +d +e", "ab"},
		{"a blob that was read stays once", "+a +b +c ?a +d +e +f", "bcd"},
		{"a mark lasts for one round of the hand", "+a +b +c ?a ?b ?c +d +e", "ab"},
		{"a scan does not displace what is read", "+a +b +c ?a ?b +d ?a ?b +e ?a ?b +f", "cde"},
		{"what was dropped makes room", "+a +b +c -b +d +e", "a"},
		{"the hand survives the drop of its blob", "+a +b +c ?a +d -c +e +f", "bd"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSieve(3 * cost(blobAt(0, 0)))
			out := ""
			for i := 0; i+1 < len(test.ops); i += 3 {
				b := blobAt(test.ops[i+1], 1)
				switch test.ops[i] {
				case '+':
					for _, o := range s.add(b) {
						out += string(o.ID[0])
					}
				case '?':
					s.get(b.ID)
				case '-':
					s.drop(b)
				}
			}
			if out != test.out {
				t.Errorf("got %q evicted, want %q", out, test.out)
			}
		})
	}
}

func TestSieveKeepsOnePlacePerBlob(t *testing.T) {
	s := newSieve(1 << 20)
	first, second := blobAt('a', 1), blobAt('a', 2)
	if out := s.add(first); out != nil {
		t.Errorf("first add: got %v out, want nothing", out)
	}
	if out := s.add(second); len(out) != 1 || out[0] != second {
		t.Errorf("second add: got %v out, want the new place", out)
	}
	if s.drop(second) || s.move(second, first) {
		t.Error("a place that is not the blob's was dropped or moved")
	}
	if !s.move(first, second) {
		t.Error("the blob did not move")
	}
	if got, _ := s.get(first.ID); got != second {
		t.Errorf("got %v, want the place it moved to", got)
	}
}

// Whatever happens, the bound holds, the sum is right and nothing is lost.
func TestSieveRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSieve(10 * cost(blobAt(0, 0)))
		here := map[meta.BlobID]meta.Blob{}
		for i := range rapid.IntRange(1, 200).Draw(t, "ops") {
			b := blobAt(byte(rapid.IntRange(0, 20).Draw(t, "blob")), int64(i))
			b.Size = int64(rapid.IntRange(1, 9000).Draw(t, "size"))
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				if got, ok := s.get(b.ID); ok != (here[b.ID].Size > 0) || got != here[b.ID] {
					t.Fatalf("get: got %v %v, want %v", got, ok, here[b.ID])
				}
			case 1:
				if s.drop(here[b.ID]) != (here[b.ID].Size > 0) {
					t.Fatalf("drop of %v", here[b.ID])
				}
				delete(here, b.ID)
			default:
				out := s.add(b)
				if _, ok := here[b.ID]; !ok {
					here[b.ID] = b
				}
				for _, o := range out {
					if here[o.ID] == o {
						delete(here, o.ID)
					}
				}
			}
			var sum int64
			for _, b := range here {
				sum += cost(b)
			}
			if s.bytes != sum || s.bytes > s.limit || s.queue.Len() != len(here) {
				t.Fatalf("%d bytes in %d blobs within %d, want %d in %d", s.bytes, s.queue.Len(), s.limit, sum, len(here))
			}
		}
	})
}
