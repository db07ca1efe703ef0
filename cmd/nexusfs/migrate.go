package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func migrateVerb(a *app) *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate FROM TO | FROM --content DIR",
		Short: "copy a store whole: files, versions, history, records and their chain",
		Long: `migrate copies everything that the store FROM holds to a new store TO, and
verifies it: every row is counted and digested on both sides, every blob is
checked against its hash while it is copied, and the chain of records is
verified in TO. FROM is only read; it must not be mounted. TO must be new.

--content DIR puts the content of files into another directory, on a larger disk
for instance: that of TO, or without a TO that of FROM itself, whose database
stays where it is. The old content is left for you to remove.

A migration that was interrupted, by kill -9 too, goes on where it was when the
same command is given again; until it has come to its end TO (or FROM, whose
content moves) cannot be mounted. When FROM was mounted in between it is not the
same source any more: remove TO and begin again. --dry-run says what would be
copied, and what stands in the way.`,
		Example: `  nexusfs migrate ./store /mnt/disk2/store
  nexusfs migrate ./store /mnt/disk2/store --dry-run
  nexusfs migrate ./store --content /mnt/large/content`,
		Args: cobra.RangeArgs(1, 2),
		RunE: action(func(ctx context.Context, args []string) error {
			if f.content != "" {
				abs, err := filepath.Abs(f.content)
				if err != nil {
					return fail(exitUsage, "--content: %w", err)
				}
				f.content = realDir(abs)
			}
			if len(args) == 1 {
				if f.content == "" {
					return fail(exitUsage, "give the store TO that everything goes to, or --content DIR for the content alone")
				}
				return a.migrateContent(ctx, args[0], f)
			}
			return a.migrate(ctx, args[0], args[1], f)
		}),
	}
	cmd.Flags().StringVar(&f.content, "content", "", "`directory` for the content of files")
	cmd.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "change nothing; say what would be copied and what stands in the way")
	cmd.Flags().BoolVar(&f.json, "json", false, "as JSON, with the digest of each table")
	return cmd
}

type migrateFlags struct {
	content      string // absolute
	dryRun, json bool
}

// migrationReport is what migrate says with --json.
type migrationReport struct {
	From      string   `json:"from"`
	To        string   `json:"to,omitempty"`
	Content   string   `json:"content,omitempty"`
	DryRun    bool     `json:"dry_run,omitempty"`
	Obstacles []string `json:"in_the_way,omitempty"`
	Result    any      `json:"result,omitempty"`
}

func (a *app) migrate(ctx context.Context, from, to string, f migrateFlags) error {
	src, dst, err := a.migrationEnds(from, to)
	if err == nil && f.content != "" {
		err = errors.Join(apart(string(src.store), f.content), apart(string(dst.store), f.content))
	}
	if err != nil {
		return withCode(exitUsage, err)
	}
	if f.dryRun {
		return a.migrateDry(ctx, src, dst, f)
	}
	log, err := a.commandLogger()
	if err != nil {
		return err
	}
	s, err := openSource(ctx, src, log)
	if err != nil {
		return err
	}
	defer s.close() // it was only read
	if why := s.unsettled(src); why != "" {
		return fail(exitStore, "%s", why)
	}
	bar := a.newProgress()
	res, err := runMigration(ctx, s, dst, f.content, log, bar.show)
	bar.done()
	switch {
	case err != nil && ctx.Err() != nil:
		return fail(exitSignal, "interrupted: the same command goes on where it was")
	case err != nil:
		return withCode(exitFailed, err)
	case f.json:
		return a.printJSON(migrationReport{From: src.display(), To: dst.display(), Result: res})
	case res.Before:
		a.printf("%s holds what %s holds already: %d rows and %d blobs, up to revision %d\n",
			escapeName(dst.display()), escapeName(src.display()), res.Rows, res.Blobs, res.Rev)
		return nil
	}
	a.printf("%s holds what %s holds, up to revision %d: %d rows, %d blobs with %s, verified\n",
		escapeName(dst.display()), escapeName(src.display()), res.Rev, res.Rows, res.Blobs, humanBytes(res.Bytes))
	if res.Copied.Rows < res.Rows {
		a.printf("of these, %d rows had been copied before\n", res.Rows-res.Copied.Rows)
	}
	return nil
}

// migrationEnds finds the two stores.
func (a *app) migrationEnds(from, to string) (src, dst *target, err error) {
	if src, err = a.resolve(from); err != nil {
		return nil, nil, err
	}
	if dst, err = a.resolve(to); err != nil {
		return nil, nil, err
	}
	if dst.mount != nil {
		return nil, nil, fail(exitUsage, "%s is inside of the mount at %s: give a directory outside of it", escapeName(to), escapeName(dst.mount.Point))
	}
	return src, dst, apart(string(src.store), string(dst.store))
}

// apart refuses two directories of which one lies in the other.
func apart(a, b string) error {
	_, in := below(a, b)
	_, around := below(b, a)
	if in || around {
		return fail(exitUsage, "%s and %s lie inside of each other: give another directory", escapeName(a), escapeName(b))
	}
	return nil
}

