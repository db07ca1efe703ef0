package raftnode

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// benchGroup is a group of n voters with the default timing.
func benchGroup(b *testing.B, voters int) *rig {
	r := newRig(b)
	for range voters - 1 {
		r.grow(false, true)
	}
	r.leader()
	return r
}

// written returns the bytes that this process gave to write(2), pwrite(2) ...
func written(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("/proc/self/io has no wchar")
	return 0
}

// BenchmarkAnnounce measures the announcement of one batch on the leader's
// node, one at a time and several at once: R of the speed targets. bytes/op is
// what the whole group wrote to sockets and files.
func BenchmarkAnnounce(b *testing.B) {
	for _, voters := range []int{1, 3} {
		for _, callers := range []int{1, 8, 64} {
			for _, ops := range []int{1, 64} {
				if ops > 1 && callers > 8 {
					continue
				}
				b.Run(fmt.Sprintf("voters=%d/callers=%d/ops=%d", voters, callers, ops), func(b *testing.B) {
					r := benchGroup(b, voters)
					n := r.leader()
					like := r.sql.commit(ops).Ops
					check(b, n.zone.Announce(b.Context(), Batch{Epoch: 1, Ops: like}))
					before := n.Status().Applied
					bytes := written(b)
					var next atomic.Int64
					first := like[0].Rev
					b.ResetTimer()
					concurrently(b, callers, func() error {
						i := next.Add(1)
						batch := Batch{Epoch: 1, Ops: slices.Clone(like)}
						for j := range batch.Ops {
							batch.Ops[j].Rev = first + meta.Rev(int64(ops)*i+int64(j))
						}
						batch.Durable = batch.Ops[ops-1].Rev
						return n.zone.Announce(b.Context(), batch)
					})
					b.StopTimer()
					b.ReportMetric(float64(written(b)-bytes)/float64(b.N), "bytes/op")
					b.ReportMetric(float64(n.Status().Applied-before)/float64(b.N), "entries/op")
				})
			}
		}
	}
}

// BenchmarkReadIndex measures what an open waits for.
func BenchmarkReadIndex(b *testing.B) {
	for _, voters := range []int{1, 3} {
		for _, where := range []string{"leader", "follower"} {
			for _, callers := range []int{1, 64} {
				if voters == 1 && where == "follower" {
					continue
				}
				b.Run(fmt.Sprintf("voters=%d/%s/callers=%d", voters, where, callers), func(b *testing.B) {
					r := benchGroup(b, voters)
					n := r.leader()
					if where == "follower" {
						for _, other := range r.nodes {
							if other != n {
								n = other
								break
							}
						}
					}
					b.ResetTimer()
					concurrently(b, callers, func() error { return n.zone.Fresh(b.Context()) })
				})
			}
		}
	}
}

// concurrently runs f b.N times in all, by several callers, and reports the
// median of its times.
func concurrently(b *testing.B, callers int, f func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	times := make([][]time.Duration, callers)
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				began := time.Now()
				if err := f(); err != nil {
					b.Error(err)
					return
				}
				times[c] = append(times[c], time.Since(began))
			}
		})
	}
	all.Wait()
	sorted := slices.Sorted(slices.Values(slices.Concat(times...)))
	if len(sorted) > 0 {
		b.ReportMetric(float64(sorted[len(sorted)/2].Nanoseconds()), "p50-ns")
	}
}

// BenchmarkLock measures lock and unlock of a free lock, and its hand-over
// between two nodes.
func BenchmarkLock(b *testing.B) {
	for _, voters := range []int{1, 3} {
		b.Run(fmt.Sprintf("voters=%d/free", voters), func(b *testing.B) {
			r := benchGroup(b, voters)
			n := r.leader()
			check(b, n.zone.BeginSession(b.Context(), 1, 1, time.Minute))
			b.ResetTimer()
			concurrently(b, 1, func() error {
				if _, err := n.zone.Lock(b.Context(), 5, lockOf(1, 1, 0, 9), false); err != nil {
					return err
				}
				return n.zone.Unlock(b.Context(), 5, state.LockOwner{Session: 1, Kind: state.POSIX, ID: 1}, 0, 9)
			})
		})
	}
	b.Run("voters=3/handed over", func(b *testing.B) {
		r := benchGroup(b, 3)
		for i, n := range r.nodes[:2] {
			check(b, n.zone.BeginSession(b.Context(), int64(i+1), 1, time.Minute))
		}
		b.ResetTimer()
		var all sync.WaitGroup
		for i, n := range r.nodes[:2] {
			all.Go(func() {
				for range b.N / 2 {
					session := int64(i + 1)
					if _, err := n.zone.Lock(b.Context(), 5, lockOf(session, 1, 0, 9), true); err != nil {
						b.Error(err)
						return
					}
					if err := n.zone.Unlock(b.Context(), 5, state.LockOwner{Session: session, Kind: state.POSIX, ID: 1}, 0, 9); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
	})
}
