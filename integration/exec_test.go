package integration

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"nexusfs/integration/harness"
)

// TestExecClosesWrittenFile: execve(2) closes files that are marked so, and
// while it does the kernel lets nobody read the process's entry in /proc to
// the end. A daemon that asks there who is closing must not wait for it.
func TestExecClosesWrittenFile(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		const script = `for (1..20) {
			open F, ">", $ARGV[0] or die; syswrite F, "line $_\n";
			if (!fork) { syswrite F, "child\n"; exec "true" }
			wait; die "exec: $?" if $?;
			close F or die;
		}`
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "perl", "-e", script, p).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s (a hang here is a deadlock between execve and the daemon)", err, out)
		}
		wantContent(t, p, []byte("line 20\nchild\n"))
	})
}
