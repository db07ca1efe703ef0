// Package integration tests nexusfs as a black box: the built binary, real
// mounts, real tools through os/exec. It imports no room of the product.
//
// The POSIX tests run each case twice, on a plain filesystem and on nexusfs,
// so that a case which asks for more than Linux gives shows as such. The
// random testers and the kill -9 campaign are in the folders below.
package integration
