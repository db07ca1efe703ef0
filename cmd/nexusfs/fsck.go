package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nexusfs/meta"
)

func fsckVerb(a *app) *cobra.Command {
	var quick, asJSON bool
	cmd := &cobra.Command{
		Use:   "fsck [STORE]",
		Short: "check names, inodes, content, records and the chain against each other",
		Long: `fsck checks a store, mounted or not, and changes nothing: names against inodes,
inodes against their content, usage against what it counts, operation records
against the chain of their digests, and every stored blob against its hash
(--quick leaves that out). It ends with code 1 when it found something.`,
		Example: "  nexusfs fsck ./mnt\n  nexusfs fsck /srv/store --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(argument(args, 0))
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessRead, "fsck", func(c *client) error {
				return a.check(ctx, c, t, quick, asJSON)
			})
		}),
	}
	cmd.Flags().BoolVar(&quick, "quick", false, "do not read content")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object per finding, then one with the sums")
	return cmd
}

// finding is one thing that fsck found.
type finding struct {
	Check string    `json:"check"`
	Ino   meta.Ino  `json:"ino,omitempty"`
	Rev   meta.Rev  `json:"rev,omitempty"`
	Path  bytesName `json:"path,omitempty"`
	Text  string    `json:"text"`
}

// fsckEnd sums up.
type fsckEnd struct {
	Findings int64 `json:"findings"`
	Records  int64 `json:"records_checked"`
	Blobs    int64 `json:"blobs_checked"`
	Bytes    int64 `json:"bytes_checked"`
}

func (a *app) check(ctx context.Context, c *client, t *target, quick, asJSON bool) error {
	bar := a.newProgress()
	var end fsckEnd
	err := c.stream(ctx, http.MethodPost, "fsck", url.Values{"quick": {strconv.FormatBool(quick)}}, streamSink{
		progress: bar.show,
		item: func(raw json.RawMessage) error {
			if asJSON {
				return a.printLine(raw)
			}
			var f finding
			if err := json.Unmarshal(raw, &f); err != nil {
				return err
			}
			bar.done()
			return a.printFinding(&f)
		},
	}, &end)
	bar.done()
	if err != nil {
		return err
	}
	switch {
	case asJSON:
		if err := a.printLine(mustJSON(end)); err != nil {
			return err
		}
	case end.Findings == 0:
		a.printf("%s is whole: %d records and %d blobs with %s checked\n", escapeName(t.display()), end.Records, end.Blobs, humanBytes(end.Bytes))
	}
	if end.Findings > 0 {
		return fail(exitFailed, "%d findings in %s: restore what is damaged from a backup, or from a version that is whole", end.Findings, escapeName(t.display()))
	}
	return nil
}

func (a *app) printFinding(f *finding) error {
	var b strings.Builder
	b.WriteString(f.Check)
	if f.Path != "" {
		b.WriteString(" " + escapeName(string(f.Path)))
	}
	if f.Ino != 0 {
		fmt.Fprintf(&b, " inode %d", f.Ino)
	}
	if f.Rev != 0 {
		fmt.Fprintf(&b, " revision %d", f.Rev)
	}
	_, err := fmt.Fprintf(a.stdout, "%s: %s\n", b.String(), escapeName(f.Text))
	return err
}
