package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func parseFD(s string) (int, error) { return strconv.Atoi(s) }

// serve mounts and returns when the mount has ended and everything is durable.
// In the background it reports to its parent, error or not.
func (a *app) serve(ctx context.Context, spec *mountSpec, background bool) (err error) {
	told := false
	if background {
		if err := daemonize(); err != nil {
			return fail(exitMount, "leaving the parent: %w", err)
		}
		defer func() {
			if !told {
				err = classify(err)
				rep := report{PID: os.Getpid(), Exit: exitCode(err)}
				if err != nil {
					rep.Error = err.Error()
				}
				tell(rep)
				err = silent(err)
			}
		}()
	}
	d := &daemon{app: a, spec: spec, background: background, log: slog.New(slog.DiscardHandler)}
	return d.run(ctx, func() {
		if background {
			tell(report{PID: os.Getpid()})
			told = true
			return
		}
		a.tryNext(spec, os.Getpid())
	})
}

// silent keeps the exit code of an error that somebody else prints.
func silent(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: exitCode(err)}
}

// tryNext says what to do with a fresh mount.
func (a *app) tryNext(spec *mountSpec, pid int) {
	mnt, self := shellQuote(spec.mountpoint), selfName(os.Args[0])
	a.printf("%s is mounted at %s (pid %d)\n\n  try next:\n", escapeName(spec.target.display()), escapeName(spec.mountpoint), pid)
	for _, line := range []string{
		"cp /etc/hosts " + mnt + "/ && cat " + mnt + "/hosts",
		self + " log " + mnt,
		self + " sql " + mnt + ` "select path, size from files"`,
		self + " status " + mnt,
		self + " umount " + mnt,
	} {
		a.printf("    %s\n", line)
	}
}

// selfName is how the user can call this program again.
func selfName(arg0 string) string {
	if !strings.Contains(arg0, "/") {
		return "nexusfs"
	}
	return shellQuote(arg0)
}

// daemon serves one mount. run fills the fields in order and undoes in reverse.
type daemon struct {
	app        *app
	spec       *mountSpec
	background bool

	log      *slog.Logger
	engine   *engine
	mount    fuseMount
	ended    chan struct{} // closed when the kernel's side of the mount is gone
	detached chan struct{} // gets a value when the mount was taken away lazily
	started  time.Time
}

// run holds the lock from before the first change to the store until after the
// last.
func (d *daemon) run(ctx context.Context, ready func()) (err error) {
	store := d.spec.target.store
	d.started = time.Now()
	syscall.Umask(0o077) // what the store holds is its owner's alone
	lock, err := openForMount(ctx, d.spec.target, d.holder())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := d.openLog(); err != nil {
		return err
	}
	tuneRuntime(ctx)
	metrics, err := d.listenMetrics()
	if err != nil {
		return err
	}
	if metrics != nil {
		defer metrics.Close()
	}
	d.engine, err = openEngine(ctx, engineOptions{
		dir: store, remote: d.spec.target.remote, mountpoint: d.spec.mountpoint, mount: d.spec.options, log: d.log,
	})
	if err != nil {
		return err
	}
	if err := store.markReady(d.spec.options.History); err != nil {
		return errors.Join(err, d.engine.Close())
	}
	err = d.serveMount(ctx, metrics, ready)
	if cerr := d.engine.Close(); cerr != nil {
		err = errors.Join(err, fail(exitStore, "closing the store: %w", cerr))
	}
	if err == nil {
		d.log.Info("ended", "store", d.spec.target.display())
	} else {
		d.log.Error("ended", "store", d.spec.target.display(), "err", err)
	}
	return err
}

func (d *daemon) holder() holder {
	return holder{
		PID: os.Getpid(), Role: "mount", Mountpoint: d.spec.mountpoint,
		Control: d.spec.target.store.file("control.sock"), Started: d.started, Version: versionString(),
	}
}

// openForMount inspects, makes and locks the store.
func openForMount(ctx context.Context, t *target, me holder) (*storeLock, error) {
	store := t.store
	if _, err := store.inspect(); err != nil {
		return nil, err
	}
	if err := store.begin(); err != nil {
		return nil, err
	}
	lock, err := lockExclusive(ctx, store, me)
	if err != nil {
		return nil, err
	}
	state, err := store.inspect() // again: now nobody else changes it
	if err == nil && state == storeAbsent {
		err = store.markNew(me.Started, t.remote)
	}
	if err != nil {
		lock.Release()
		return nil, err
	}
	return lock, nil
}

