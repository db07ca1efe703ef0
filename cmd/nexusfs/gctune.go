package main

import (
	"context"
	"math"
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

// tuneRuntime keeps GOGC fitting until ctx ends. GOGC and GOMEMLIMIT of the
// environment win over it.
func tuneRuntime(ctx context.Context) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	if sample[1].Value.Uint64() != 100 {
		return
	}
	last := gcPercent(4 << 20)
	debug.SetGCPercent(last)
	go func() {
		t := time.NewTicker(gcInterval)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			metrics.Read(sample[:1])
			want := gcPercent(sample[0].Value.Uint64())
			// Setting it stops the world: only when it matters.
			if want*10 < last*8 || want*8 > last*10 {
				debug.SetGCPercent(want)
				last = want
			}
		}
	}()
}
