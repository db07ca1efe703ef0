package sqlite

import (
	"context"
	"fmt"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
	"zombiezen.com/go/sqlite"
)

var _ transfer.Source = (*Store)(nil)

// Origin implements transfer.Source.
func (s *Store) Origin(ctx context.Context) (o transfer.Origin, err error) {
	o = transfer.Origin{Version: transfer.Version, Name: s.zoneName, Numbers: transfer.Numbers{Zone: s.zone}}
	found := false
	err = s.scan(ctx, "migrate", 0, func(c *conn) error {
		return c.each(`SELECT z.created,c.rev,c.head,c.sessions,
				(SELECT count(*) FROM session_rows WHERE session BETWEEN ?2 AND ?3 AND ended IS NULL AND NOT fenced),
				(SELECT coalesce(min(blob)-1,0) FROM blobs WHERE zone=?1),(SELECT coalesce(max(blob),0) FROM blobs WHERE zone=?1),
				(SELECT coalesce(max(actor),?2) FROM actors WHERE actor BETWEEN ?2 AND ?3)
			FROM zones z JOIN counters c ON c.zone=z.zone AND c.kind=0 WHERE z.zone=?1`, func(st *sqlite.Stmt) error {
			o.Created, o.Rev, o.Head = st.ColumnInt64(0), meta.Rev(unk(st.ColumnInt64(1))), colHash(st, 2)
			o.Sessions, o.Open, o.LastActor = st.ColumnInt64(3), st.ColumnInt64(4), unk(st.ColumnInt64(7))
			o.Numbers.Blob = st.ColumnInt64(5)
			o.LastBlob = st.ColumnInt64(6) - o.Numbers.Blob
			found = true
			return nil
		}, s.zone, s.base, s.base|keyMask)
	})
	if err == nil && !found {
		err = meta.E("migrate", 0, s.zoneName, meta.KindNotExist, nil)
	}
	return o, err
}

// Count implements transfer.Source.
func (s *Store) Count(ctx context.Context, t *transfer.Table) (n int64, err error) {
	err = s.scan(ctx, "migrate", 0, func(c *conn) error {
		n, err = c.number(t.SelectCount(s.zone))
		return err
	})
	return n, err
}

// Outside implements transfer.Source.
func (s *Store) Outside(ctx context.Context) (blobs, bytes int64, err error) {
	err = s.scan(ctx, "migrate", 0, func(c *conn) error {
		return c.each(`SELECT count(*),coalesce(sum(size),0) FROM blobs WHERE place<>0 AND `+transfer.BlobTable().Where(s.zone),
			func(st *sqlite.Stmt) error {
				blobs, bytes = st.ColumnInt64(0), st.ColumnInt64(1)
				return nil
			})
	})
	return blobs, bytes, err
}

// Export implements transfer.Source.
func (s *Store) Export(ctx context.Context, t *transfer.Table, after transfer.Row, fn func(transfer.Row) error) error {
	return s.scan(ctx, "migrate", 0, func(c *conn) error {
		st, err := c.Prepare(t.Select(s.zone, after != nil, transfer.Dialect{}))
		if err != nil {
			return err
		}
		if err := bindRow(st, after); err != nil {
			return err
		}
		var ferr error
		err = rows(st, func(st *sqlite.Stmt) bool {
			row, err := scanRow(st, t.Columns)
			if err == nil {
				err = fn(row)
			}
			ferr = err
			return err == nil
		})
		if ferr != nil {
			return ferr
		}
		return err
	})
}

// scanRow reads the current row, whose columns are cols.
func scanRow(st *sqlite.Stmt, cols []transfer.Column) (transfer.Row, error) {
	row := make(transfer.Row, len(cols))
	for i := range cols {
		switch have := st.ColumnType(i); {
		case have == sqlite.TypeNull:
		case have == sqlite.TypeInteger && cols[i].Type == transfer.Int:
			row[i] = st.ColumnInt64(i)
		case have == sqlite.TypeText && cols[i].Type == transfer.Text:
			row[i] = st.ColumnText(i)
		case have == sqlite.TypeBlob && cols[i].Type == transfer.Bytes:
			row[i] = colBytes(st, i)
		default:
			return nil, meta.E("migrate", 0, "", meta.KindDamaged, fmt.Errorf("column %s holds a value of type %v", cols[i].Name, have))
		}
	}
	return row, nil
}

// bindRow binds a row's values to a statement's parameters.
func bindRow(st *sqlite.Stmt, row transfer.Row) error {
	for i, v := range row {
		switch v := v.(type) {
		case nil:
			st.BindNull(i + 1)
		case int64:
			st.BindInt64(i+1, v)
		case string:
			st.BindText(i+1, v)
		case []byte:
			if len(v) == 0 {
				st.BindZeroBlob(i+1, 0) // BindBytes would bind NULL
			} else {
				st.BindBytes(i+1, v)
			}
		default:
			return meta.E("migrate", 0, "", meta.KindInvalid, fmt.Errorf("a row holds a value of type %T", v))
		}
	}
	return nil
}