func (d *daemon) openLog() error {
	var w io.Writer = d.app.stderr
	if d.background {
		if err := toLog(d.spec.target.store.log()); err != nil {
			return storeWriteError(d.spec.target.store, err)
		}
	}
	log, err := newLogger(w, d.spec.log)
	if err != nil {
		return err
	}
	d.log = log
	slog.SetDefault(log)
	return nil
}

func (d *daemon) listenMetrics() (net.Listener, error) {
	if d.spec.options.Metrics == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", d.spec.options.Metrics)
	if err != nil {
		return nil, fail(exitUsage, "metrics: %w; choose another address", err)
	}
	return l, nil
}

// serveMount mounts, serves until the end is asked for, and unmounts.
func (d *daemon) serveMount(ctx context.Context, metrics net.Listener, ready func()) error {
	socket := d.spec.target.store.file("control.sock")
	control, err := listenControl(socket)
	if err != nil {
		return storeWriteError(d.spec.target.store, err)
	}
	defer os.Remove(socket)
	if err := d.startMount(socket); err != nil {
		control.Close()
		return err
	}
	work, stop := context.WithCancel(context.Background())
	defer stop()
	group, work := errgroup.WithContext(work)
	group.Go(func() error { return d.engine.Run(work) })
	group.Go(func() error { return d.reopenLog(work) })
	d.serveHTTP(group, work, control, d.control().server())
	if metrics != nil {
		d.serveHTTP(group, work, metrics, metricsServer(d.engine))
	}
	d.log.Info("serving", "store", d.spec.target.display(), "mountpoint", d.spec.mountpoint,
		"durability", d.spec.options.Durability, "history", d.spec.options.History.String(), "pid", os.Getpid())
	ready()
	d.awaitEnd(ctx, work)
	close(d.engine.stopping)
	stop()
	return group.Wait()
}

// startMount mounts and returns when the mount serves.
func (d *daemon) startMount(socket string) (err error) {
	if d.mount, err = mountFUSE(d.engine, d.spec, socket, d.log); err != nil {
		return withCode(exitMount, err)
	}
	d.ended, d.detached = make(chan struct{}), make(chan struct{}, 1)
	spareProcs()
	go func() { d.mount.Serve(); close(d.ended) }()
	return nil
}

// awaitEnd returns when the mount is gone: by umount, by a signal, or because
// a part of the daemon failed.
func (d *daemon) awaitEnd(ctx, work context.Context) {
	select {
	case <-ctx.Done():
		d.endBySignal()
	case <-work.Done():
		d.log.Error("a part of the daemon failed; unmounting")
		d.endBySignal()
	case <-d.ended:
		d.log.Info("unmounted", "mountpoint", d.spec.mountpoint)
	case <-d.detached:
		d.log.Info("unmounted lazily", "mountpoint", d.spec.mountpoint)
	}
}

// control serves commands beside the mount.
func (d *daemon) control() *control {
	return &control{engine: d.engine, log: d.log, umount: func(lazy bool) error {
		err := d.mount.Unmount(lazy)
		if lazy && err == nil {
			select {
			case d.detached <- struct{}{}:
			default: // asked for twice
			}
		}
		return err
	}}
}

// endBySignal unmounts; a mount that is busy is taken from the tree, so that
// open work ends here and now.
func (d *daemon) endBySignal() {
	err := d.mount.Unmount(false)
	if err == nil {
		<-d.ended
		return
	}
	d.log.Warn("the mount is busy: it is taken away lazily, and programs that use it will see errors",
		"mountpoint", d.spec.mountpoint, "users", mountUsers(d.spec.mountpoint, 5), "err", err)
	if err := d.mount.Unmount(true); err != nil {
		d.log.Error("the mount cannot be taken away: unmount it by hand (umount -l)", "mountpoint", d.spec.mountpoint, "err", err)
	}
}

// serveHTTP runs one server until work ends. Requests that are under way have
// a moment to finish.
func (d *daemon) serveHTTP(group *errgroup.Group, work context.Context, l net.Listener, s *http.Server) {
	group.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving %s: %w", l.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-work.Done()
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			return s.Close()
		}
		return nil
	})
}

// reopenLog follows log rotation: SIGHUP opens the log again. In the
// foreground SIGHUP does nothing: a mount outlives its terminal.
func (d *daemon) reopenLog(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if !d.background {
				continue
			}
			if err := toLog(d.spec.target.store.log()); err != nil {
				d.log.Error("opening the log again", "err", err)
			}
		}
	}
}
