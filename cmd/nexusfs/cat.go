package main

import (
	"context"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

func catVerb(a *app) *cobra.Command {
	var f storeFlag
	var version int64
	cmd := &cobra.Command{
		Use:   "cat PATH[@N]",
		Short: "print a version of a file",
		Long: `cat prints version N of a file, also of a deleted one; without N the newest. A
name that exists as it is written, @ and all, wins over @N; --version N is never
ambiguous.`,
		Example: "  nexusfs cat ./mnt/report.txt@3\n  nexusfs cat --version 3 ./mnt/report.txt | diff - ./mnt/report.txt",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := f.resolve(a, args[0])
			if err != nil {
				return err
			}
			q, err := versionArgs(t, version)
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessRead, "cat", func(c *client) error {
				return c.raw(ctx, "cat", q, a.stdout)
			})
		}),
	}
	f.register(cmd)
	cmd.Flags().Int64Var(&version, "version", 0, "the version's `number`")
	return cmd
}

// versionArgs adds --version to a request.
func versionArgs(t *target, version int64) (url.Values, error) {
	if version < 0 {
		return nil, fail(exitUsage, "--version is a number from 1 on")
	}
	q := pathArgs(t)
	q.Set("version", strconv.FormatInt(version, 10))
	return q, nil
}
