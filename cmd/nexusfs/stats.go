package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

func statsVerb(a *app) *cobra.Command {
	var interval time.Duration
	var count int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stats [STORE]",
		Short: "watch the figures of a running mount",
		Long: `stats prints one line of rates per interval until it is interrupted: operations
and commits, bytes written to and read from files, staged data, cache hits,
revisions that are not durable yet, and the daemon's memory.`,
		Example: "  nexusfs stats ./mnt\n  nexusfs stats ./mnt --interval 5s --count 12 --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			if interval < 100*time.Millisecond {
				return fail(exitUsage, "--interval is at least 100ms")
			}
			t, err := a.resolve(argument(args, 0))
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessDaemon, "stats", func(c *client) error {
				return a.watch(ctx, c, interval, count, asJSON)
			})
		}),
	}
	fl := cmd.Flags()
	fl.DurationVarP(&interval, "interval", "i", time.Second, "`time` between lines")
	fl.IntVarP(&count, "count", "n", 0, "lines to print; 0 for no end")
	fl.BoolVar(&asJSON, "json", false, "one JSON object per line")
	return cmd
}

// rates is one line of stats: what happened per second since the line before.
type rates struct {
	Time       time.Time `json:"time"`
	Operations float64   `json:"operations_per_second"`
	Commits    float64   `json:"commits_per_second"`
	Barriers   float64   `json:"barriers_per_second"`
	Written    float64   `json:"written_bytes_per_second"`
	Read       float64   `json:"read_bytes_per_second"`
	Stored     float64   `json:"stored_bytes_per_second"`
	HitRatio   float64   `json:"cache_hit_ratio"` // of attributes and names
	Staged     int64     `json:"staged_bytes"`
	Handles    int64     `json:"open_handles"`
	NotDurable int64     `json:"revisions_not_durable"`
	Revision   int64     `json:"revision"`
	Memory     int64     `json:"memory_bytes"`
}

// ratesBetween compares two reports.
func ratesBetween(old, now *statusReport, elapsed time.Duration) rates {
	per := func(before, after int64) float64 { return float64(after-before) / elapsed.Seconds() }
	o, n := &old.Operations, &now.Operations
	hits := now.Cache.AttrHits - old.Cache.AttrHits + now.Cache.NameHits - old.Cache.NameHits
	misses := now.Cache.AttrMisses - old.Cache.AttrMisses + now.Cache.NameMisses - old.Cache.NameMisses
	r := rates{
		Operations: per(o.Committed, n.Committed), Commits: per(o.Batches, n.Batches), Barriers: per(o.Barriers, n.Barriers),
		Written: per(o.BytesWritten, n.BytesWritten), Read: per(o.BytesRead, n.BytesRead),
		Stored: per(old.Content.PutBytes, now.Content.PutBytes),
		Staged: now.StagedBytes, Handles: now.OpenHandles,
		NotDurable: int64(now.Revision - now.Durable), Revision: int64(now.Revision), Memory: now.Memory,
	}
	if hits+misses > 0 {
		r.HitRatio = float64(hits) / float64(hits+misses)
	}
	return r
}

// watch prints lines until count is reached, the user interrupts, which is how
// it is meant to end, or the daemon is gone.
func (a *app) watch(ctx context.Context, c *client, interval time.Duration, count int, asJSON bool) error {
	var old statusReport
	if err := c.get(ctx, "status", nil, &old); err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	at := time.Now()
	for i := 0; count == 0 || i < count; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var now statusReport
		if err := c.get(ctx, "status", nil, &now); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		r := ratesBetween(&old, &now, time.Since(at))
		old, at = now, time.Now()
		r.Time = at
		if asJSON {
			if err := a.printLine(mustJSON(r)); err != nil {
				return err
			}
			continue
		}
		a.printRates(&r, i)
	}
	return nil
}

// statsHead is repeated so that it stays on the screen.
const statsHead = 20

func (a *app) printRates(r *rates, line int) {
	if line%statsHead == 0 {
		a.printf("%8s %8s %6s %11s %11s %11s %6s %7s %9s %10s\n",
			"ops/s", "commit/s", "sync/s", "write/s", "read/s", "staged", "hits", "handles", "undurable", "memory")
	}
	a.printf("%8s %8s %6s %11s %11s %11s %5.0f%% %7d %9d %10s\n",
		rate(r.Operations), rate(r.Commits), rate(r.Barriers), humanBytes(int64(r.Written)), humanBytes(int64(r.Read)),
		humanBytes(r.Staged), r.HitRatio*100, r.Handles, r.NotDurable, humanBytes(r.Memory))
}

func rate(f float64) string { return strconv.FormatFloat(f, 'f', 0, 64) }
