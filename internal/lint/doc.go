// Package lint checks how the code is put together: which package may import
// which, where the doors of outside libraries are, and a few habits that keep
// packages readable. The rules are data with reasons (rules.go). It promises
// that a new edge between rooms does not appear unnoticed; it says nothing
// about behaviour. Its caller is its own test, run by make check.
package lint
