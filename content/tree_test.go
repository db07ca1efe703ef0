package content

import (
	"bytes"
	"encoding/hex"
	"testing"

	"nexusfs/meta"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i % 251) // as in BLAKE3's own test vectors
	}
	return p
}

// The names are on users' disks: they must never change.
func TestIDIsFixedForEver(t *testing.T) {
	tests := []struct {
		size int
		want string
	}{
		{0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"}, // BLAKE3 vectors
		{1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"},
		{16384, "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4"},
		{16385, "dbba31b9539b67ac789a9b8970bce4f72cc585e32b2b60332b97932ace7d5a95"},
		{4 << 20, "e1e61b7c88f2b91c59c66afc0c010cb3175d4600da1d3545a9eda6355775cce8"},
	}
	for _, test := range tests {
		id := ID(pattern(test.size))
		if got := hex.EncodeToString(id[:]); got != test.want {
			t.Errorf("ID of %d bytes: got %s, want %s", test.size, got, test.want)
		}
	}
}

func TestIDDependsOnEveryByteAndTheSize(t *testing.T) {
	for _, size := range []int{1, LeafSize, LeafSize + 1, 3*LeafSize + 7} {
		seen := map[meta.BlobID]int{ID(pattern(size)): -1, ID(append(pattern(size), 0)): -2}
		if len(seen) != 2 {
			t.Errorf("size %d: a zero byte behind does not change the name", size)
		}
		for _, at := range []int{0, size / 2, size - 1} {
			p := pattern(size)
			p[at] ^= 0x80
			id := ID(p)
			if other, ok := seen[id]; ok && other != at {
				t.Errorf("size %d: flipping byte %d gives the name of case %d", size, at, other)
			}
			seen[id] = at
		}
	}
}

// A blob whose bytes are another blob's leaf table must not share its name.
func TestTreeIsSeparatedFromPlainHashes(t *testing.T) {
	big := pattern(5 * LeafSize)
	table := LeafTable(nil, big)
	if ID(table) == ID(big) {
		t.Error("a leaf table has the name of its blob")
	}
	if got := len(table); got != Leaves(int64(len(big)))*HashSize {
		t.Errorf("table of 5 leaves: got %d bytes", got)
	}
	h := LeafHash(big[LeafSize : 2*LeafSize])
	if !bytes.Equal(h[:], table[HashSize:2*HashSize]) {
		t.Error("the second entry is not the second leaf's hash")
	}
}

func BenchmarkID4MiB(b *testing.B) {
	p := pattern(4 << 20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		ID(p)
	}
}
