// Package transfertest is the suite that every engine's side of package
// transfer must pass, with an engine in memory to migrate from and to.
//
// It promises that what passes keeps every value of every table, in the order
// of the keys, under the zone's own numbers or others, and refuses what does not
// belong together. Tests of the engines call Run.
package transfertest
