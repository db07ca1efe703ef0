// Package diskcache keeps copies of another store's blobs in a folder of a
// local disk, and reads ahead of whoever reads in sequence (design:
// content/s3/DESIGN.md).
//
// It promises: what it returns was verified against the blob's name when it
// came from the disk or from the store below (I6); the folder holds no more
// than Options.Bytes and what is being written just then; a copy that is
// damaged, or a disk that is full or fails, costs time and fails no call; a
// folder serves one process at a time. Copies are named by their bytes, so the
// same folder may serve one store after another. It makes nothing durable: what
// a Put promises is promised by the store below. The caller is cmd/nexusfs,
// which puts it between meta and a content store that is far away.
package diskcache
