// Package chain defines the chain over a zone's operation records (P4, P33).
// It is pure; every SQL dialect and every verifier uses the same definition.
//
// Each record has a digest d (meta.RecordDigest: its content without the
// revision). A batch of count records from revision first on has
//
//	D     = sha256(d1 || d2 || ... || dcount)        in revision order
//	head' = sha256(head || zone || first || count || D)
//
// where head is the head of the batch before (32 zero bytes for the first),
// zone is the length of the zone's name (8 bytes, big-endian) followed by the
// name, and first and count are 8 bytes, big-endian. The name is the one that the
// zone had when the batch was committed (Name). So a head commits to the
// content, the order and the revisions of everything before it.
package chain

import (
	"crypto/sha256"
	"encoding/binary"
)

// Hash is a chain head or a digest.
type Hash = [32]byte

// Next returns the head after a batch whose records have the given digests, in
// revision order, the first of them at revision first.
func Next(head Hash, zone string, first int64, digests []Hash) Hash {
	var stack [1024]byte
	d := stack[:0]
	for i := range digests {
		d = append(d, digests[i][:]...)
	}
	all := sha256.Sum256(d)
	b := append(d[:0], head[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(zone)))
	b = append(b, zone...)
	b = binary.BigEndian.AppendUint64(b, uint64(first))
	b = binary.BigEndian.AppendUint64(b, uint64(len(digests)))
	b = append(b, all[:]...)
	return sha256.Sum256(b)
}
