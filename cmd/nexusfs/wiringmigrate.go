package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

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
	location, err := t.store.contentAt()
	if err != nil {
		return nil, err
	}
	blobs, err := openContent(ctx, location, true, log)
	if err != nil {
		return nil, storeOpenError(t.store, err)
	}
	s.closers = append(s.closers, blobs.Close)
	s.rows, s.content = db, blobs
	s.origin, err = db.Origin(ctx)
	return s, err
}

// openDestination locks a store's directory, makes it when it is missing, and
// opens it to be filled; content says where its blobs go, "" into the directory.
// done: it holds what the source holds.
func openDestination(ctx context.Context, t *target, content string, src *migrationSource, log *slog.Logger) (_ *migrationTarget, done bool, err error) {
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
	case state == storeMoving:
		return nil, false, d.movingError()
	case state == storeAbsent:
		if err = contentIsFree(content); err == nil {
			err = d.markMigrating(now, content)
		}
	default:
		err = sameContent(d, content)
	}
	if err != nil {
		return nil, false, err
	}
	db, err := sqlite.OpenTarget(ctx, sqlite.Options{Path: d.database(), Zone: src.origin.Name, Log: log})
	if err != nil {
		return nil, false, storeOpenError(d, err)
	}
	m.closers = append(m.closers, db.Close)
	location, err := d.contentAt()
	if err != nil {
		return nil, false, err
	}
	blobs, err := openContent(ctx, location, false, log)
	if err != nil {
		return nil, false, storeOpenError(d, err)
	}
	m.closers = append(m.closers, blobs.Close)
	m.rows, m.content = db, blobs
	return m, false, nil
}

// contentIsFree refuses a place of blobs that holds something: another store's,
// perhaps. "" is the store's own.
func contentIsFree(location string) error {
	if location == "" {
		return nil
	}
	list, err := os.ReadDir(location)
	if err == nil && len(list) > 0 {
		return fail(exitStore, "%s is not empty (it holds %q): give an empty directory for the content, or one that does not exist", escapeName(location), list[0].Name())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(exitStore, "content: %w", err)
	}
	return nil
}

// sameContent keeps a migration that goes on to the place that it began with.
func sameContent(d storeDir, content string) error {
	mark, err := d.readMark()
	if err == nil && mark.Content != content {
		err = fail(exitUsage, "the migration into %s was begun with its content in %q: give the same place", escapeName(string(d)), mark.Content)
	}
	return err
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
func runMigration(ctx context.Context, src *migrationSource, t *target, content string, log *slog.Logger, show func(progress)) (transfer.Result, error) {
	dst, done, err := openDestination(ctx, t, content, src, log)
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

// moveContent moves a store's blobs to another place, and says where the old
// ones are. The store is locked for so long.
func moveContent(ctx context.Context, d storeDir, to string, log *slog.Logger, show func(progress)) (res transfer.Result, from string, err error) {
	lock, err := lockExclusive(ctx, d, holder{PID: os.Getpid(), Role: "migrate", Started: time.Now(), Version: versionString()})
	if err != nil {
		return res, "", err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := startMove(d, to); err != nil {
		return res, "", err
	}
	if from, err = d.contentAt(); err != nil {
		return res, "", err
	}
	zone, err := sqlite.OpenMover(ctx, sqlite.Options{Path: d.database(), Zone: defaultZone, Log: log})
	if err != nil {
		return res, from, storeOpenError(d, err)
	}
	defer func() { err = errors.Join(err, zone.Close()) }()
	old, err := openContent(ctx, from, true, log)
	if err != nil {
		return res, from, storeOpenError(d, err)
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	fresh, err := openContent(ctx, to, false, log)
	if err != nil {
		return res, from, storeOpenError(d, err)
	}
	res, err = transfer.MoveContent(ctx, transfer.MoveOptions{
		Zone: zone, From: old, To: fresh, Dest: to,
		Progress: func(phase string, done, total int64) { show(progress{phase, done, total}) },
	})
	if err = errors.Join(err, fresh.Close()); err != nil {
		return res, from, err
	}
	if err := d.markMoved(); err != nil {
		return res, from, err
	}
	return res, from, zone.EndMove(ctx)
}

// startMove marks a store whose blobs are about to move, or finds it marked.
func startMove(d storeDir, to string) error {
	state, err := d.inspectTarget()
	if err != nil {
		return err
	}
	mark, err := d.readMark()
	switch {
	case err != nil:
		return err
	case state == storeMoving && mark.Moving != to:
		return d.movingError()
	case state == storeMoving:
		return nil
	case state != storeReady:
		return fail(exitStore, "there is no store at %s that is whole", escapeName(string(d)))
	case mark.Content == to:
		return fail(exitUsage, "the content of %s is in %s already", escapeName(string(d)), escapeName(to))
	}
	if err := contentIsFree(to); err != nil {
		return err
	}
	return d.markMoving(to)
}
