package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"nexusfs/sqlssot/postgres"
	"nexusfs/sqlssot/transfer"
)

// openDatabase opens a zone in a database, read-only.
func (s *migrationSource) openDatabase(ctx context.Context, t *target, log *slog.Logger) error {
	db, err := postgres.Open(ctx, databaseOptions(t.remote, true, log))
	if err != nil {
		return remoteOpenError(t.remote, err)
	}
	s.closers = append(s.closers, db.Close)
	place, id, err := db.ContentPlace(ctx)
	if err != nil {
		return remoteOpenError(t.remote, err)
	}
	if place == "" {
		return fail(exitStore, "nobody has said yet where the content of %s lies: mount it once with -o content=", escapeName(t.display()))
	}
	blobs, err := farContent{place, t.remote.Zone, id}.open(ctx, true, log)
	if err != nil {
		return remoteOpenError(t.remote, err)
	}
	s.closers = append(s.closers, blobs.Close)
	s.rows, s.content = db, blobs
	if s.origin, err = db.Origin(ctx); err == nil && s.origin.Open > 0 {
		s.unsettled, err = mountedBy(ctx, db)
	}
	return err
}

// databaseOptions open a zone for one command.
func databaseOptions(r *remote, readOnly bool, log *slog.Logger) postgres.Options {
	return postgres.Options{URL: r.address(), Zone: r.Zone, ReadOnly: readOnly, Strict: true, Log: log}
}

// mountedBy says which daemons may change a zone now; "": none does. A session
// whose lease has ended is no more than fenced by the next.
func mountedBy(ctx context.Context, db *postgres.Store) (string, error) {
	list, err := db.LiveSessions(ctx)
	if err != nil {
		return "", err
	}
	var who []string
	left := time.Duration(0)
	for _, s := range list {
		if s.Lease > 0 && s.Left <= 0 {
			continue
		}
		who = append(who, sessionText(s))
		left = max(left, time.Duration(s.Left))
	}
	if len(who) == 0 {
		return "", nil
	}
	text := "the zone is in use by " + strings.Join(who, ", ") + ": unmount it there first"
	if left > 0 {
		text += fmt.Sprintf("; a daemon that was killed is waited for no longer than %s", left.Round(time.Second))
	}
	return text, nil
}

// sessionText names a session.
func sessionText(s postgres.LiveSession) string {
	what := "a command"
	if s.Mountpoint != "" {
		what = escapeName(s.Mountpoint)
	}
	return fmt.Sprintf("%s on %s (pid %d)", what, escapeName(s.Node), s.PID)
}

// openDatabase opens a zone in a database to be filled, unless it holds what the
// source holds. The zone's content goes to its own part of a directory or bucket.
func (m *migrationTarget) openDatabase(ctx context.Context, to destination, src *migrationSource, log *slog.Logger) error {
	db, err := postgres.OpenTarget(ctx, databaseOptions(to.remote, false, log), to.content)
	if err != nil {
		return remoteOpenError(to.remote, err)
	}
	m.closers = append(m.closers, db.Close)
	if db.Whole() {
		have, err := db.Origin(ctx)
		if err == nil && !have.Same(src.origin) {
			err = fail(exitStore, "there is a zone %s already, and it is not a copy of the source as it is now: give another zone=", escapeName(to.remote.Zone))
		}
		m.holds = true
		return err
	}
	if to.restart {
		if err := db.Discard(ctx); err != nil {
			return err
		}
	}
	blobs, err := farContent{to.content, to.remote.Zone, db.ContentID()}.open(ctx, false, log)
	if err != nil {
		return remoteOpenError(to.remote, err)
	}
	m.closers = append(m.closers, blobs.Close)
	m.rows, m.content = db, blobs
	return nil
}

// databaseIsReady says what keeps a zone in a database from being made, with its
// content at a place; begun: an earlier run has begun it.
func databaseIsReady(ctx context.Context, r *remote, content string) (begun bool, err error) {
	x, err := postgres.Examine(ctx, databaseOptions(r, true, nil))
	switch {
	case err != nil:
		return false, remoteOpenError(r, err)
	case x.Refused != nil:
		return false, remoteOpenError(r, x.Refused)
	case x.ZoneThere:
		return false, fail(exitStore, "there is a zone %s in the database already: give another zone=", escapeName(r.Zone))
	case x.Schema < x.SchemaNeeded && !x.MayMigrate:
		return false, fail(exitStore, "the database's schema must be brought to version %d, and %s may not do that: log in as a member of nexusfs_owner", x.SchemaNeeded, escapeName(x.User))
	case x.Schema > 0 && !x.MayWrite, x.ReadOnly:
		return false, fail(exitStore, "%s may only read there: log in as a member of nexusfs_daemon, on the primary server", escapeName(x.User))
	case x.ZoneBegun || !isS3(content):
		return x.ZoneBegun, nil
	}
	return false, farContent{place: content}.mayBe(ctx)
}

// ofDatabase moves the content of a zone in a database.
func (m *contentMove) ofDatabase(ctx context.Context, r *remote) (res transfer.Result, err error) {
	zone, err := postgres.OpenMover(ctx, databaseOptions(r, false, m.log))
	if err != nil {
		return res, remoteOpenError(r, err)
	}
	defer func() { err = errors.Join(err, zone.Close()) }()
	from, id, err := zone.ContentPlace(ctx)
	if err != nil {
		return res, err
	}
	m.from = from
	if !isS3(from) {
		m.from = farContent{from, r.Zone, id}.dir() // other zones may lie beside it
	}
	switch from {
	case "":
		return res, fail(exitStore, "nobody has said yet where the content of %s lies: mount it once with -o content=", escapeName(r.display()))
	case m.to:
		if err := zone.EndMove(ctx); err != nil { // an earlier run may not have come to that
			return res, err
		}
		return res, fail(exitUsage, "the content of %s is in %s already", escapeName(r.display()), escapeName(m.to))
	}
	old, err := farContent{from, r.Zone, id}.open(ctx, true, m.log)
	if err != nil {
		return res, remoteOpenError(r, err)
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	fresh, err := farContent{m.to, r.Zone, id}.open(ctx, false, m.log)
	if err != nil {
		return res, remoteOpenError(r, err)
	}
	res, err = m.run(ctx, zone, old, fresh)
	if err = errors.Join(err, fresh.Close()); err != nil {
		return res, err
	}
	return res, zone.EndMove(ctx)
}

// planDatabase looks at a zone in a database whose content is to move.
func (p *movePlan) planDatabase(ctx context.Context, t *target, to string, log *slog.Logger) error {
	x, err := postgres.Examine(ctx, databaseOptions(t.remote, true, log))
	switch {
	case err != nil:
		return remoteOpenError(t.remote, err)
	case x.ZoneThere && x.Content == to:
		return fail(exitUsage, "the content of %s is in %s already", escapeName(t.display()), escapeName(to))
	case x.Moving == to:
		p.begun = true
		return nil
	case x.Moving != "":
		return fail(exitStore, "the content of %s is on its way to %s: run that again until it has come to its end", escapeName(t.display()), escapeName(x.Moving))
	}
	if err := p.count(ctx, t, log); err != nil {
		return err
	}
	if isS3(to) {
		p.obstacle = errors.Join(p.obstacle, farContent{to, t.remote.Zone, x.ContentID}.mayBe(ctx))
	} else {
		p.obstacle = errors.Join(p.obstacle, roomFor(to, p.bytes))
	}
	return nil
}
