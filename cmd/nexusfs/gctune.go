package main

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The collector's pace follows the live heap: a small heap may grow by a fixed
// headroom, so that a burst of requests does not collect all the time, and a
// large one by a share of itself, so that memory stays in proportion. Idle, the
// daemon stays under 60 MiB.
const (
	gcHeadroom = 24 << 20 // bytes that a small heap may grow before a collection
	gcShare    = 50       // percent that a large heap may grow
	gcMost     = 800      // percent, for a heap of next to nothing
	gcInterval = time.Second
)

// gcPercent computes GOGC for a live heap.
func gcPercent(live uint64) int {
	if live == 0 {
		return gcMost
	}
	return int(min(max(gcHeadroom*100/live, gcShare), gcMost))
}

// When next to nothing was allocated for a while after much was, the daemon is
// idle: what the heap has free goes back to the system.
const (
	idleTicks  = 5        // intervals in a row
	idleAllocs = 1 << 20  // bytes in one of them
	busyAllocs = 16 << 20 // bytes since memory was last given back
)

// tuneRuntime keeps GOGC fitting until ctx ends. GOGC and GOMEMLIMIT of the
// environment win over it.
func tuneRuntime(ctx context.Context) {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	if debug.SetMemoryLimit(-1) != math.MaxInt64 || sample[0].Value.Uint64() != 100 {
		return
	}
	t := gcTuner{set: func(p int) { debug.SetGCPercent(p) }, release: giveBack}
	t.look(4<<20, 0)
	go func() {
		tick := time.NewTicker(gcInterval)
		defer tick.Stop()
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			metrics.Read(sample)
			t.look(sample[0].Value.Uint64(), sample[1].Value.Uint64())
		}
	}()
}

// sparedProcs is how many processors of Go's scheduler are left over when every
// reader of requests is in a system call.
const sparedProcs = 2

// spareProcs lets more goroutines run than there are readers of requests, of
// which go-fuse starts one per processor. A reader that waits in read(2) keeps
// its processor until the scheduler's monitor takes it away, tens of
// microseconds later; on a small machine a goroutine that was woken meanwhile,
// the next leader of a commit, would find none. GOMAXPROCS of the environment
// wins over it. Call it once the readers' number is settled.
func spareProcs() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + sparedProcs)
	}
}

// giveBack returns free memory. What sync.Pools hold outlives one collection,
// and FreeOSMemory makes only one.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}

// gcTuner decides; set and release act.
type gcTuner struct {
	set     func(percent int)
	release func()

	percent            int
	allocs, releasedAt uint64
	idle               int
}

// look is told once per interval how large the live heap is and how much was
// ever allocated.
func (t *gcTuner) look(live, allocs uint64) {
	// Setting it stops the world: only when it matters.
	if want := gcPercent(live); want*10 < t.percent*8 || want*8 > t.percent*10 {
		t.set(want)
		t.percent = want
	}
	t.idle++
	if allocs-t.allocs > idleAllocs {
		t.idle = 0
	}
	t.allocs = allocs
	if t.idle >= idleTicks && allocs-t.releasedAt > busyAllocs {
		t.release()
		t.releasedAt = allocs
	}
}
