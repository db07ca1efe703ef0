package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// mountSpec is one mount to make: the command line, -o and the configuration
// put together.
type mountSpec struct {
	target     *target
	mountpoint string // absolute, symbolic links resolved
	options    mountOptions
	log        LogConfig
	helper     bool // called by mount(8)
}

// mountFlags are the flags of mount.
type mountFlags struct {
	options    []string
	background bool
	logJSON    bool
	logLevel   string
	durability string
	history    string
	agent      string
	task       string
	metrics    string
}

func mountVerb(a *app) *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use:   "mount STORE MOUNTPOINT",
		Short: "mount a store; make it when there is none",
		Long: `mount serves STORE at MOUNTPOINT until it is unmounted or gets SIGTERM or
SIGINT; open work is finished then and everything made durable. STORE is a
directory, which becomes a store when it is missing or empty, or a named store
(see nexusfs store add). It stays in the foreground unless --background is
given, which returns when the mount serves.

STORE may also be a zone in a PostgreSQL database, which many machines mount:
postgres://user@host/database?zone=NAME. Its content lies where the first mount
says, -o content=DIRECTORY or content=s3://bucket/prefix.`,
		Example: `  nexusfs mount ./store ./mnt
  nexusfs mount --background -o allow_other,history=100v,30d /srv/store /mnt/team
  nexusfs mount -o ro projects ./mnt
  nexusfs mount -o content=/srv/blobs "postgres://fs@db/team?zone=docs" ./mnt`,
		Args: cobra.ExactArgs(2),
		RunE: action(func(ctx context.Context, args []string) error {
			spec, err := a.mountSpec(args[0], args[1], f)
			if err != nil {
				return err
			}
			if f.background && !isDaemonChild(a.getenv) {
				return a.mountInBackground(ctx, spec)
			}
			return a.serve(ctx, spec, f.background)
		}),
	}
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.options, "options", "o", nil, "mount `options`, separated by commas (nexusfs help options)")
	fl.BoolVar(&f.background, "background", false, "return when the mount serves and leave a daemon behind")
	fl.StringVar(&f.durability, "durability", "", "`level`: relaxed or strict (nexusfs help durability)")
	fl.StringVar(&f.history, "history", "", "history to keep: `off`, 30v, 7d or 30v,7d")
	fl.StringVar(&f.agent, "agent", "", "`name` recorded, as declared, with every operation")
	fl.StringVar(&f.task, "task", "", "task `name` recorded, as declared, with every operation")
	fl.StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics on `address`, such as 127.0.0.1:9560")
	fl.BoolVar(&f.logJSON, "log-json", false, "log as JSON lines")
	fl.StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error")
	return cmd
}

// mountSpec lays the defaults, the configuration, the store's own options, -o
// and the flags over each other, in this order.
func (a *app) mountSpec(store, mountpoint string, f mountFlags) (*mountSpec, error) {
	config, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	spec := &mountSpec{log: config.Log}
	if spec.target, err = a.resolve(store); err != nil {
		return nil, err
	}
	if m := spec.target.mount; m != nil {
		return nil, fail(exitUsage, "%s is inside of the mount at %s: give the STORE to mount", escapeName(store), escapeName(m.Point))
	}
	if spec.mountpoint, err = checkMountpoint(mountpoint, spec.target.store); err != nil {
		return nil, err
	}
	if r := spec.target.remote; r != nil && spec.target.store == "" {
		if spec.target.store, err = a.nodeDir(r, spec.mountpoint); err != nil {
			return nil, err
		}
	}
	if err := spec.options.layer(config, spec.target.name, f); err != nil {
		return nil, err
	}
	spec.options.settleFor(spec.target)
	if f.logJSON {
		spec.log.Format = "json"
	}
	if f.logLevel != "" {
		spec.log.Level = f.logLevel
	}
	if _, err := logLevel(spec.log.Level); err != nil {
		return nil, fail(exitUsage, "--log-level: %w", err)
	}
	if spec.options.Source == "" {
		spec.options.Source = spec.target.display()
	}
	return spec, nil
}

