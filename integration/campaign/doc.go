// Package campaign kills the daemon while it works and checks what is left:
// every acknowledged operation is there, every other one wholly there or
// wholly absent, and fsck finds nothing (I1, I8, P1, P23).
//
// A loader keeps a ledger on the client's side: before each system call the
// states in which a crash may leave its folder, after it the one that was
// acknowledged. The daemon dies by kill -9 at random moments, or at failpoints
// of the commit path and the content store, which a special build offers.
//
// Environment: NEXUSFS_KILLS=N kills that often (an ordinary run: a few; a long one, by NEXUSFS_LONG: hundreds),
// NEXUSFS_SEED=N repeats a run's choices, NEXUSFS_MATRIX=FILE writes the table
// failpoint x operation.
package campaign
