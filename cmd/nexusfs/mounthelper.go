package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// mount(8) and umount(8) call helpers by name: /sbin/mount.TYPE SPEC DIR
// [-sfnvrw] [-N namespace] [-t type] [-o options], and /sbin/umount.TYPE DIR
// [-nlfvr] [-N namespace] [-t type].

// helperArgs turns a call under a helper's name into our own verb.
func helperArgs(name string, args []string) []string {
	switch name {
	case "mount.nexusfs", "mount.fuse.nexusfs":
		return append([]string{"mount-helper"}, args...)
	case "umount.nexusfs", "umount.fuse.nexusfs":
		return append([]string{"mount-helper", "--umount"}, args...)
	}
	return args
}

// mount(8)'s exit codes.
const (
	mountExitUsage   = 1
	mountExitFailure = 32
)

func mountHelperVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "mount-helper STORE MOUNTPOINT [-o options]",
		Short: "what mount(8) calls as mount.nexusfs",
		Long: `mount-helper understands the command line with which mount(8) calls the helper of
a filesystem type, and its exit codes are mount(8)'s. It returns when the mount
serves. make install puts it at /sbin/mount.nexusfs and /sbin/mount.fuse.nexusfs.`,
		Example: `  mount -t nexusfs /srv/store /mnt -o ro
  mount -t fuse.nexusfs projects /mnt -o allow_other,default_permissions
  # /etc/fstab
  projects  /mnt  nexusfs  noauto,allow_other  0  0`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
				return cmd.Help()
			}
			return a.mountHelper(cmd.Context(), args)
		},
	}
}

func (a *app) mountHelper(ctx context.Context, args []string) error {
	c, err := parseHelper(args)
	if err == nil && c.umount {
		err = a.umount(ctx, c.dir, c.lazy)
	} else if err == nil {
		err = a.helperMount(ctx, c)
	}
	var e *exitError
	if err == nil {
		return nil
	}
	if errors.As(err, &e) && e.code == exitUsage {
		return &exitError{code: mountExitUsage, err: e.err}
	}
	if e != nil {
		return &exitError{code: mountExitFailure, err: e.err}
	}
	return &exitError{code: mountExitFailure, err: err}
}

func (a *app) helperMount(ctx context.Context, c helperCall) error {
	if config, err := a.loadConfig(); err != nil {
		return err
	} else if _, ok := config.Stores[c.spec]; !ok && !strings.Contains(c.spec, "/") {
		// mount(8) works anywhere: a bare word is never a directory of here.
		return fail(exitStore, "no store is named %s: nexusfs store add NAME URL gives a name, and a directory is given by its path", escapeName(c.spec))
	}
	spec, err := a.mountSpec(c.spec, c.dir, mountFlags{options: c.options})
	if err != nil {
		return err
	}
	spec.helper = true
	switch {
	case c.fake:
		return nil
	case isDaemonChild(a.getenv):
		return a.serve(ctx, spec, true)
	}
	return a.mountInBackground(ctx, spec)
}

// helperCall is a parsed command line of a helper.
type helperCall struct {
	umount, lazy, fake bool
	spec, dir          string
	options            []string
}

// parseHelper accepts flags anywhere, joined or not, as util-linux gives them.
func parseHelper(args []string) (helperCall, error) {
	var c helperCall
	var plain []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--umount" && i == 0:
			c.umount = true
		case arg == "--":
			plain = append(plain, args[i+1:]...)
			i = len(args)
		case len(arg) < 2 || arg[0] != '-':
			plain = append(plain, arg)
		default:
			used, err := c.flags(arg[1:], args[i+1:])
			if err != nil {
				return c, err
			}
			i += used
		}
	}
	want := 2
	if c.umount {
		want = 1
	}
	if len(plain) != want {
		return c, fail(exitUsage, "mount helper: got %d names, want %d (STORE and MOUNTPOINT to mount, MOUNTPOINT to unmount)", len(plain), want)
	}
	c.dir = plain[len(plain)-1]
	if !c.umount {
		c.spec = plain[0]
	}
	return c, nil
}

// flags reads one group of short flags; used says how many arguments behind it
// were values.
func (c *helperCall) flags(group string, rest []string) (used int, err error) {
	for len(group) > 0 {
		flag := group[0]
		group = group[1:]
		if !strings.ContainsRune("otN", rune(flag)) {
			if err := c.flag(flag); err != nil {
				return 0, err
			}
			continue
		}
		value := group
		if value == "" {
			if len(rest) == 0 {
				return 0, fail(exitUsage, "mount helper: -%c wants a value", flag)
			}
			value, used = rest[0], 1
		}
		if flag == 'o' {
			c.options = append(c.options, value)
		}
		return used, nil
	}
	return 0, nil
}

func (c *helperCall) flag(flag byte) error {
	switch flag {
	case 's', 'n', 'v', 'w':
	case 'f':
		c.fake = !c.umount
	case 'l':
		c.lazy = true
	case 'r':
		if !c.umount {
			c.options = append(c.options, "ro")
		}
	default:
		return fail(exitUsage, "mount helper: flag -%c is not known", flag)
	}
	return nil
}
