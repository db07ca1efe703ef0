package main

import (
	"context"
	"errors"
	"hash"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nexusfs/content"
	"nexusfs/fusefs"
	"nexusfs/hooks"
	"nexusfs/meta"
)

// This file is where the rooms meet, and the way of the data is visible here:
//
//	kernel -> fusefs -> meta.FS -> content/...  blobs
//	                           \-> sqlssot/...  the truth, one transaction
//	                            -> hooks        cache invalidation, followers of the log
//
// Which content and which truth, wiringparts.go says. No other file of this
// package imports a room but meta, and wiringmigrate*.go, where two stores meet,
// and wiringdoctor.go, which looks at a store that may be broken.

// engineOptions say which store to open, and for what.
type engineOptions struct {
	dir        storeDir
	remote     *remote
	mountpoint string // "" without a mount
	mount      mountOptions
	readOnly   bool // nothing on the disk is changed: no session, no recovery
	log        *slog.Logger
}

// engine is an open store.
type engine struct {
	dir        storeDir
	remote     *remote // nil: an embedded store
	mountpoint string
	zone       string
	options    mountOptions
	started    time.Time

	fs       *meta.FS
	history  meta.History
	upkeep   meta.Upkeep
	store    meta.Store
	content  meta.Content
	notifier *fusefs.Notifier // nil without a mount
	news     *news            // nil without a mount

	stopping chan struct{} // closed when the daemon begins to end
	closers  []func() error
}

// openEngine opens the store's parts from the disk upward and, unless it is
// read-only, begins a session, which takes back what a power loss left undone
// (P22). Errors carry exitStore.
func openEngine(ctx context.Context, o engineOptions) (_ *engine, err error) {
	e := &engine{
		dir: o.dir, remote: o.remote, mountpoint: o.mountpoint, zone: defaultZone, options: o.mount,
		started: time.Now(), stopping: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = withCode(exitStore, o.openError(errors.Join(err, e.closeParts())))
		}
	}()
	p, err := openParts(ctx, o)
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, p.closers...)
	e.history, e.upkeep, e.store, e.content = p.db, p.db, p.db, p.content
	e.zone = p.zone

	var chain []meta.Hook
	if o.mountpoint != "" {
		e.notifier, e.news = fusefs.NewNotifier(o.log), &news{}
		chain = append(chain, hooks.NewInvalidate(e.notifier), e.news)
	}
	var replaces int64
	var began func(int64)
	if p.remote && o.dir != "" {
		replaces = o.dir.lastSession()
		began = func(session int64) {
			if err := o.dir.keepSession(session); err != nil {
				o.log.Warn("the session could not be written down: after a kill the next mount waits for its lease", "err", err)
			}
		}
	}
	host, boot := identity()
	e.fs = meta.New(meta.Options{
		Store: p.db, History: p.db, Sessions: p.db, Upkeep: p.db, Content: p.content, Peers: p.peers, Hooks: chain,
		Zone: e.zone, Node: host, BootID: boot, PID: os.Getpid(), Mountpoint: o.mountpoint,
		Agent: o.mount.Agent, Task: o.mount.Task,
		ReadOnly: o.readOnly || o.mount.ReadOnly,
		Strict:   o.mount.Durability == "strict",
		Durable:  p.remote && o.mount.Durability == "strict", SyncFirst: p.remote, Far: p.remote, Replaces: replaces, Began: began,
		Retention: meta.RetentionPolicy{
			Off: o.mount.History.Off, MaxAge: o.mount.History.MaxAge, MaxVersions: o.mount.History.Versions,
		},
		Log: o.log,
	})
	if err := e.fs.Open(ctx); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, func() error { return e.fs.Close(context.Background()) })
	return e, nil
}

// Run does the background work until ctx ends.
func (e *engine) Run(ctx context.Context) error { return e.fs.Run(ctx) }

// Close commits what is staged, makes everything durable and closes the parts
// in reverse order.
func (e *engine) Close() error { return e.closeParts() }

