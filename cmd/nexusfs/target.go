package main

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// target is what a STORE, MOUNTPOINT or PATH argument means.
type target struct {
	store  storeDir    // of an embedded store, or of the node that mounts a database; "" for a database that no daemon of ours has
	remote *remote     // nil: an embedded store
	name   string      // of a named store, else ""
	mount  *mountEntry // when it was given through a mount
	inside string      // path within the zone; "/" for the whole
}

// display is the name under which users know the store.
func (t *target) display() string {
	switch {
	case t.name != "":
		return t.name
	case t.remote != nil:
		return t.remote.display()
	}
	return string(t.store)
}

// targetOf is the target that a store's URL names.
func (a *app) targetOf(url string) (*target, error) {
	if !isRemote(url) {
		path, err := storePath(url)
		return &target{store: storeDir(path), inside: "/"}, err
	}
	r, err := parseRemote(url)
	if err != nil {
		return nil, err
	}
	if pw := a.getenv(passwordEnv); pw != "" {
		r.password = pw // the daemon in the background: its command line has none
	}
	return &target{remote: r, inside: "/"}, nil
}

// targetIn is the target in a directory: an embedded store's, or a node's.
func targetIn(dir storeDir) *target {
	return &target{store: dir, remote: dir.readRemote(), inside: "/"}
}

