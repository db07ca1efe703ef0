// Package hooks holds the consumers of committed operations that act inside the
// node, each one a meta.Hook: called in revision order after the announcement
// and before the callers are answered, and never blocking on the kernel or the
// filesystem that is served.
//
// It promises: an operation passes every hook in the order in which cmd/nexusfs
// lists them (I4), and a hook's effect is the same if it sees an operation
// twice. It does not decide what is committed. The package imports meta alone;
// cmd/nexusfs gives each hook what it acts on.
package hooks
