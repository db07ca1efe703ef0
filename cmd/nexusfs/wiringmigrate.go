package main

import (
	"context"
	"errors"
	"log/slog"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
)

// This file is where two stores meet, for nexusfs migrate: the rows of the one
// go to the other by way of sqlssot/transfer, the blobs beside them. Either may
// be a directory (wiringmigratedir.go) or a zone in a database
// (wiringmigratedb.go).

// migrationSource is a store that is read.
type migrationSource struct {
	rows      transfer.Source
	content   meta.Content
	origin    transfer.Origin
	history   historyPolicy // what its last mount kept
	unsettled string        // why it is not to be copied as it is now; "": it may be
	closers
}

// migrationTarget is a store that is filled, locked against everybody.
type migrationTarget struct {
	rows    transfer.Target
	content meta.Content
	holds   bool         // it is whole and holds what the source holds; rows and content are nil
	ready   func() error // says that the store is whole, after it was closed; nil: nothing is to be said
	closers
	unlock closers // after ready
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

// openSource opens a store to be read.
func openSource(ctx context.Context, t *target, log *slog.Logger) (*migrationSource, error) {
	s := &migrationSource{history: defaultHistory()}
	open := s.openDir
	if t.remote != nil {
		open = s.openDatabase
	}
	if err := open(ctx, t, log); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// destination is where a migration goes.
type destination struct {
	*target
	content string // where the blobs go; "": into the store's directory
	restart bool   // what an earlier run has begun is thrown away
}

// openDestination opens a store to be filled, made when it is missing.
func openDestination(ctx context.Context, to destination, src *migrationSource, log *slog.Logger) (*migrationTarget, error) {
	m := &migrationTarget{}
	open := m.openDir
	if to.remote != nil {
		open = m.openDatabase
	}
	if err := open(ctx, to, src, log); err != nil {
		return nil, errors.Join(err, m.close(), m.unlock.close())
	}
	return m, nil
}

// runMigration copies, verifies, closes the target and says that it is whole.
func runMigration(ctx context.Context, src *migrationSource, to destination, log *slog.Logger, show func(progress)) (transfer.Result, error) {
	dst, err := openDestination(ctx, to, src, log)
	if err != nil {
		return transfer.Result{}, err
	}
	if dst.holds {
		res, err := transfer.Plan(ctx, src.rows)
		res.Before = true
		return res, errors.Join(err, dst.close(), dst.unlock.close())
	}
	res, err := transfer.Run(ctx, transfer.Options{
		Source: src.rows, Target: dst.rows, From: src.content, To: dst.content,
		Progress: func(phase string, done, total int64) { show(progress{phase, done, total}) },
	})
	if err == nil {
		err = dst.content.Sync(ctx)
	}
	if err = errors.Join(err, dst.close()); err == nil && dst.ready != nil {
		err = dst.ready()
	}
	return res, errors.Join(err, dst.unlock.close())
}

// planMigration counts what would be copied.
func planMigration(ctx context.Context, src *migrationSource) (transfer.Result, error) {
	return transfer.Plan(ctx, src.rows)
}

// contentMove is one place of blobs that is left for another.
type contentMove struct {
	from, to string // what the user knows them as
	log      *slog.Logger
	show     func(progress)
}

// run copies the blobs of a zone from one content store to another.
func (m contentMove) run(ctx context.Context, zone transfer.Mover, old, fresh meta.Content) (transfer.Result, error) {
	return transfer.MoveContent(ctx, transfer.MoveOptions{
		Zone: zone, From: old, To: fresh, Dest: m.to,
		Progress: func(phase string, done, total int64) { m.show(progress{phase, done, total}) },
	})
}

// moveContent moves a store's blobs to another place and says in m.from where
// the old ones are. Nobody else can use the store for so long.
func (m *contentMove) moveContent(ctx context.Context, t *target) (transfer.Result, error) {
	if t.remote != nil {
		return m.ofDatabase(ctx, t.remote)
	}
	return m.ofDir(ctx, t.store)
}

// movePlan is what moving a store's content would do.
type movePlan struct {
	blobs, bytes int64 // unless begun
	begun        bool  // an earlier run has begun it, to the same place
	obstacle     error // what stands in the way
}

// planMove looks at a store whose content is to move, and changes nothing.
func planMove(ctx context.Context, t *target, to string, log *slog.Logger) (p movePlan, err error) {
	plan := p.planDir
	if t.remote != nil {
		plan = p.planDatabase
	}
	err = plan(ctx, t, to, log)
	return p, err
}

// count opens the store to see how much would move.
func (p *movePlan) count(ctx context.Context, t *target, log *slog.Logger) error {
	s, err := openSource(ctx, t, log)
	if err != nil {
		return err
	}
	if s.unsettled != "" {
		p.obstacle = fail(exitStore, "%s", s.unsettled)
	}
	p.blobs, p.bytes, err = s.rows.Outside(ctx)
	return errors.Join(err, s.close())
}
