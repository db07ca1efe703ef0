package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// logDefault is how many records `nexusfs log` shows when nothing is said.
const logDefault = 100

type logFlags struct {
	storeFlag
	since, until, limit int64
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
newest first; with --since or --follow the order is that of the operations.
Paths are those of today. What is deleted can be asked for by its old path.`,
		Example: `  nexusfs log ./mnt/report.txt
  nexusfs log ./mnt --since 1200 --json
  nexusfs log ./mnt --follow`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.RunE = action(func(ctx context.Context, args []string) error {
		f.ordered = f.ordered || f.follow || cmd.Flags().Changed("since")
		return a.log(ctx, args, f)
	})
	f.register(cmd)
	fl := cmd.Flags()
	fl.Int64Var(&f.since, "since", 0, "only records after this `revision`, oldest first")
	fl.Int64Var(&f.until, "until", 0, "only records up to this `revision`")
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