// resolve finds out what an argument means: a named store, a URL, a path
// inside of a mount, or a store's directory, in this order. "" is the mount of
// the working directory, or the only one.
func (a *app) resolve(arg string) (*target, error) {
	config, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	if arg == "" {
		return a.resolveDefault(config)
	}
	if s, ok := config.Stores[arg]; ok {
		t, err := a.targetOf(s.URL)
		if err == nil {
			t.name = arg
		}
		return t, err
	}
	if strings.Contains(arg, "://") {
		t, err := a.targetOf(arg)
		return t, withCode(exitUsage, err)
	}
	path, err := realPath(arg)
	if err != nil {
		return nil, err
	}
	mounts, err := nexusMounts()
	if err != nil {
		return nil, err
	}
	if m, inside, ok := mountOf(mounts, path); ok {
		return a.mountTarget(config, m, inside)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil { // a link to a mount, or to a store
		path = real
	}
	if m, inside, ok := mountOf(mounts, path); ok {
		return a.mountTarget(config, m, inside)
	}
	return targetIn(storeDir(path)), nil
}

func (a *app) resolveDefault(config *Config) (*target, error) {
	mounts, err := nexusMounts()
	if err != nil {
		return nil, err
	}
	if wd, err := os.Getwd(); err == nil {
		if m, inside, ok := mountOf(mounts, wd); ok {
			return a.mountTarget(config, m, inside)
		}
	}
	switch len(mounts) {
	case 0:
		return nil, fail(exitUsage, "no nexusfs is mounted here: name a STORE")
	case 1:
		return a.mountTarget(config, mounts[0], "/")
	}
	var points []string
	for _, m := range mounts {
		points = append(points, escapeName(m.Point))
	}
	return nil, fail(exitUsage, "several nexusfs are mounted: name one of %s", strings.Join(points, ", "))
}

// mountTarget finds the store behind a mount. The mount table's source says it
// without asking the daemon, which may be dead or stuck.
func (a *app) mountTarget(config *Config, m mountEntry, inside string) (t *target, err error) {
	s, named := config.Stores[m.Source]
	switch {
	case named:
		if t, err = a.targetOf(s.URL); t != nil {
			t.name = m.Source
		}
	case isRemote(m.Source):
		t, err = a.targetOf(m.Source)
	case filepath.IsAbs(m.Source):
		t = targetIn(storeDir(m.Source))
	}
	if err != nil {
		return nil, err
	}
	if t != nil && t.remote != nil {
		if t.store, err = a.nodeDir(t.remote, m.Point); err != nil {
			return nil, err
		}
	}
	if t == nil || t.remote != nil && !t.store.served() {
		// A mount by another user or a bind mount: it says itself, if its daemon lives.
		path, err := storeOfMount(m.Point)
		if err != nil && t == nil {
			return nil, fail(exitDaemon, "the mount at %s does not say which store it shows (its source is %q): name the STORE instead: %w", escapeName(m.Point), m.Source, err)
		}
		if err == nil {
			t = targetIn(storeDir(path))
		}
	}
	t.mount, t.inside = &m, inside
	return t, nil
}

// access is what a command needs of a store.
type access uint8

const (
	accessRead   access = iota // the daemon, or the store read-only
	accessWrite                // the daemon, or the store exclusively
	accessDaemon               // the daemon alone
)

// connect returns a client for a target. role names the command to those whom
// it keeps out. A daemon that ends meanwhile is no error: then there is none.
func (a *app) connect(ctx context.Context, t *target, need access, role string) (*client, error) {
	for {
		c, err := a.connectOnce(ctx, t, need, role)
		if !errors.Is(err, errDaemonEnded) {
			return c, err
		}
	}
}

func (a *app) connectOnce(ctx context.Context, t *target, need access, role string) (*client, error) {
	if t.remote != nil {
		return a.connectRemote(ctx, t, need, role)
	}
	state, err := t.store.inspect()
	if err != nil {
		return nil, err
	}
	if state == storeAbsent {
		return nil, fail(exitStore, "there is no store at %s: `nexusfs mount %s MOUNTPOINT` makes one", escapeName(string(t.store)), escapeName(string(t.store)))
	}
	by, held, err := probeLock(t.store)
	switch {
	case err != nil:
		return nil, err
	case held && by.Role == "mount":
		return awaitDaemon(ctx, t.store, by)
	case held:
		return nil, &exitError{code: exitStore, err: &errHeld{dir: t.store, by: by}}
	case need == accessDaemon:
		return nil, fail(exitDaemon, "the store %s is not mounted, and this command asks the daemon: mount it first", escapeName(t.display()))
	}
	return a.openHere(ctx, t, need, role)
}

// connectRemote is connect for a zone in a database: a daemon of this machine
// that has it mounted, or the database itself, which others use meanwhile.
func (a *app) connectRemote(ctx context.Context, t *target, need access, role string) (*client, error) {
	at, err := a.nodeOf(t)
	switch {
	case err != nil:
		return nil, err
	case at != nil:
		return awaitDaemon(ctx, at.dir, at.by)
	case need == accessDaemon:
		return nil, fail(exitDaemon, "%s is not mounted here, and this command asks the daemon: mount it first", escapeName(t.display()))
	}
	if role == "gc" {
		return nil, fail(exitDaemon, "%s is not mounted here, and gc keeps to what a mount says of history: mount it first", escapeName(t.display()))
	}
	return a.openRemote(ctx, t, need)
}

// nodeOf finds the daemon that serves a target in a database: the one of its
// mount, else any of this machine; nil when there is none.
func (a *app) nodeOf(t *target) (*node, error) {
	if t.store != "" {
		by, held, err := probeLock(t.store)
		if err != nil || !held || by.Role != "mount" {
			return nil, err
		}
		return &node{t.store, by}, nil
	}
	nodes, err := a.nodesOf(t.remote)
	if err != nil || len(nodes) == 0 {
		return nil, err
	}
	return &nodes[0], nil
}

// Bounds of waiting for a daemon that has its lock and no socket yet.
const (
	socketPatience = 30 * time.Second
	socketInterval = 20 * time.Millisecond
)

// errDaemonEnded says that the daemon which held the lock does so no more.
var errDaemonEnded = errors.New("the daemon has ended")

// awaitDaemon connects to a daemon that holds the lock: it may just be starting,
// or ending (errDaemonEnded).
func awaitDaemon(ctx context.Context, d storeDir, by holder) (*client, error) {
	if by.Control == "" {
		by.Control = d.file("control.sock")
	}
	for deadline := time.Now().Add(socketPatience); ; {
		conn, err := dialControl(ctx, by.Control)
		if err == nil {
			conn.Close()
			return dialDaemon(by.Control), nil
		}
		starting := errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
		if now, held, perr := probeLock(d); starting && perr == nil && (!held || now.PID != by.PID) {
			return nil, errDaemonEnded
		}
		if !starting || time.Now().After(deadline) || !processLives(by.PID) {
			return nil, fail(exitDaemon, "the daemon with pid %d does not answer on %s: only root and the user who mounted may talk to it: %w", by.PID, escapeName(by.Control), err)
		}
		select {
		case <-ctx.Done():
			return nil, fail(exitSignal, "interrupted")
		case <-time.After(socketInterval):
		}
	}
}

// storeFlag is --store of the verbs that take a PATH: PATH is then counted from
// the root of that store.
type storeFlag struct{ store string }

func (f *storeFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.store, "store", "s", "", "take PATH from the root of this `STORE`, mounted or not")
}

// resolve finds the store and the path within it.
func (f *storeFlag) resolve(a *app, path string) (*target, error) {
	if f.store == "" {
		t, err := a.resolve(path)
		if err != nil || t.mount != nil {
			return t, err
		}
		return nil, fail(exitUsage, "%s is not inside of a nexusfs mount: give a path in a mount, or --store STORE and the path from its root", escapeName(path))
	}
	t, err := a.resolve(f.store)
	if err != nil {
		return nil, err
	}
	t.inside = filepath.Join("/", path)
	return t, nil
}

// pathArgs starts a request about one path.
func pathArgs(t *target) url.Values { return url.Values{"path": {t.inside}} }

// isReset recognises a peer that hung up.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// withClient resolves, connects, runs fn and closes.
func (a *app) withClient(ctx context.Context, t *target, need access, role string, fn func(*client) error) (err error) {
	c, err := a.connect(ctx, t, need, role)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := c.Close(); cerr != nil && err == nil {
			err = fail(exitStore, "closing the store: %w", cerr)
		}
	}()
	return fn(c)
}

// argument returns args[i] or "".
func argument(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}
