// Command nexusfs mounts a filesystem whose metadata lives in SQL, and talks
// to the daemons that serve such mounts. One verb per file; control.go has the
// protocol between a command and a daemon; wiring.go is where the rooms
// (fusefs, meta, sqlssot, content) meet, wiringmigrate.go where two stores do.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func main() {
	args := helperArgs(filepath.Base(os.Args[0]), hideSecrets(os.Args)[1:])
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	os.Exit(a.run(args))
}

// Groups of verbs in help.
const (
	groupMount   = "mount"
	groupHistory = "history"
	groupStore   = "store"
	groupOther   = "other"
)

// verb is one entry of the command table.
type verb struct {
	group string
	build func(*app) *cobra.Command
}

// verbs is the table of everything that nexusfs does.
func verbs() []verb {
	return []verb{
		{groupMount, mountVerb},
		{groupMount, umountVerb},
		{groupMount, statusVerb},
		{groupMount, statsVerb},
		{groupMount, syncVerb},
		{groupHistory, logVerb},
		{groupHistory, versionsVerb},
		{groupHistory, catVerb},
		{groupHistory, restoreVerb},
		{groupHistory, deletedVerb},
		{groupHistory, sqlVerb},
		{groupStore, storeVerb},
		{groupStore, doctorVerb},
		{groupStore, fsckVerb},
		{groupStore, gcVerb},
		{groupStore, purgeVerb},
		{groupStore, rmrVerb},
		{groupStore, migrateVerb},
		{groupStore, dumpVerb},
		{groupStore, loadVerb},
		{groupOther, versionVerb},
		{groupOther, mountHelperVerb},
		{groupOther, manVerb},
	}
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "nexusfs",
		Short: "a filesystem whose metadata lives in SQL",
		Long: `nexusfs is a filesystem that you mount with FUSE and use with plain shell tools.
Its metadata, its history and the record of every operation live in SQL.

A STORE is a directory, or the name of a store in the configuration. Wherever a
STORE is wanted a MOUNTPOINT, or any path inside of a mount, will do; commands
talk to the running daemon where there is one.`,
		Example: `  nexusfs mount ./store ./mnt          # makes the store if there is none
  nexusfs log ./mnt/report.txt         # who changed it, when
  nexusfs restore ./mnt/report.txt@3   # bring version 3 back
  nexusfs umount ./mnt`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          a.bareGroup,
	}
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "read this configuration `file` alone")
	root.AddGroup(
		&cobra.Group{ID: groupMount, Title: "Mounting:"},
		&cobra.Group{ID: groupHistory, Title: "History:"},
		&cobra.Group{ID: groupStore, Title: "Stores:"},
		&cobra.Group{ID: groupOther, Title: "Others:"})
	for _, v := range verbs() {
		cmd := v.build(a)
		cmd.GroupID = v.group
		root.AddCommand(cmd)
	}
	root.AddCommand(topics()...)
	root.SetCompletionCommandGroupID(groupOther)
	root.SetHelpCommandGroupID(groupOther)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	return root
}

// bareGroup answers a command that only groups others and was called alone.
func (a *app) bareGroup(cmd *cobra.Command, _ []string) error {
	cmd.SetOut(a.stderr)
	_ = cmd.Help() // nothing to do when even help cannot be printed
	return &exitError{code: exitUsage}
}

// run executes one command line and returns the exit code.
func (a *app) run(args []string) int {
	ctx, stop := a.signals()
	defer stop()
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	code := exitCode(err)
	if text := errorText(err); text != "" {
		fmt.Fprintf(a.stderr, "nexusfs: %s\n", text)
		if code == exitUsage && cmd != nil && !isExit(err) {
			fmt.Fprintf(a.stderr, "Try `%s --help`.\n", cmd.CommandPath())
		}
	}
	return code
}
