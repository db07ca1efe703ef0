// Package inprocess holds tests of meta over the real SQLite store and the
// real content store, without FUSE: races and models that need many
// operations per second and exact control over who calls what when.
package inprocess
