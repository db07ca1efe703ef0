// Package s3 keeps one zone's blobs in an S3 bucket, each as one immutable
// object with its leaf table in front (design: content/s3/DESIGN.md).
//
// It promises: every byte that Read returns was verified against the blob's
// name on this machine (I6); a Put that has returned was acknowledged by the
// server, so Sync has nothing to do; each Put has an object of its own that no
// other Put overwrites (P28); every call ends within Options.Timeout for each
// request it makes, whatever the server does; a bucket that holds something
// else is refused; no secret is in an error. It keeps nothing on this machine,
// reads nothing ahead and gives no backing files: content/diskcache in front
// of it does. It does not deduplicate and does not know what is referred to.
// The caller is cmd/nexusfs, which hands the Store to meta.
package s3
