package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"nexusfs/content/diskcache"
	"nexusfs/content/local"
	"nexusfs/content/s3"
	"nexusfs/meta"
	"nexusfs/sqlssot/postgres"
	"nexusfs/sqlssot/sqlite"
)

// database is a zone's truth in SQL.
type database interface {
	meta.Store
	meta.History
	meta.Sessions
	meta.Upkeep // closes it
}

// parts are what a zone consists of: its truth and its content.
type parts struct {
	zone    string
	remote  bool // others may have it open, too
	db      database
	peers   meta.Peers // nil: nobody else can open it
	content meta.Content
	closers []func() error // in the order in which they were opened
}

func (p *parts) opened(closer func() error) { p.closers = append(p.closers, closer) }

// openParts opens a zone's truth and content. What was opened before an error
// is closed.
func openParts(ctx context.Context, o engineOptions) (*parts, error) {
	p := &parts{zone: defaultZone}
	open := p.openEmbedded
	if o.remote != nil {
		open, p.zone, p.remote = p.openRemote, o.remote.Zone, true
	}
	if err := open(ctx, o); err != nil {
		for i := len(p.closers) - 1; i >= 0; i-- {
			err = errors.Join(err, p.closers[i]())
		}
		return nil, err
	}
	return p, nil
}

// openEmbedded opens a store in a directory.
func (p *parts) openEmbedded(ctx context.Context, o engineOptions) error {
	db, err := openSQLite(ctx, o)
	if err != nil {
		return err
	}
	p.db = db
	p.opened(db.Close)
	location, err := o.dir.contentAt()
	if err != nil {
		return err
	}
	blobs, err := openContent(ctx, location, o.readOnly, o.log)
	if err != nil {
		return err
	}
	p.content = blobs
	p.opened(blobs.Close)
	return nil
}

// contentStore is a place of blobs that was opened.
type contentStore interface {
	meta.Content
	Close() error
}

// openContent opens the place of blobs that an embedded store's mark names: a
// directory.
func openContent(ctx context.Context, location string, readOnly bool, log *slog.Logger) (contentStore, error) {
	return local.Open(ctx, local.Options{Dir: location, ReadOnly: readOnly, Log: log})
}

// openSQLite opens the zone, or makes it in a store that was never opened.
func openSQLite(ctx context.Context, o engineOptions) (*sqlite.Store, error) {
	options := sqlite.Options{
		Path: o.dir.database(), Zone: defaultZone, ReadOnly: o.readOnly, Log: o.log,
		Mode: 0o755, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
	}
	state, err := o.dir.inspect()
	if err != nil {
		return nil, err
	}
	if state != storeNew || o.readOnly {
		return sqlite.Open(ctx, options)
	}
	db, err := sqlite.Create(ctx, options)
	if meta.KindOf(err) == meta.KindExist && err != nil {
		return sqlite.Open(ctx, options)
	}
	return db, err
}

// openRemote opens a zone in a database, with its content wherever it is. A
// mount makes the zone if there is none.
func (p *parts) openRemote(ctx context.Context, o engineOptions) error {
	options := postgres.Options{
		URL: o.remote.address(), Zone: o.remote.Zone, ReadOnly: o.readOnly, Strict: o.mount.Durability == "strict", Log: o.log,
		Mode: 0o755, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
	}
	db, err := postgres.Open(ctx, options)
	if err != nil && meta.KindOf(err) == meta.KindNotExist && o.mountpoint != "" && !o.readOnly && o.remote.Content != "" {
		if db, err = postgres.Create(ctx, options); err != nil && meta.KindOf(err) == meta.KindExist {
			db, err = postgres.Open(ctx, options)
		}
	}
	if err != nil {
		return err
	}
	p.db = db
	p.opened(db.Close)
	peers := db.Peers()
	p.peers = peers
	p.opened(peers.Close)
	place, id, err := contentPlace(ctx, db, o)
	if err != nil {
		return err
	}
	return p.openContent(ctx, o, place, id)
}

