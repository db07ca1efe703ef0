package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// logDefault is how many records `nexusfs log` shows when nothing is said.
const logDefault = 100

type logFlags struct {
	storeFlag
	since, until, limit int64
	sinceTime           string
	untilTime           string
	ordered             bool
	follow              bool
	json                bool
	brief               bool
}

func logVerb(a *app) *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:   "log [PATH|STORE]",
		Short: "show who changed what, when, and what it was before",
		Long: `log shows operation records: of one file or directory (the names in it too), or
of the whole store when given a STORE or a MOUNTPOINT. The newest 100 are shown,
newest first; with --since, --since-time or --follow the order is that of the
operations. Paths are those of today. What is deleted can be asked for by its
old path.

A TIME is like 2025-11-22T10:00:00Z (RFC 3339), a day like 2025-11-22 (here, not
in UTC; --until-time includes the whole day), or how long ago: 90m, 2h, 3d, 1w.`,
		Example: `  nexusfs log ./mnt/report.txt
  nexusfs log ./mnt --since 1200 --json
  nexusfs log ./mnt/docs --since-time 2h
  nexusfs log ./mnt --since-time 2025-11-17 --until-time 2025-11-21
  nexusfs log ./mnt --follow`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.RunE = action(func(ctx context.Context, args []string) error {
		f.ordered = f.ordered || f.follow || cmd.Flags().Changed("since") || f.sinceTime != ""
		return a.log(ctx, args, f)
	})
	f.register(cmd)
	fl := cmd.Flags()
	fl.Int64Var(&f.since, "since", 0, "only records after this `revision`, oldest first")
	fl.Int64Var(&f.until, "until", 0, "only records up to this `revision`")
	fl.StringVar(&f.sinceTime, "since-time", "", "only records from this `time` on, oldest first")
	fl.StringVar(&f.untilTime, "until-time", "", "only records up to this `time`")
	fl.Int64VarP(&f.limit, "limit", "n", -1, "at most this `many`; 0 for all")
	fl.BoolVar(&f.ordered, "oldest-first", false, "in the order of the operations")
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on and show what happens")
	fl.BoolVar(&f.json, "json", false, "one JSON object per line")
	fl.BoolVar(&f.brief, "brief", false, "leave out what it was before and after")
	return cmd
}

func (a *app) log(ctx context.Context, args []string, f logFlags) error {
	if f.since < 0 || f.until < 0 || f.limit < -1 {
		return fail(exitUsage, "--since, --until and --limit are not negative")
	}
	t, err := a.logTarget(args, f)
	if err != nil {
		return err
	}
	if f.limit < 0 {
		f.limit = logDefault
		if f.ordered {
			f.limit = 0
		}
	}
	q := pathArgs(t)
	if err := f.setTimes(q, time.Now()); err != nil {
		return err
	}
	q.Set("since", strconv.FormatInt(f.since, 10))
	q.Set("until", strconv.FormatInt(f.until, 10))
	q.Set("limit", strconv.FormatInt(f.limit, 10))
	q.Set("reverse", strconv.FormatBool(!f.ordered))
	q.Set("follow", strconv.FormatBool(f.follow))
	return a.withClient(ctx, t, accessRead, "log", func(c *client) error {
		err := c.stream(ctx, http.MethodGet, "log", q, streamSink{item: func(raw json.RawMessage) error {
			if f.json {
				return a.printLine(raw)
			}
			var r recordInfo
			if err := json.Unmarshal(raw, &r); err != nil {
				return err
			}
			return a.printRecord(&r, f.brief)
		}}, nil)
		if f.follow && ctx.Err() != nil {
			return nil // Ctrl-C is how following ends
		}
		return err
	})
}

// setTimes turns the times of the flags into nanoseconds.
func (f *logFlags) setTimes(q url.Values, now time.Time) error {
	if f.follow && f.untilTime != "" {
		return fail(exitUsage, "--follow goes on for ever: leave --until-time out")
	}
	for key, text := range map[string]string{"since_time": f.sinceTime, "until_time": f.untilTime} {
		if text == "" {
			continue
		}
		at, err := parseTime(text, now, key == "until_time")
		if err != nil {
			return fail(exitUsage, "--%s: %w", strings.ReplaceAll(key, "_", "-"), err)
		}
		q.Set(key, strconv.FormatInt(clampedNano(at), 10))
	}
	return nil
}

// clampedNano is UnixNano for times beyond what that can say, too.
func clampedNano(t time.Time) int64 {
	switch {
	case t.After(time.Unix(0, math.MaxInt64-1)):
		return math.MaxInt64 - 1
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	}
	return t.UnixNano()
}

// parseTime reads a TIME; endOfDay: a day means its end.
func parseTime(s string, now time.Time, endOfDay bool) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return at, nil
	}
	if day, err := time.ParseInLocation(time.DateOnly, s, now.Location()); err == nil {
		if endOfDay {
			day = day.AddDate(0, 0, 1).Add(-time.Nanosecond)
		}
		return day, nil
	}
	if n, unit, ok := historyItem(s); ok && (unit == 'd' || unit == 'w') {
		return now.Add(-time.Duration(n) * historyUnit(unit)), nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, fmt.Errorf("%s is not understood: give a time (2025-11-22T10:00:00Z), a day (2025-11-22), or how long ago (90m, 2h, 3d, 1w)", escapeName(s))
}

// logTarget is the whole store when no path is given.
func (a *app) logTarget(args []string, f logFlags) (*target, error) {
	if len(args) == 0 {
		t, err := a.resolve(f.store)
		if err == nil {
			t.inside = "/"
		}
		return t, err
	}
	if f.store != "" {
		return f.resolve(a, args[0])
	}
	return a.resolve(args[0])
}

func (a *app) printRecord(r *recordInfo, brief bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d  %s  %-12s %s", r.Rev, humanTime(r.Time), r.Op, escapeName(string(r.Path)))
	if r.NewPath != "" {
		fmt.Fprintf(&b, " -> %s", escapeName(string(r.NewPath)))
	}
	if r.Version > 0 {
		fmt.Fprintf(&b, "  version %d", r.Version)
	}
	fmt.Fprintf(&b, "  (%s)\n", r.Actor)
	if r.Late != "" {
		fmt.Fprintf(&b, "      committed, not acknowledged: %s\n", escapeName(r.Late))
	}
	if !brief {
		for _, part := range []struct {
			name string
			raw  json.RawMessage
		}{{"before", r.Before}, {"after", r.After}} {
			if len(part.raw) > 0 {
				fmt.Fprintf(&b, "      %-6s %s\n", part.name, escapeName(string(part.raw)))
			}
		}
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}
