package fusefs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's conformance tests over a tree in memory: what fails
// here is the edge's own doing.
func TestPosix(t *testing.T) {
	all := map[string]func(*testing.T, string){
		"FallocateKeepSize": posixtest.FallocateKeepSize, "Tmpfile": posixtest.Tmpfile,
	}
	for name, fn := range posixtest.All {
		all[name] = fn
	}
	// POSIX locks belong to the process, so one process cannot be refused its
	// own lock: the test fails on every local filesystem, and the package's own
	// run leaves it out.
	delete(all, "FcntlFlockLocksFile")
	for name, fn := range all {
		t.Run(name, func(t *testing.T) {
			m := mountMem(t, false)
			fn(t, m.dir)
		})
	}
}
