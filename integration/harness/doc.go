// Package harness runs the built nexusfs binary under test: it builds it once
// per test process, mounts stores in scratch directories, runs commands with a
// time limit, kills and remounts daemons, and at the end of each test checks
// that nothing is left behind: the mount is gone, the daemon ended with code 0,
// and fsck finds nothing.
//
// It is used by the black-box tests only and never imported by shipped code.
// It knows the product by its command line alone and imports no room of it.
//
// Environment:
//
//	NEXUSFS_BIN             use this binary instead of building one
//	NEXUSFS_FAILPOINTS_BIN  the same for the binary with failpoints
//	NEXUSFS_RACE=1          build with the race detector
//	NEXUSFS_TEST_DIR=DIR    run the workload tests in DIR instead of on a mount
//	NEXUSFS_TEST_CONTROL=DIR  where control runs go (default: the temp folder)
//	NEXUSFS_TEST_STORE=DIR  where stores and mountpoints are made (default: the temp folder)
//	NEXUSFS_LONG=1h         let random tests run this long, and the long cases run
//	NEXUSFS_NO_SKIP=1       a test that would be skipped fails
//	NEXUSFS_KEEP=1          keep scratch folders of failed tests
package harness