func (e *engine) closeParts() error {
	var errs []error
	for i := len(e.closers) - 1; i >= 0; i-- {
		errs = append(errs, e.closers[i]())
	}
	e.closers = nil
	return errors.Join(errs...)
}

// fuseMount is the kernel's side of a mount. *fusefs.Server is the real one.
type fuseMount interface {
	Serve()
	Unmount(lazy bool) error
	OpenFiles() int
}

// mountFUSE mounts the engine's zone; the caller calls Serve.
func mountFUSE(e *engine, spec *mountSpec, control string, log *slog.Logger) (fuseMount, error) {
	o := spec.options
	s, err := fusefs.Mount(e.fs, fusefs.Options{
		Mountpoint: spec.mountpoint, Source: o.Source, ReadOnly: o.ReadOnly, AllowOther: o.AllowOther,
		Extra: o.Kernel, Store: string(e.dir), Control: control,
		Status:   func() ([]byte, error) { return e.statusJSON(context.Background()) },
		Shared:   spec.target.remote != nil,
		Notifier: e.notifier, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// newContentHash hashes a file's content whole, for dump and load.
func newContentHash() hash.Hash { return content.NewHash() }

// settleKernel waits until what a command changed is out of the kernel's caches.
func (e *engine) settleKernel(ctx context.Context) error {
	if e.notifier == nil {
		return nil
	}
	return e.notifier.Drain(ctx)
}

// detach takes a mount away by force, whoever serves it.
func detach(point string) error { return fusefs.Unmount(point, true) }

// nexusMounts lists the nexusfs mounts of this mount namespace, oldest first.
func nexusMounts() ([]mountEntry, error) {
	list, err := fusefs.Mounts()
	if err != nil {
		return nil, fail(exitMount, "%w", err)
	}
	out := make([]mountEntry, len(list))
	for i, m := range list {
		out[i] = mountEntry{Point: m.Path, Source: m.Source, Root: m.Rel}
	}
	return out, nil
}

// identity names this machine and its boot; both may be unknown.
func identity() (host, boot string) {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return host, ""
	}
	return host, strings.TrimSpace(string(data))
}

// openError says what a failure to open means for the store's owner.
func (o engineOptions) openError(err error) error {
	if o.remote != nil {
		return remoteOpenError(o.remote, err)
	}
	return storeOpenError(o.dir, err)
}

// storeOpenError says what a failure to open a store means for its owner.
func storeOpenError(d storeDir, err error) error {
	dir := escapeName(string(d))
	switch meta.KindOf(err) {
	case meta.KindReadOnly, meta.KindNoSpace, meta.KindQuota, meta.KindAccess, meta.KindPerm:
		return storeWriteError(d, err)
	case meta.KindInvalid, meta.KindNotSupported:
		return fail(exitStore, "the store %s cannot be used by this nexusfs: %w", dir, err)
	case meta.KindNotExist:
		return fail(exitStore, "the store %s is incomplete: restore the directory whole from a backup: %w", dir, err)
	case meta.KindDamaged:
		return fail(exitStore, "the store %s is damaged: restore the directory whole from a backup: %w", dir, err)
	}
	return fail(exitStore, "opening the store %s: %w", dir, err)
}

// actor says who asked for a command, as the kernel attests it.
func (c *control) caller(ctx context.Context) meta.Caller {
	p := peerFrom(ctx)
	return meta.Caller{UID: p.UID, GID: p.GID, PID: p.PID, Origin: meta.OriginCommand, Resolve: func(by meta.Caller) meta.Actor {
		host, _ := identity()
		exe, _ := os.Readlink(filepath.Join("/proc", pidString(by.PID), "exe")) // another user's process stays unnamed
		return meta.Actor{
			UID: by.UID, GID: by.GID, PID: by.PID, Exe: exe, Node: host,
			StartTime: processStart(by.PID), Agent: c.engine.options.Agent, Task: c.engine.options.Task,
		}
	}}
}
