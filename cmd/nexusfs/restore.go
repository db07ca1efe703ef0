package main

import (
	"context"
	"errors"
	"net/http"
	"path"
	"strconv"

	"github.com/spf13/cobra"

	"nexusfs/meta"
)

func restoreVerb(a *app) *cobra.Command {
	var f storeFlag
	var version int64
	var as string
	var recursive, asJSON bool
	cmd := &cobra.Command{
		Use:   "restore PATH[@N]",
		Short: "bring back a version of a file, or what was deleted",
		Long: `restore makes the content of version N the newest content of the file, as a
version of its own: nothing is lost by it. A deleted file or directory gets its
name back (or another one, with --as); its directory must exist. --recursive
brings back what was deleted inside of a directory too.
A name that exists as it is written, @ and all, wins over @N; --version N is
never ambiguous.`,
		Example: `  nexusfs restore ./mnt/report.txt@3
  nexusfs restore ./mnt/deleted.txt --as found.txt
  nexusfs restore --recursive ./mnt/deleted-dir`,
		Args: cobra.ExactArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := f.resolve(a, args[0])
			if err != nil {
				return err
			}
			q, err := versionArgs(t, version)
			if err != nil {
				return err
			}
			q.Set("as", as)
			q.Set("recursive", strconv.FormatBool(recursive))
			return a.withClient(ctx, t, accessWrite, "restore", func(c *client) error {
				var done restored
				if err := c.post(ctx, "restore", q, &done); err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(done)
				}
				a.printRestored(&done)
				return nil
			})
		}),
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.Int64Var(&version, "version", 0, "the version's `number`")
	fl.StringVar(&as, "as", "", "`name` for what was deleted, in the same directory")
	fl.BoolVarP(&recursive, "recursive", "r", false, "of a deleted directory: what was in it too")
	fl.BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// restored says what restore did.
type restored struct {
	Path      bytesName `json:"path"`
	Ino       meta.Ino  `json:"ino"`
	Version   int64     `json:"version,omitempty"` // whose content is the newest now
	Undeleted int64     `json:"undeleted"`         // names that came back
}

func (a *app) printRestored(r *restored) {
	switch {
	case r.Undeleted > 0 && r.Version > 0:
		a.printf("%s is back, with the content of version %d\n", escapeName(string(r.Path)), r.Version)
	case r.Undeleted > 1:
		a.printf("%s is back, with %d names in it\n", escapeName(string(r.Path)), r.Undeleted-1)
	case r.Undeleted > 0:
		a.printf("%s is back\n", escapeName(string(r.Path)))
	default:
		a.printf("%s has the content of version %d again\n", escapeName(string(r.Path)), r.Version)
	}
}

// restore is the store's side.
func (c *control) restore(ctx context.Context, r *http.Request) (restored, error) {
	q := query{r: r}
	version := q.int("version")
	if q.err != nil {
		return restored{}, q.err
	}
	p := r.FormValue("path")
	at, n, err := c.findVersion(ctx, p, version)
	if err != nil {
		return restored{}, err
	}
	if n > 0 && version == 0 {
		p, _, _ = splitVersion(p)
	}
	if n > 0 {
		if err := c.versionKept(ctx, at.ino, n, p); err != nil {
			return restored{}, err
		}
	}
	out := restored{Path: bytesName(p), Ino: at.ino, Version: n}
	by := c.caller(ctx)
	switch {
	case at.live && n == 0:
		return out, fail(exitUsage, "%s is there: say which version to bring back, as PATH@N or with --version N", escapeName(p))
	case at.live && r.FormValue("as") != "":
		return out, fail(exitUsage, "%s is not deleted, and --as names what is", escapeName(p))
	case !at.live:
		out, err = c.undelete(ctx, by, at, out, r)
	}
	if err == nil && n > 0 {
		err = c.engine.fs.Restore(ctx, by, at.ino, n)
	}
	if err != nil {
		return out, err
	}
	return out, c.engine.settleKernel(ctx)
}

func (c *control) versionKept(ctx context.Context, ino meta.Ino, n int64, p string) error {
	list, err := c.engine.history.Versions(ctx, ino)
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.N == n {
			return nil
		}
	}
	return fail(exitMissing, "version %d of %s is not kept: `nexusfs versions` lists what is", n, escapeName(p))
}

// undelete gives a deleted name back.
func (c *control) undelete(ctx context.Context, by meta.Caller, at found, out restored, r *http.Request) (restored, error) {
	dir, err := c.engine.fs.GetAttr(ctx, at.parent)
	if err != nil {
		return out, err
	}
	if dir.Nlink == 0 {
		return out, fail(exitMissing, "the directory of %s is deleted too: restore %s first", escapeName(string(out.Path)), escapeName(path.Dir(string(out.Path))))
	}
	name := at.deleted.Name
	if as := r.FormValue("as"); as != "" {
		name = as
	}
	if _, err := c.engine.fs.Undelete(ctx, by, at.parent, at.deleted, name); err != nil {
		if meta.KindOf(err) == meta.KindExist {
			return out, fail(exitFailed, "%s exists: give another name with --as", escapeName(path.Join(path.Dir(string(out.Path)), name)))
		}
		return out, err
	}
	out.Path = bytesName(path.Join(path.Dir(string(out.Path)), name))
	out.Undeleted = 1
	if r.FormValue("recursive") == "true" && at.deleted.Type == meta.ModeDir {
		n, err := c.undeleteBelow(ctx, by, at.ino)
		out.Undeleted += n
		return out, err
	}
	return out, nil
}

// undeleteBelow brings back, for each name in a directory, the newest thing
// that was deleted under it, and goes down.
func (c *control) undeleteBelow(ctx context.Context, by meta.Caller, top meta.Ino) (n int64, err error) {
	for dirs := []meta.Ino{top}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		gone, err := c.engine.history.Deleted(ctx, dir, deletedLimit)
		if err != nil {
			return n, err
		}
		for _, d := range gone {
			_, err := c.engine.fs.Undelete(ctx, by, dir, d, d.Name)
			if errors.Is(err, meta.KindExist.Err()) {
				continue // an older thing of the same name
			}
			if err != nil {
				return n, err
			}
			n++
			if d.Type == meta.ModeDir {
				dirs = append(dirs, d.Ino)
			}
		}
	}
	return n, nil
}
