package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"nexusfs/content/local"
	"nexusfs/meta"
	"nexusfs/sqlssot/sqlite"
	"nexusfs/sqlssot/transfer"
)

// This file is where two stores meet, for nexusfs migrate: the rows of the one
// go to the other by way of sqlssot/transfer, the blobs beside them. Another
// kind of store is another pair of openSource and openDestination.

// migrationSource is a store that is read, locked against daemons.
type migrationSource struct {
	rows    transfer.Source
	content meta.Content
	origin  transfer.Origin
	history historyPolicy // what its last mount kept
	closers
}

// migrationTarget is a store that is filled, locked against everybody.
type migrationTarget struct {
	rows    transfer.Target
	content meta.Content
	ready   func() error // says that the store is whole, after it was closed
	closers
}

// closers undo in reverse order.
type closers []func() error

func (c closers) close() error {
	var errs []error
	for i := len(c) - 1; i >= 0; i-- {
		errs = append(errs, c[i]())
	}
	return errors.Join(errs...)
}

// openSource opens a store read-only, under a shared lock.
func openSource(ctx context.Context, t *target, log *slog.Logger) (_ *migrationSource, err error) {
	s := &migrationSource{history: keptHistory(t.store)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	state, err := t.store.inspect()
	if err != nil {
		return nil, err
	}
	if state != storeReady {
		return nil, fail(exitStore, "there is no store at %s", escapeName(string(t.store)))
	}
	lock, err := lockShared(ctx, t.store)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, lock.Release)
	db, err := sqlite.Open(ctx, sqlite.Options{Path: t.store.database(), Zone: defaultZone, ReadOnly: true, Log: log})
	if err != nil {
		return nil, storeOpenError(t.store, err)
	}
	s.closers = append(s.closers, db.Close)
	blobs, err := local.Open(ctx, local.Options{Dir: t.store.content(defaultZone), ReadOnly: true, Log: log})
	if err != nil {
		return nil, storeOpenError(t.store, err)
	}
	s.closers = append(s.closers, blobs.Close)
	s.rows, s.content = db, blobs
	s.origin, err = db.Origin(ctx)
	return s, err
}

// openDestination locks a store's directory, makes it when it is missing, and
// opens it to be filled. done: it holds what the source holds.
func openDestination(ctx context.Context, t *target, src *migrationSource, log *slog.Logger) (_ *migrationTarget, done bool, err error) {
	d := t.store
	if err := d.begin(); err != nil {
		return nil, false, err
	}
	m := &migrationTarget{ready: func() error { return d.markReady(src.history) }}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	now := time.Now()
	lock, err := lockExclusive(ctx, d, holder{PID: os.Getpid(), Role: "migrate", Started: now, Version: versionString()})
	if err != nil {
		return nil, false, err
	}
	m.closers = append(m.closers, lock.Release)
	state, err := d.inspectTarget()
	switch {
	case err != nil:
		return nil, false, err
	case state == storeReady:
		err := holdsAlready(ctx, d, src.origin, log)
		return m, err == nil, err
	case state == storeNew:
		return nil, false, fail(exitStore, "%s is a store that was made and never mounted: remove the directory, or give another one", escapeName(string(d)))
	case state == storeAbsent:
		err = d.markMigrating(now)
	}
	if err != nil {
		return nil, false, err
	}
	db, err := sqlite.OpenTarget(ctx, sqlite.Options{Path: d.database(), Zone: src.origin.Name, Log: log})
	if err != nil {
		return nil, false, storeOpenError(d, err)
	}
	m.closers = append(m.closers, db.Close)
	blobs, err := local.Open(ctx, local.Options{Dir: d.content(defaultZone), Log: log})
	if err != nil {
		return nil, false, storeOpenError(d, err)
	}
	m.closers = append(m.closers, blobs.Close)
	m.rows, m.content = db, blobs
	return m, false, nil
}

// holdsAlready looks whether a store that is ready is the source's copy: a
// migration that is run again after its end has nothing to do.
func holdsAlready(ctx context.Context, d storeDir, want transfer.Origin, log *slog.Logger) error {
	db, err := sqlite.Open(ctx, sqlite.Options{Path: d.database(), Zone: defaultZone, ReadOnly: true, Log: log})
	if err != nil {
		return storeOpenError(d, err)
	}
	have, err := db.Origin(ctx)
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if !have.Same(want) {
		return fail(exitStore, "%s is a store already, and not a copy of the source as it is now: give a directory that is empty or does not exist", escapeName(string(d)))
	}
	return nil
}

// runMigration copies, verifies, closes the target and says that it is whole.
func runMigration(ctx context.Context, src *migrationSource, t *target, log *slog.Logger, show func(progress)) (transfer.Result, error) {
	dst, done, err := openDestination(ctx, t, src, log)
	if err != nil {
		return transfer.Result{}, err
	}
	var res transfer.Result
	if done {
		res, err = transfer.Plan(ctx, src.rows)
		res.Before = true
		return res, errors.Join(err, dst.close())
	}
	res, err = transfer.Run(ctx, transfer.Options{
		Source: src.rows, Target: dst.rows, From: src.content, To: dst.content,
		Progress: func(phase string, done, total int64) { show(progress{phase, done, total}) },
	})
	if err == nil {
		err = dst.content.Sync(ctx)
	}
	lock := dst.closers[0] // held until the mark is written
	dst.closers = dst.closers[1:]
	if err = errors.Join(err, dst.close()); err == nil {
		err = dst.ready()
	}
	return res, errors.Join(err, lock())
}

// planMigration counts what would be copied.
func planMigration(ctx context.Context, src *migrationSource) (transfer.Result, error) {
	return transfer.Plan(ctx, src.rows)
}
