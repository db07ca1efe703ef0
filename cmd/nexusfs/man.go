package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manVerb writes the man pages that make install installs.
func manVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "write the man pages of all commands into a directory",
		Example: "  nexusfs man ./man && man -l ./man/nexusfs-mount.1",
		Args:    cobra.ExactArgs(1),
		Hidden:  true,
		RunE: action(func(_ context.Context, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fail(exitFailed, "man pages: %w", err)
			}
			root := a.root()
			root.DisableAutoGenTag = true
			head := &doc.GenManHeader{Title: "NEXUSFS", Section: "1", Source: "nexusfs " + versionString(), Manual: "nexusfs"}
			return doc.GenManTree(root, head, args[0])
		}),
	}
}
