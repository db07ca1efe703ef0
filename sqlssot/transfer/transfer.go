package transfer

import (
	"context"

	"nexusfs/meta"
)

// Numbers are where a zone's numbers begin in its database.
type Numbers struct {
	Zone int64 `json:"zone"` // its number: keys are Zone<<48 | n
	Blob int64 `json:"blob"` // what is added to the numbers of its blobs' rows
}

// Origin says which zone a source is, and in which state. Everything that
// changes a zone begins a session, so two equal Origins are the same rows.
type Origin struct {
	Version  int      `json:"version"` // of the description of tables
	Name     string   `json:"name"`    // of the zone; a target may have another one
	Created  int64    `json:"created"` // ns since 1970
	Rev      meta.Rev `json:"rev"`     // its newest revision
	Head     [32]byte `json:"head"`    // and chain head
	Sessions int64    `json:"sessions"`

	Numbers   Numbers `json:"numbers"`
	LastBlob  int64   `json:"last_blob"`  // highest number of a blob's row, without Numbers.Blob
	LastActor int64   `json:"last_actor"` // highest number of an actor, without the zone's
	Open      int64   `json:"-"`          // sessions that may still change it, or left what the next one looks through
}

// Same reports whether two zones are the same, in the same state, wherever
// they lie and whatever they are called.
func (o Origin) Same(p Origin) bool {
	o.Name, o.Numbers, o.LastBlob, o.LastActor, o.Open = p.Name, p.Numbers, p.LastBlob, p.LastActor, p.Open
	return o == p
}

// Source is a zone that can be read whole. Methods may run concurrently; they
// block on the database; errors are *meta.Error.
type Source interface {
	// Origin describes the zone.
	Origin(ctx context.Context) (Origin, error)
	// Count returns the number of a table's rows.
	Count(ctx context.Context, t *Table) (int64, error)
	// Outside counts the blobs whose bytes are not in SQL, and those bytes.
	Outside(ctx context.Context) (blobs, bytes int64, err error)
	// Export calls fn with the rows behind a key (nil: with all), in the order
	// of their keys, until fn returns an error, which it returns. A row belongs
	// to fn. One read of one state of the database, however long it takes.
	Export(ctx context.Context, t *Table, after Row, fn func(Row) error) error
}

// Target is a zone that is being filled. It is a Source of what it holds so
// far. One goroutine calls Begin, Import and Finish.
//
// The zone may get another name than the source's, though the chain is bound to
// the name (P4): what was chained under the old one is said in the table
// zone_names, to which Finish adds a row.
type Target interface {
	Source
	// Begin makes room for a zone: its row (of ZoneTable, with the origin's
	// numbers) under a name that nobody can open, and the origin. In an empty
	// database the zone keeps its numbers; in another one it gets the next free
	// ones, and nobody else gets those: an engine that does not look for the
	// highest number of a blob or an actor before it gives the next one away skips
	// those up to LastBlob and LastActor. When the zone of the same origin was
	// begun before, Begin changes nothing and begun says so; done says that it
	// was finished. KindExist when the database has a zone of this name, begun
	// or finished, of another origin.
	Begin(ctx context.Context, o Origin, zone Row) (n Numbers, begun, done bool, err error)
	// Last returns the key of a table's last row, nil when it has none.
	Last(ctx context.Context, t *Table) (Row, error)
	// Import writes rows, in one transaction. They lie behind Last.
	Import(ctx context.Context, t *Table, rows []Row) error
	// Placed reports whether a blob's row names this place.
	Placed(ctx context.Context, b meta.Blob) (bool, error)
	// VerifyChain is meta.Upkeep's, of the zone that is not finished yet and is
	// chained under the origin's name so far.
	VerifyChain(ctx context.Context, first meta.Rev, report func(meta.Finding)) (checked int64, err error)
	// Finish makes everything durable and gives the zone its name.
	Finish(ctx context.Context) error
}
