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
		Use:   "migrate FROM TO | FROM --content PLACE",
		Short: "copy a store whole: files, versions, history, records and their chain",
		Long: `migrate copies everything that the store FROM holds to a new store TO, and
verifies it: every row is counted and digested on both sides, every blob is
checked against its hash while it is copied, and the chain of records is
verified in TO. FROM is only read; it must not be mounted. TO must be new. Each
is a directory, or a zone in a database: postgres://USER@HOST/DATABASE?zone=ZONE.
The password belongs into ~/.pgpass.

--content PLACE says where the content of files goes. For a zone in a database it
is needed: a directory that every machine with a mount of it has, or
s3://BUCKET/PREFIX. For a store in a directory it may be another directory, on a
larger disk for instance. Without a TO the content of FROM itself moves, and its
rows stay where they are. The old content is left for you to remove.

A migration that was interrupted, by kill -9 too, goes on where it was when the
same command is given again; until it has come to its end TO (or FROM, whose
content moves) cannot be mounted. When FROM was mounted in between it is not the
same source any more: remove TO, of a database with --restart, and begin again. --dry-run says what would be
copied, and what stands in the way.`,
		Example: `  nexusfs migrate ./store /mnt/disk2/store
  nexusfs migrate ./store /mnt/disk2/store --dry-run
  nexusfs migrate ./store --content /mnt/large/content
  nexusfs migrate ./store 'postgres://fs@db/team?zone=docs' --content s3://bucket/docs
  nexusfs migrate 'postgres://fs@db/team?zone=docs' ./store
  nexusfs migrate 'postgres://fs@db/team?zone=docs' --content /srv/blobs`,
		Args: cobra.RangeArgs(1, 2),
		RunE: action(func(ctx context.Context, args []string) (err error) {
			if f.content, err = migrationContent(f.content); err != nil {
				return withCode(exitUsage, err)
			}
			if len(args) == 1 {
				if f.content == "" {
					return fail(exitUsage, "give the store TO that everything goes to, or --content PLACE for the content alone")
				}
				return a.migrateContent(ctx, args[0], f)
			}
			return a.migrate(ctx, args[0], args[1], f)
		}),
	}
	cmd.Flags().StringVar(&f.content, "content", "", "`place` for the content of files: a directory or s3://BUCKET/PREFIX")
	cmd.Flags().BoolVar(&f.restart, "restart", false, "throw away what an earlier run has begun in a database, and begin again")
	cmd.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "change nothing; say what would be copied and what stands in the way")
	cmd.Flags().BoolVar(&f.json, "json", false, "as JSON, with the digest of each table")
	return cmd
}

// migrationContent reads --content: a directory, made absolute, or a URL.
func migrationContent(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if strings.Contains(s, "://") {
		place, err := contentURL(s)
		if err == nil {
			err = validPlace(place)
		}
		return place, err
	}
	abs, err := filepath.Abs(s)
	return realDir(abs), err
}

type migrateFlags struct {
	content      string // an absolute path, or an s3:// URL; "": not given
	restart      bool
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
	if err == nil {
		err = errors.Join(src.contentMayBe(f.content), dst.contentMayGo(f.content))
	}
	if err == nil && f.restart && dst.remote == nil {
		err = fail(exitUsage, "--restart is for a zone in a database: remove the directory %s instead", escapeName(string(dst.store)))
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
	if s.unsettled != "" {
		return fail(exitStore, "%s", s.unsettled)
	}
	bar := a.newProgress()
	res, err := runMigration(ctx, s, destination{dst, f.content, f.restart}, log, bar.show)
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
	switch {
	case src.remote != nil && src.remote.same(dst.remote):
		err = fail(exitUsage, "both are the zone %s of one database: give the target another zone=", escapeName(src.remote.Zone))
	case src.remote == nil && dst.remote == nil:
		err = apart(string(src.store), string(dst.store))
	}
	return src, dst, err
}

// contentMayBe refuses a place of content that lies inside of a store's directory.
func (t *target) contentMayBe(content string) error {
	if t.remote != nil || content == "" || isS3(content) {
		return nil
	}
	return apart(string(t.store), content)
}

// contentMayGo refuses what is no place for the content of a store.
func (t *target) contentMayGo(content string) error {
	switch {
	case t.remote != nil && content == "":
		return fail(exitUsage, "say where the content of zone %s goes: --content /DIRECTORY that every machine has, or s3://BUCKET/PREFIX", escapeName(t.remote.Zone))
	case t.remote == nil && isS3(content):
		return fail(exitUsage, "a store in a directory keeps its content in a directory: give one, or migrate to a database, whose content may be in S3")
	}
	return t.contentMayBe(content)
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
	if err == nil {
		err = t.contentMayGo(f.content)
	}
	if err != nil {
		return err
	}
	log, err := a.commandLogger()
	if err != nil {
		return err
	}
	plan, err := planMove(ctx, t, f.content, log)
	if err != nil {
		return err
	}
	if f.dryRun {
		return a.contentDry(t, f, plan)
	}
	if plan.obstacle != nil {
		return withCode(exitStore, plan.obstacle)
	}
	bar := a.newProgress()
	move := contentMove{to: f.content, log: log, show: bar.show}
	res, err := move.moveContent(ctx, t)
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
		escapeName(t.display()), escapeName(f.content), res.Blobs, humanBytes(res.Bytes), escapeName(move.from))
	return nil
}

