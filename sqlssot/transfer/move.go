package transfer

import (
	"context"
	"fmt"

	"nexusfs/meta"
)

// Mover is a zone whose content moves to another content store while its rows
// stay where they are. Nobody else may use the zone from BeginMove to EndMove.
// One goroutine calls its methods but those of Source and Placed.
type Mover interface {
	Source
	// BeginMove notes that content moves to a destination. done says that an
	// earlier run had come to FinishMove. KindExist when a move to another
	// destination was begun.
	BeginMove(ctx context.Context, to string) (done bool, err error)
	// LastMove returns the key of the last blob (of BlobTable) whose new place is
	// noted, nil when none is.
	LastMove(ctx context.Context) (Row, error)
	// NoteMoves notes the new places of blobs, rows of BlobTable behind LastMove,
	// durably and in one transaction.
	NoteMoves(ctx context.Context, rows []Row) error
	// Placed reports whether this place was noted for a blob.
	Placed(ctx context.Context, b meta.Blob) (bool, error)
	// Moves counts the blobs whose new place is noted, and their bytes.
	Moves(ctx context.Context) (blobs, bytes int64, err error)
	// FinishMove gives all blobs their new places, durably and in one
	// transaction. Rows of blobs outside of SQL that nothing refers to go.
	FinishMove(ctx context.Context) error
	// EndMove forgets that there was a move. Until then the destination of one
	// that is finished is known.
	EndMove(ctx context.Context) error
}

// MoveOptions say what MoveContent moves. All are required but Progress.
type MoveOptions struct {
	Zone     Mover
	From, To meta.Content
	Dest     string // names To
	Progress func(phase string, done, total int64)
}

// MoveContent copies every blob outside of SQL to another content store, as Run
// does, and then gives all of them their new places at once. What it copies is
// noted in the zone's database, so a run that was killed is gone on with. The
// caller calls EndMove when the new content store is known to who opens the zone.
func MoveContent(ctx context.Context, o MoveOptions) (Result, error) {
	r := runner{Options: Options{Source: o.Zone, From: o.From, To: o.To, Progress: o.Progress}}
	if r.Progress == nil {
		r.Progress = func(string, int64, int64) {}
	}
	origin, err := o.Zone.Origin(ctx)
	if err != nil {
		return Result{}, err
	}
	r.res.Rev = origin.Rev
	if r.res.Blobs, r.res.Bytes, err = o.Zone.Outside(ctx); err != nil {
		return r.res, err
	}
	if r.res.Before, err = o.Zone.BeginMove(ctx, o.Dest); err != nil || r.res.Before {
		return r.res, err
	}
	after, err := o.Zone.LastMove(ctx)
	if err != nil {
		return r.res, err
	}
	if err := r.findLeftovers(ctx); err != nil {
		return r.res, err
	}
	if err := r.moveBlobs(ctx, o.Zone, after); err != nil {
		return r.res, err
	}
	if err := r.sweep(ctx, o.Zone.Placed); err != nil {
		return r.res, err
	}
	blobs, bytes, err := o.Zone.Moves(ctx)
	if err == nil && (blobs != r.res.Blobs || bytes != r.res.Bytes) {
		err = meta.E("migrate", 0, "", meta.KindDamaged, fmt.Errorf("%d blobs with %d bytes were copied of %d with %d", blobs, bytes, r.res.Blobs, r.res.Bytes))
	}
	if err != nil {
		return r.res, err
	}
	// gofail: var moveBeforeFinish struct{}
	return r.res, o.Zone.FinishMove(ctx)
}

// moveBlobs copies what lies behind a key.
func (r *runner) moveBlobs(ctx context.Context, zone Mover, after Row) error {
	return r.pipe(ctx, BlobTable(), after, func(rows []Row) error {
		if err := r.copyContent(ctx, rows); err != nil {
			return err
		}
		var moved []Row
		for _, row := range rows {
			if outsideBytes(BlobTable(), row) > 0 {
				moved = append(moved, row)
			}
		}
		if len(moved) == 0 {
			return nil
		}
		return zone.NoteMoves(ctx, moved)
	})
}
