// Package random tests a mount with random operations against models kept in
// memory: one for the bytes of files (as fsx does), one for the tree of names.
//
// A run prints its seed; NEXUSFS_SEED=N plays it again. NEXUSFS_LONG=1h lets
// each test run that long with a new seed per case; an ordinary run takes some
// seconds. A failing case is made smaller before it is printed.
package random
