package content

import (
	"encoding/binary"
	"hash"

	"github.com/zeebo/blake3"

	"nexusfs/meta"
)

// LeafSize is the number of bytes in one leaf of a blob's hash tree: the least
// that a read has to fetch and verify.
const LeafSize = 16 << 10

// HashSize is the number of bytes in one leaf hash.
const HashSize = 32

// treeContext separates the names of blobs with several leaves from plain
// hashes of bytes; a change of the tree's format needs another one.
const treeContext = "nexusfs 2025-11-22 content tree v1: size and leaf hashes"

// Leaves returns the number of leaves of a blob of size bytes.
func Leaves(size int64) int {
	return int((size + LeafSize - 1) / LeafSize)
}

// TableLen returns the bytes of the leaf table of a blob of size bytes: none
// where the blob is one leaf, whose hash is the blob's name.
func TableLen(size int64) int64 {
	if size <= LeafSize {
		return 0
	}
	return int64(Leaves(size)) * HashSize
}

// LeafHash hashes one leaf.
func LeafHash(leaf []byte) [HashSize]byte { return blake3.Sum256(leaf) }

// LeafTable appends the hashes of data's leaves to table, one after another.
func LeafTable(table, data []byte) []byte {
	for len(data) > 0 {
		n := min(len(data), LeafSize)
		h := blake3.Sum256(data[:n])
		table = append(table, h[:]...)
		data = data[n:]
	}
	return table
}

// TreeID names the blob of size bytes whose leaf hashes are table. A blob of
// one leaf is named by that leaf's hash itself.
func TreeID(size int64, table []byte) meta.BlobID {
	var id meta.BlobID
	if size <= LeafSize {
		copy(id[:], table)
		return id
	}
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(size))
	h := blake3.NewDeriveKey(treeContext)
	h.Write(length[:])
	h.Write(table)
	h.Sum(id[:0])
	return id
}

// ID names a blob: BLAKE3 of at most one leaf, otherwise the hash of its size
// and its leaf hashes.
func ID(data []byte) meta.BlobID {
	if len(data) <= LeafSize {
		return blake3.Sum256(data)
	}
	var room [meta.BlobMax / LeafSize * HashSize]byte
	return TreeID(int64(len(data)), LeafTable(room[:0], data))
}

// NewHash returns BLAKE3 over plain bytes: of a whole file, where a blob's name
// would be one of its parts.
func NewHash() hash.Hash { return blake3.New() }
