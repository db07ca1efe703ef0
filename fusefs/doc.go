// Package fusefs is the kernel edge: FUSE requests in, errno out. It owns what
// belongs to one mount of the kernel: the mount itself, file handles, cache
// time-outs, notifications to the kernel's caches, the attestation of callers
// and the directory .nexusfs that exists in the mount alone.
//
// It promises: a request that changes something is answered with the outcome
// of the operation, never with EINTR (P7); OPEN is answered only after every
// invalidation queued for that inode was written to the kernel (P12); no
// notification is written from a request's goroutine (P11); every error that a
// caller sees comes from the one table in errno.go.
//
// It does not know rules of POSIX beyond those that the kernel leaves to the
// edge, nor SQL, nor content: it calls meta.FS, one method per request. Node
// numbers in the protocol are inode numbers with generation 0, as those are
// never used twice (I3), so no table of looked-up nodes is kept; numbers with
// the top bit set belong to .nexusfs. Only this package imports go-fuse. Its
// caller is cmd/nexusfs.
package fusefs