// settleFor fills in what depends on the kind of store.
func (m *mountOptions) settleFor(t *target) {
	if m.Durability == "" {
		m.Durability = "relaxed"
		if t.remote != nil {
			m.Durability = "strict"
		}
	}
	if t.remote != nil && m.Content != "" {
		t.remote.Content = m.Content
	}
}

// layer puts the sources of options over each other.
func (m *mountOptions) layer(config *Config, name string, f mountFlags) error {
	m.Durability, m.Agent, m.Task, m.Metrics = config.Mount.Durability, config.Mount.Agent, config.Mount.Task, config.Mount.Metrics
	var err error
	if m.History, err = parseHistory(config.Mount.History); err != nil {
		return withCode(exitUsage, err)
	}
	for _, arg := range append([]string{config.Mount.Options, config.Stores[name].Options}, f.options...) {
		if err := m.parse(arg); err != nil {
			return err
		}
	}
	for _, kv := range [][2]string{
		{"durability", f.durability}, {"history", f.history}, {"agent", f.agent},
		{"task", f.task}, {"metrics", f.metrics},
	} {
		if kv[1] == "" {
			continue
		}
		if err := m.setValue(kv[0], kv[1]); err != nil {
			return err
		}
	}
	return nil
}

// checkMountpoint refuses what cannot work before anything is changed. What a
// dead daemon left there is cleaned up.
func checkMountpoint(given string, store storeDir) (string, error) {
	abs, err := filepath.Abs(given)
	if err != nil {
		return "", fail(exitUsage, "%s: %w", escapeName(given), err)
	}
	point := realDir(abs)
	if err := checkFuse(fuseDevice); err != nil {
		return "", err
	}
	if err := removeDead(point, given); err != nil {
		return "", err
	}
	st, err := os.Stat(point)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fail(exitMount, "the mountpoint %s does not exist: make it with mkdir", escapeName(given))
	case err != nil:
		return "", fail(exitMount, "mountpoint: %w", err)
	case !st.IsDir():
		return "", fail(exitMount, "the mountpoint %s is not a directory", escapeName(given))
	}
	mounts, err := nexusMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.Point == point {
			return "", fail(exitMount, "%s is a nexusfs mount already, of %s: unmount it first, or choose another mountpoint", escapeName(given), escapeName(m.Source))
		}
	}
	if store == "" {
		return point, nil
	}
	if _, in := below(point, string(store)); in {
		return "", fail(exitMount, "the mountpoint %s holds the store itself: choose another one", escapeName(given))
	}
	if _, in := below(string(store), point); in {
		return "", fail(exitMount, "the mountpoint %s is inside of the store: choose another one", escapeName(given))
	}
	return point, nil
}

// fuseDevice is where the kernel's side of FUSE is.
const fuseDevice = "/dev/fuse"

// checkFuse says early, and in words, that there is no FUSE.
func checkFuse(device string) error {
	var st unix.Stat_t
	err := unix.Stat(device, &st)
	const major, minor = 10, 229 // of the kernel's list of devices
	switch {
	case errors.Is(err, unix.ENOENT):
		return fail(exitMount, "%s is missing, so nothing can be mounted: load the module (modprobe fuse), or give it to the container (--device %[1]s --cap-add SYS_ADMIN)", device)
	case err != nil:
		return fail(exitMount, "%s: %w", device, err)
	case st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(uint64(st.Rdev)) != major || unix.Minor(uint64(st.Rdev)) != minor:
		return fail(exitMount, "%s is not the kernel's fuse device, so nothing can be mounted: the system or the container hides it", device)
	}
	return nil
}

// removeDead removes what a daemon left at point when it died. stat(2) does not
// tell: the kernel may answer it from its cache for hours. statfs(2) always
// asks the daemon.
func removeDead(point, given string) error {
	mounts, err := nexusMounts()
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- { // several may lie over each other
		if mounts[i].Point != point || !isDead(point) {
			continue
		}
		if err := detach(point); err != nil {
			return fail(exitMount, "%s is the mount of a daemon that died, and it could not be removed: unmount it by hand (umount -l): %w", escapeName(given), err)
		}
	}
	return nil
}

// isDead reports whether the mount at point has no daemon any more.
func isDead(point string) bool {
	var st unix.Statfs_t
	return isDeadError(unix.Statfs(point, &st))
}

func isDeadError(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}
