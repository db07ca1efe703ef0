package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// typesKey is where a connection of the commit pool keeps its types.
const typesKey = "nexusfs.types"

// batchTypes are the types of a batch's rows in this database.
type batchTypes struct{ rows [rowSets + 1]rowType }

// prepareCommit makes a new connection ready for batches.
func prepareCommit(ctx context.Context, c *pgx.Conn) error {
	known := make(map[string]rowType)
	rows, err := c.Query(ctx, `SELECT typname::text, oid, typarray FROM pg_type WHERE typnamespace = to_regnamespace('nexusfs') AND typtype = 'c'`)
	if err != nil {
		return err
	}
	var name string
	var t rowType
	if _, err := pgx.ForEachRow(rows, []any{&name, &t.elem, &t.array}, func() error { known[name] = t; return nil }); err != nil {
		return err
	}
	types := new(batchTypes)
	for i, n := range rowTypeNames {
		if known[n].elem == 0 {
			return fmt.Errorf("the database has no type %s.%s", schemaName, n)
		}
		types.rows[i] = known[n]
	}
	if _, err := c.PgConn().Prepare(ctx, commitName, commitSQL, nil); err != nil {
		return err
	}
	c.PgConn().CustomData()[typesKey] = types
	return nil
}