// migrateContent moves the content of one store.
func (a *app) migrateContent(ctx context.Context, arg string, f migrateFlags) error {
	t, err := a.resolve(arg)
	if err != nil {
		return err
	}
	if err := apart(string(t.store), f.content); err != nil {
		return err
	}
	log, err := a.commandLogger()
	if err != nil {
		return err
	}
	state, err := t.store.inspectTarget()
	if err != nil {
		return err
	}
	if state != storeMoving { // then it was looked at before
		s, err := openSource(ctx, t, log)
		if err != nil {
			return err
		}
		why := s.unsettled(t)
		res, err := planMigration(ctx, s)
		if err = errors.Join(err, s.close()); err != nil {
			return err
		}
		if why != "" {
			return fail(exitStore, "%s", why)
		}
		if f.dryRun {
			return a.contentDry(t, f, res.Blobs, res.Bytes)
		}
	}
	if f.dryRun {
		return a.contentDry(t, f, 0, 0)
	}
	bar := a.newProgress()
	res, old, err := moveContent(ctx, t.store, f.content, log, bar.show)
	bar.done()
	switch {
	case err != nil && ctx.Err() != nil:
		return fail(exitSignal, "interrupted: the same command goes on where it was")
	case err != nil:
		return withCode(exitFailed, err)
	case f.json:
		return a.printJSON(migrationReport{From: t.display(), Content: f.content, Result: res})
	}
	a.printf("the content of %s is in %s now: %d blobs with %s, verified; what is in %s is not used any more and may be removed\n",
		escapeName(t.display()), escapeName(f.content), res.Blobs, humanBytes(res.Bytes), escapeName(old))
	return nil
}

// contentDry says what would be moved.
func (a *app) contentDry(t *target, f migrateFlags, blobs, bytes int64) error {
	rep := migrationReport{From: t.display(), Content: f.content, DryRun: true}
	state, err := t.store.inspectTarget()
	if err == nil && state == storeMoving {
		a.note("some of it is there already")
	} else if err == nil {
		err = errors.Join(contentIsFree(f.content), roomFor(f.content, bytes))
	}
	if err != nil {
		rep.Obstacles = append(rep.Obstacles, userText(err))
	}
	if f.json {
		if err := a.printJSON(rep); err != nil {
			return err
		}
	} else {
		a.printf("would move %d blobs with %s to %s\n", blobs, humanBytes(bytes), escapeName(f.content))
	}
	if err != nil {
		return fail(exitFailed, "in the way: %w", err)
	}
	return nil
}

// unsettled says why a source is not to be copied as it is. A daemon that was
// killed may have left what its successor takes back (P22).
func (s *migrationSource) unsettled(t *target) string {
	if s.origin.Open == 0 {
		return ""
	}
	return "the last daemon of " + escapeName(t.display()) + " did not end in order, and what it left is looked through by the next one: mount the store once and unmount it, then migrate"
}

// migrateDry says what would be copied and what stands in the way; exitFailed
// when something does.
func (a *app) migrateDry(ctx context.Context, src, dst *target, f migrateFlags) error {
	rep := migrationReport{From: src.display(), To: dst.display(), DryRun: true}
	against := func(err error) bool {
		if err != nil {
			rep.Obstacles = append(rep.Obstacles, userText(err))
		}
		return err != nil
	}
	log, err := a.commandLogger()
	if err != nil {
		return err
	}
	begun := targetBegun(dst.store)
	against(targetIsFree(dst.store))
	s, err := openSource(ctx, src, log)
	if !against(err) {
		defer s.close() // it was only read
		if why := s.unsettled(src); why != "" {
			against(errors.New(why))
		}
		res, err := planMigration(ctx, s)
		if err != nil {
			return err
		}
		if !begun { // else some of it is there already
			against(contentIsFree(f.content))
			against(enoughSpace(src.store, dst.store, f.content, res.Bytes))
		}
		rep.Result = res
		if !f.json {
			a.printf("would copy %d rows, and %d blobs with %s, up to revision %d\n", res.Rows, res.Blobs, humanBytes(res.Bytes), res.Rev)
			for _, t := range res.Tables {
				a.printf("  %-18s %d rows\n", t.Table, t.Rows)
			}
		}
	}
	if f.json {
		if err := a.printJSON(rep); err != nil {
			return err
		}
	}
	if len(rep.Obstacles) > 0 {
		return fail(exitFailed, "in the way: %s", strings.Join(rep.Obstacles, "; "))
	}
	if !f.json {
		a.printf("nothing stands in the way\n")
	}
	return nil
}

func targetBegun(d storeDir) bool {
	state, err := d.inspectTarget()
	return err == nil && state == storeMigrating
}

// targetIsFree refuses a directory that a migration could not go to. That a
// target is the interrupted one of the same source, the migration itself checks.
func targetIsFree(d storeDir) error {
	state, err := d.inspectTarget()
	if err != nil {
		return err
	}
	if state == storeReady || state == storeNew {
		return fail(exitStore, "%s is a store already: give a directory that is empty or does not exist", escapeName(string(d)))
	}
	by, held, err := probeLock(d)
	if err == nil && held {
		err = &errHeld{dir: d, by: by}
	}
	return err
}

// enoughSpace compares what is to be copied with what the target's disks have
// left.
func enoughSpace(src, dst storeDir, content string, bytes int64) error {
	need := int64(0)
	for _, name := range []string{src.database(), src.database() + "-wal"} {
		if fi, err := os.Stat(name); err == nil {
			need += fi.Size()
		}
	}
	if content == "" {
		return roomFor(string(dst), need+bytes)
	}
	return errors.Join(roomFor(string(dst), need), roomFor(content, bytes))
}

// roomFor looks at the disk on which a directory is, or would be made.
func roomFor(dir string, need int64) error {
	for at := dir; ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, unix.ENOENT) && at != filepath.Dir(at) {
			continue
		}
		if err != nil {
			return fail(exitStore, "the disk of %s: %w", escapeName(dir), err)
		}
		if free := int64(st.Bavail) * st.Bsize; free < need {
			return fail(exitStore, "the disk of %s has %s free, and about %s are needed: free some space, or give another disk", escapeName(dir), humanBytes(free), humanBytes(need))
		}
		return nil
	}
}
