package main

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"nexusfs/meta"
)

func gcVerb(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc [STORE]",
		Short: "let history go that is past retention, and give space back, now",
		Long: `gc does at once what the daemon does in the background: versions and deleted
files beyond what the mount keeps (-o history=) go, content that nothing refers
to is removed, and half-empty segments are compacted. Without a daemon it keeps
what the last mount kept.`,
		Example: "  nexusfs gc ./mnt",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(argument(args, 0))
			if err != nil {
				return err
			}
			return a.collect(ctx, t, "gc", nil, asJSON)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func purgeVerb(a *app) *cobra.Command {
	var f storeFlag
	var all, recursive, asJSON bool
	cmd := &cobra.Command{
		Use:   "purge PATH | --all [STORE]",
		Short: "let history go for good, whatever the retention says",
		Long: `purge removes the old versions of one file; with --recursive those of everything
in a directory, and what was deleted in it; with --all the history of the whole
store. What is current or open stays, records stay, and that it was done is
recorded. There is no way back.`,
		Example: "  nexusfs purge ./mnt/secret.txt\n  nexusfs purge --recursive ./mnt/project\n  nexusfs purge --all ./mnt",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			var t *target
			var err error
			q := url.Values{}
			switch {
			case all && recursive:
				return fail(exitUsage, "--all and --recursive exclude each other")
			case all && len(args) == 0:
				t, err = a.resolve(f.store)
			case all:
				t, err = a.resolve(args[0])
			case len(args) == 0:
				return fail(exitUsage, "give the PATH whose history goes, or --all")
			default:
				t, err = f.resolve(a, args[0])
			}
			if err != nil {
				return err
			}
			if !all {
				if t.inside == "/" {
					return fail(exitUsage, "%s is the whole store: --all lets all its history go", escapeName(args[0]))
				}
				q.Set("path", t.inside)
				q.Set("recursive", strconv.FormatBool(recursive))
			}
			return a.collect(ctx, t, "purge", q, asJSON)
		}),
	}
	f.register(cmd)
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "of a directory: everything in it, what was deleted too")
	cmd.Flags().BoolVar(&all, "all", false, "the history of the whole store")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// collect runs gc or purge and prints what it won.
func (a *app) collect(ctx context.Context, t *target, verb string, q url.Values, asJSON bool) error {
	return a.withClient(ctx, t, accessWrite, verb, func(c *client) error {
		bar := a.newProgress()
		var res meta.CollectResult
		err := c.stream(ctx, http.MethodPost, verb, q, streamSink{progress: bar.show}, &res)
		bar.done()
		if err != nil {
			return err
		}
		if asJSON {
			return a.printJSON(res)
		}
		a.printf("%s rows of history and %s inodes let go; %s blobs with %s given back\n",
			strconv.FormatInt(res.History, 10), strconv.FormatInt(res.Inodes, 10), strconv.FormatInt(res.Blobs, 10), humanBytes(res.Bytes))
		return nil
	})
}

// gc is the store's side.
func (c *control) gc(ctx context.Context, _ *http.Request, s *sender) (meta.CollectResult, error) {
	s.progress("collecting", 0, 0)
	s.flush()
	return c.engine.fs.CollectNow(ctx)
}

// purge is the store's side.
func (c *control) purge(ctx context.Context, r *http.Request, s *sender) (meta.CollectResult, error) {
	var ino meta.Ino
	if p := r.FormValue("path"); p != "" {
		at, err := c.find(ctx, p)
		if err != nil {
			return meta.CollectResult{}, err
		}
		ino = at.ino
	}
	s.progress("purging", 0, 0)
	s.flush()
	if r.FormValue("recursive") == "true" {
		return c.purgeTree(ctx, ino, r.FormValue("path"))
	}
	return c.engine.fs.Purge(ctx, c.caller(ctx), ino)
}

func (c *control) purgeTree(ctx context.Context, ino meta.Ino, p string) (meta.CollectResult, error) {
	a, err := c.engine.fs.GetAttr(ctx, ino)
	if err == nil && !a.IsDir() {
		err = fail(exitUsage, "%s is not a directory: leave --recursive out", escapeName(p))
	}
	if err != nil {
		return meta.CollectResult{}, err
	}
	return c.engine.fs.PurgeTree(ctx, c.caller(ctx), ino)
}
