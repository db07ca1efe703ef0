package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"nexusfs/sqlssot/sqlite"
	"nexusfs/sqlssot/transfer"
)

// openDir opens a store in a directory, read-only and under a shared lock.
func (s *migrationSource) openDir(ctx context.Context, t *target, log *slog.Logger) error {
	s.history = keptHistory(t.store)
	state, err := t.store.inspect()
	if err != nil {
		return err
	}
	if state != storeReady {
		return fail(exitStore, "there is no store at %s", escapeName(string(t.store)))
	}
	lock, err := lockShared(ctx, t.store)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, lock.Release)
	db, err := sqlite.Open(ctx, sqlite.Options{Path: t.store.database(), Zone: defaultZone, ReadOnly: true, Log: log})
	if err != nil {
		return storeOpenError(t.store, err)
	}
	s.closers = append(s.closers, db.Close)
	location, err := t.store.contentAt()
	if err != nil {
		return err
	}
	blobs, err := openContent(ctx, location, true, log)
	if err != nil {
		return storeOpenError(t.store, err)
	}
	s.closers = append(s.closers, blobs.Close)
	s.rows, s.content = db, blobs
	s.origin, err = db.Origin(ctx)
	if s.origin.Open > 0 { // a killed daemon may have left what its successor takes back (P22)
		s.unsettled = "the last daemon of " + escapeName(t.display()) + " did not end in order, and what it left is looked through by the next one: mount the store once and unmount it, then migrate"
	}
	return err
}

// openDir locks a store's directory, makes it when it is missing, and opens it
// to be filled, unless it holds what the source holds.
func (m *migrationTarget) openDir(ctx context.Context, to destination, src *migrationSource, log *slog.Logger) error {
	d, content := to.store, to.content
	if err := d.begin(); err != nil {
		return err
	}
	now := time.Now()
	lock, err := lockExclusive(ctx, d, holder{PID: os.Getpid(), Role: "migrate", Started: now, Version: versionString()})
	if err != nil {
		return err
	}
	m.unlock = append(m.unlock, lock.Release)
	state, err := d.inspectTarget()
	switch {
	case err != nil:
		return err
	case state == storeReady:
		return m.compareDir(ctx, d, src.origin, log)
	case state == storeNew:
		return fail(exitStore, "%s is a store that was made and never mounted: remove the directory, or give another one", escapeName(string(d)))
	case state == storeMoving:
		return d.movingError()
	case state == storeAbsent:
		if err = contentIsFree(content); err == nil {
			err = d.markMigrating(now, content)
		}
	default:
		err = sameContent(d, content)
	}
	if err != nil {
		return err
	}
	return m.fillDir(ctx, d, src.history, log)
}

// fillDir opens a directory that is marked as the target of a migration.
func (m *migrationTarget) fillDir(ctx context.Context, d storeDir, history historyPolicy, log *slog.Logger) error {
	db, err := sqlite.OpenTarget(ctx, sqlite.Options{Path: d.database(), Zone: defaultZone, Log: log})
	if err != nil {
		return storeOpenError(d, err)
	}
	m.closers = append(m.closers, db.Close)
	location, err := d.contentAt()
	if err != nil {
		return err
	}
	blobs, err := openContent(ctx, location, false, log)
	if err != nil {
		return storeOpenError(d, err)
	}
	m.closers = append(m.closers, blobs.Close)
	m.rows, m.content = db, blobs
	m.ready = func() error { return d.markReady(history) }
	return nil
}

// compareDir looks whether a store that is ready is the source's copy: a
// migration that is run again after its end has nothing to do.
func (m *migrationTarget) compareDir(ctx context.Context, d storeDir, want transfer.Origin, log *slog.Logger) error {
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
	m.holds = true
	return nil
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

// ofDir moves the content of a store in a directory.
func (m *contentMove) ofDir(ctx context.Context, d storeDir) (res transfer.Result, err error) {
	lock, err := lockExclusive(ctx, d, holder{PID: os.Getpid(), Role: "migrate", Started: time.Now(), Version: versionString()})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := startMove(d, m.to); err != nil {
		return res, err
	}
	if m.from, err = d.contentAt(); err != nil {
		return res, err
	}
	zone, err := sqlite.OpenMover(ctx, sqlite.Options{Path: d.database(), Zone: defaultZone, Log: m.log})
	if err != nil {
		return res, storeOpenError(d, err)
	}
	defer func() { err = errors.Join(err, zone.Close()) }()
	old, err := openContent(ctx, m.from, true, m.log)
	if err != nil {
		return res, storeOpenError(d, err)
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	fresh, err := openContent(ctx, m.to, false, m.log)
	if err != nil {
		return res, storeOpenError(d, err)
	}
	res, err = m.run(ctx, zone, old, fresh)
	if err = errors.Join(err, fresh.Close()); err != nil {
		return res, err
	}
	if err := d.markMoved(); err != nil {
		return res, err
	}
	return res, zone.EndMove(ctx)
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

// planDir looks at a store in a directory whose content is to move.
func (p *movePlan) planDir(ctx context.Context, t *target, to string, log *slog.Logger) error {
	state, err := t.store.inspectTarget()
	if err != nil {
		return err
	}
	if state == storeMoving {
		p.begun = true // or one to elsewhere, which startMove finds out
		return nil
	}
	if mark, err := t.store.readMark(); err == nil && mark.Content == to {
		return fail(exitUsage, "the content of %s is in %s already", escapeName(t.display()), escapeName(to))
	}
	if err := p.count(ctx, t, log); err != nil {
		return err
	}
	p.obstacle = errors.Join(p.obstacle, contentIsFree(to), roomFor(to, p.bytes))
	return nil
}
