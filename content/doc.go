// Package content is the room of the blob stores: it defines how a blob is
// named and verified, and its subdirectories hold the drivers (local: a folder
// on a disk) and the conformance suite that each of them passes (contenttest).
//
// It promises that a BlobID is a function of the bytes alone, the same for
// every driver and for ever (the format is versioned by the context string in
// the hash), and that any leaf of LeafSize bytes can be verified without
// reading the others (I6, P27). It does no I/O. The callers are the drivers.
package content
