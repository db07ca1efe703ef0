package harness

import (
	"os/exec"
	"runtime"
	"sync"
)

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// spawner starts daemons from one thread that lives as long as this process:
// the kernel delivers a parent-death signal when the starting THREAD ends.
var spawner = sync.OnceValue(func() chan<- spawnRequest {
	requests := make(chan spawnRequest)
	go func() {
		runtime.LockOSThread()
		for r := range requests {
			r.done <- r.cmd.Start()
		}
	}()
	return requests
})

func spawn(cmd *exec.Cmd) error {
	done := make(chan error)
	spawner() <- spawnRequest{cmd, done}
	return <-done
}
