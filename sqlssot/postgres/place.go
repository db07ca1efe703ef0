package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// ContentPlace says where the zone's content lies: a directory or a URL, ""
// until somebody has said it. id belongs to this zone alone, wherever it is
// mounted, and marks the content as its own.
func (s *Store) ContentPlace(ctx context.Context) (place, id string, err error) {
	err = s.read(ctx, "content place", 0, "", func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT content, uid::text FROM zones WHERE zone = $1`, s.zone).Scan(&place, &id)
	})
	return place, id, err
}

// SetContentPlace says where the zone's content lies, durably. Who says it first
// is right: the place that holds is returned.
func (s *Store) SetContentPlace(ctx context.Context, place string) (holds string, err error) {
	err = s.update(ctx, "content place", func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `UPDATE zones SET content = $2 WHERE zone = $1 AND content = ''`, s.zone, place); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT content FROM zones WHERE zone = $1`, s.zone).Scan(&holds)
	})
	return holds, err
}