// contentPlace finds out where a zone's content lies. The first mount says it.
func contentPlace(ctx context.Context, db *postgres.Store, o engineOptions) (place, id string, err error) {
	place, id, err = db.ContentPlace(ctx)
	if err != nil {
		return "", "", err
	}
	given := o.remote.Content
	if place == "" && given != "" && !o.readOnly {
		if place, err = db.SetContentPlace(ctx, given); err != nil {
			return "", "", err
		}
	}
	switch {
	case place == "":
		return "", "", fail(exitUsage, "nobody has said yet where the content of zone %s lies: give -o content=/DIRECTORY or content=s3://BUCKET/PREFIX", o.remote.Zone)
	case given != "" && given != place:
		return "", "", fail(exitUsage, "the content of zone %s lies at %s: leave content= out, or migrate it", o.remote.Zone, escapeName(place))
	}
	return place, id, nil
}

// cacheBytes bounds a node's copies of content that lies far away.
const cacheBytes = 10 << 30

// farContent is the content of a zone in a database.
type farContent struct {
	place string // a directory, or an s3:// URL
	zone  string
	id    string // of the zone in its database: marks the content as its own
}

// isS3 reports whether a place of blobs is a bucket.
func isS3(place string) bool { return strings.HasPrefix(place, "s3://") }

// dir is the zone's own directory in a directory that others may share.
func (f farContent) dir() string { return filepath.Join(f.place, f.zone+"-"+f.id) }

// bucket is where the zone's content lies in S3.
func (f farContent) bucket() (s3.Options, error) {
	location, err := s3.ParseLocation(f.place)
	if err != nil {
		err = fail(exitUsage, "content at %s: %w", escapeName(f.place), err)
	}
	return s3.Options{Location: location, ID: f.id}, err
}

// open opens the content, and unless it is only read makes it where there is none.
func (f farContent) open(ctx context.Context, readOnly bool, log *slog.Logger) (contentStore, error) {
	if !isS3(f.place) {
		blobs, err := local.Open(ctx, local.Options{Dir: f.dir(), ReadOnly: readOnly, Shared: true, Log: log})
		if err != nil {
			return nil, fmt.Errorf("content at %s: %w", escapeName(f.place), err)
		}
		return blobs, nil
	}
	o, err := f.bucket()
	if err != nil {
		return nil, err
	}
	o.Create, o.ReadOnly = !readOnly, readOnly
	return s3.Open(ctx, o)
}

// mayBe refuses a bucket where the zone's content cannot go: anything but an
// empty prefix, or what an earlier run has begun.
func (f farContent) mayBe(ctx context.Context) error {
	o, err := f.bucket()
	if err != nil {
		return err
	}
	if f.id != "" {
		o.ReadOnly = true
		store, err := s3.Open(ctx, o)
		if err == nil {
			return store.Close()
		}
	}
	return s3.Vacant(ctx, o)
}

// validPlace checks a place of a zone's content as far as it can be without
// asking anybody.
func validPlace(content string) error {
	if !isS3(content) {
		return nil
	}
	_, err := farContent{place: content}.bucket()
	return err
}

// openContent opens content in a directory that several machines may share, or
// in S3 behind a cache on this machine's disk.
func (p *parts) openContent(ctx context.Context, o engineOptions, place, id string) error {
	far, err := farContent{place, p.zone, id}.open(ctx, o.readOnly, o.log)
	if err != nil {
		return err
	}
	p.content = far
	p.opened(far.Close)
	if !isS3(place) || o.mountpoint == "" {
		return nil // one command reads each blob once
	}
	cache, err := diskcache.Open(ctx, far, diskcache.Options{Dir: o.dir.file("cache"), Bytes: cacheBytes, Log: o.log})
	if err != nil {
		return err
	}
	p.content = cache
	p.opened(cache.Close)
	return nil
}

// remoteOpenError says what a failure to open a zone in a database means.
func remoteOpenError(r *remote, err error) error {
	if isExit(err) {
		return err
	}
	where := escapeName(r.display())
	switch meta.KindOf(err) {
	case meta.KindNotExist:
		return fail(exitStore, "there is no zone at %s yet: the first mount makes it, with -o content=/DIRECTORY or content=s3://BUCKET/PREFIX: %w", where, err)
	case meta.KindInvalid, meta.KindNotSupported:
		return fail(exitStore, "%s cannot be used by this nexusfs: %w", where, err)
	case meta.KindAccess, meta.KindPerm:
		return fail(exitStore, "%s refuses this login (the password belongs into ~/.pgpass, rights come from packaging/roles.sql): %w", where, err)
	}
	return fail(exitStore, "opening %s: %w", where, err)
}
