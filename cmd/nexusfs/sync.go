package main

import (
	"context"
	"net/http"

	"github.com/spf13/cobra"

	"nexusfs/meta"
)

func syncVerb(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sync [STORE]",
		Short: "make everything written so far durable",
		Long: `sync commits what programs have written to files that are still open and makes
every operation durable before it returns. sync(1) does not do that: the kernel
does not pass it on to FUSE filesystems.`,
		Example: "  nexusfs sync ./mnt",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(argument(args, 0))
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessWrite, "sync", func(c *client) error {
				var done syncInfo
				if err := c.post(ctx, "sync", nil, &done); err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(done)
				}
				a.printf("durable up to revision %d\n", done.Durable)
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

type syncInfo struct {
	Durable meta.Rev `json:"durable_revision"`
}

// sync is the store's side.
func (c *control) sync(ctx context.Context, _ *http.Request) (syncInfo, error) {
	if err := c.engine.fs.Sync(ctx); err != nil {
		return syncInfo{}, err
	}
	return syncInfo{Durable: c.engine.fs.Status().Durable}, nil
}
