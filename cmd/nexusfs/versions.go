package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"
)

func versionsVerb(a *app) *cobra.Command {
	var f storeFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "versions PATH",
		Short: "list the versions of a file that are kept",
		Long: `versions lists the kept versions of a file, also of a deleted one, oldest first.
A version is made by each close that changed the content. In the mount they can
be read as .nexusfs/versions/PATH/N.`,
		Example: "  nexusfs versions ./mnt/report.txt",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := f.resolve(a, args[0])
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessRead, "versions", func(c *client) error {
				var v versionsInfo
				if err := c.get(ctx, "versions", pathArgs(t), &v); err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(v)
				}
				return a.printVersions(&v)
			})
		}),
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (a *app) printVersions(v *versionsInfo) error {
	if v.Deleted {
		a.note("%s is deleted; `nexusfs restore` brings it back", escapeName(string(v.Path)))
	}
	t := newTable(a.stdout, "VERSION", "SIZE", "TIME", "REVISION", "BY")
	t.right[0], t.right[1], t.right[3] = true, true, true
	for _, x := range v.Versions {
		t.add(strconv.FormatInt(x.N, 10), humanBytes(x.Size), humanTime(x.Time), strconv.FormatInt(int64(x.Rev), 10), x.Actor.String())
	}
	return t.flush()
}
