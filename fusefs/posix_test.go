package fusefs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's conformance tests over a tree in memory: what fails
// here is the edge's own doing.
func TestPosix(t *testing.T) {
	for name, fn := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			m := mountMem(t, false)
			fn(t, m.dir)
		})
	}
}