// contentDry says what would be moved.
func (a *app) contentDry(t *target, f migrateFlags, plan movePlan) error {
	rep := migrationReport{From: t.display(), Content: f.content, DryRun: true}
	if plan.obstacle != nil {
		rep.Obstacles = append(rep.Obstacles, userText(plan.obstacle))
	}
	if f.json {
		if err := a.printJSON(rep); err != nil {
			return err
		}
	} else if plan.begun {
		a.printf("would move the rest to %s: an earlier run has begun it\n", escapeName(f.content))
	} else {
		a.printf("would move %d blobs with %s to %s\n", plan.blobs, humanBytes(plan.bytes), escapeName(f.content))
	}
	if plan.obstacle != nil {
		return fail(exitFailed, "in the way: %w", plan.obstacle)
	}
	return nil
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
	begun, err := targetIsFree(ctx, dst, f.content)
	against(err)
	s, err := openSource(ctx, src, log)
	if !against(err) {
		defer s.close() // it was only read
		if s.unsettled != "" {
			against(errors.New(s.unsettled))
		}
		res, err := planMigration(ctx, s)
		if err != nil {
			return err
		}
		if !begun { // else some of it is there already
			against(enoughSpace(dst, f.content, rowSpace(src, res.Rows), res.Bytes))
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

// targetIsFree refuses a store that a migration could not go to; begun says that
// one has begun to. That it was from the same source, the migration itself checks.
func targetIsFree(ctx context.Context, t *target, content string) (begun bool, err error) {
	if t.remote != nil {
		return databaseIsReady(ctx, t.remote, content)
	}
	d := t.store
	state, err := d.inspectTarget()
	switch {
	case err != nil:
		return false, err
	case state == storeReady || state == storeNew:
		return false, fail(exitStore, "%s is a store already: give a directory that is empty or does not exist", escapeName(string(d)))
	case state == storeAbsent:
		err = contentIsFree(content)
	}
	if by, held, lerr := probeLock(d); lerr == nil && held {
		err = errors.Join(err, &errHeld{dir: d, by: by})
	} else {
		err = errors.Join(err, lerr)
	}
	return state == storeMigrating, err
}

// rowBytes is about what a row takes of an embedded store's disk.
const rowBytes = 256

// rowSpace is about what a source's rows take of an embedded store's disk.
func rowSpace(src *target, rows int64) int64 {
	if src.remote != nil {
		return rows * rowBytes
	}
	need := int64(0)
	for _, name := range []string{src.store.database(), src.store.database() + "-wal"} {
		if fi, err := os.Stat(name); err == nil {
			need += fi.Size()
		}
	}
	return need
}

// enoughSpace compares what is to be copied with what the target's disks of this
// machine have left.
func enoughSpace(dst *target, content string, rows, blobs int64) error {
	switch {
	case dst.remote != nil && isS3(content):
		return nil
	case dst.remote != nil:
		return roomFor(content, blobs)
	case content == "":
		return roomFor(string(dst.store), rows+blobs)
	}
	return errors.Join(roomFor(string(dst.store), rows), roomFor(content, blobs))
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
