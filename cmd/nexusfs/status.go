package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func statusVerb(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [STORE]",
		Short: "show what is mounted, how durable it is, and its figures",
		Long: `status shows a store: its mount and daemon if there is one, the newest revision
and the newest durable one, what is staged, cached and stored. Inside of a mount
the same is in the file .nexusfs/status.`,
		Example: "  nexusfs status ./mnt\n  nexusfs status projects --json | jq .revision",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(argument(args, 0))
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessRead, "status", func(c *client) error {
				var s statusReport
				if err := c.get(ctx, "status", nil, &s); err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(s)
				}
				a.printStatus(&s)
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (a *app) printStatus(s *statusReport) {
	line := func(name, format string, args ...any) {
		a.printf("%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("store", "%s, zone %s", escapeName(s.Store), escapeName(s.Zone))
	if s.Mounted {
		mode := ""
		if s.ReadOnly {
			mode = ", read-only"
		}
		line("mount", "%s%s", escapeName(s.Mountpoint), mode)
		line("daemon", "pid %d, nexusfs %s, up %s, %s of memory", s.PID, s.Version, time.Since(s.Started).Round(time.Second), humanBytes(s.Memory))
	} else {
		line("mount", "not mounted")
	}
	if s.Shared {
		line("shared", "%s may change the zone: each open asks the database, and the kernel keeps names and attributes for half a second", others(s.Peers))
	}
	if s.Failed != "" {
		line("FAILED", "%s: changes are refused; check the disk, then mount again", escapeName(s.Failed))
	}
	if l := s.Lost; l != nil {
		what := "none that this daemon had seen"
		if l.Last >= l.First {
			what = fmt.Sprintf("revisions %d to %d", l.First, l.Last)
		}
		line("LOST", "the database came back without its newest operations: %s; recovered at revision %d (%s)", what, l.Recovery, escapeName(l.Cause))
	}
	line("revision", "%d, durable up to %d (%s)", s.Revision, s.Durable, s.Durability)
	line("history", "keeps %s; %s held by history alone", s.History, humanBytes(s.Reclaim))
	line("files", "%d names with %s", s.Files, humanBytes(s.Bytes))
	line("staged", "%s in %d files; %d handles open", humanBytes(s.StagedBytes), s.StagedFiles, s.OpenHandles)
	line("operations", "%d in %d commits, %d conflicts, %d barriers", s.Operations.Committed, s.Operations.Batches, s.Operations.Conflicts, s.Operations.Barriers)
	line("cache", "attributes %d (%s hits), names %d (%s hits)", s.Cache.Attrs, percent(s.Cache.AttrHits, s.Cache.AttrMisses), s.Cache.Names, percent(s.Cache.NameHits, s.Cache.NameMisses))
	line("content", "%s in %d segments, %s in %d files", humanBytes(s.Content.SegmentBytes), s.Content.Segments, humanBytes(s.Content.FileBytes), s.Content.Files)
	if s.Content.Damaged > 0 {
		line("DAMAGED", "%d reads met damaged content: nexusfs fsck names the files", s.Content.Damaged)
	}
	line("database", "%s and a log of %s; %d inodes, %d records", humanBytes(s.Database.FileBytes), humanBytes(s.Database.LogBytes), s.Database.Inodes, s.Database.Records)
	line("disk", "%s free of %s", humanBytes(s.Disk.Free), humanBytes(s.Disk.Total))
}

func others(n int64) string {
	switch n {
	case 0:
		return "others"
	case 1:
		return "one other daemon"
	}
	return fmt.Sprintf("%d other daemons", n)
}

func percent(part, rest int64) string {
	if part+rest == 0 {
		return "no"
	}
	return fmt.Sprintf("%d%%", part*100/(part+rest))
}
