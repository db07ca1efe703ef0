package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
)

var _ transfer.Source = (*Store)(nil)

// dialect is how rows are put into order. The only text in a key is of type text.
var dialect = transfer.Dialect{TextOrder: ` COLLATE "C"`}

// alive is the condition for sessions that may commit: one whose lease has ended
// is fenced by the next daemon.
const alive = `ended IS NULL AND fenced = 0 AND (lease = 0 OR until >= ` + serverNow + `)`

// Origin implements transfer.Source. A session whose lease has ended is not
// Open: what it has committed is whole.
func (s *Store) Origin(ctx context.Context) (o transfer.Origin, err error) {
	o = transfer.Origin{Version: transfer.Version, Name: s.o.Zone, Numbers: transfer.Numbers{Zone: s.zone}}
	err = s.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		var rev int64
		var head []byte
		err := tx.QueryRow(ctx, `SELECT z.created,c.rev,c.head,c.sessions,
				(SELECT count(*) FROM session_rows WHERE session BETWEEN $2::bigint+1 AND $3 AND `+alive+`),
				(SELECT coalesce(min(blob)-1,0) FROM blobs WHERE zone=$1),(SELECT coalesce(max(blob),0) FROM blobs WHERE zone=$1),
				(SELECT coalesce(max(actor),$2) FROM actors WHERE actor BETWEEN $2 AND $3)
			FROM zones z JOIN counters c ON c.zone=z.zone AND c.kind=0 WHERE z.zone=$1`, s.zone, s.base, s.base|keyMask).
			Scan(&o.Created, &rev, &head, &o.Sessions, &o.Open, &o.Numbers.Blob, &o.LastBlob, &o.LastActor)
		if errors.Is(err, pgx.ErrNoRows) {
			return meta.E("migrate", 0, s.o.Zone, meta.KindNotExist, nil)
		}
		o.Rev, o.Head = meta.Rev(unk(rev)), blobID(head)
		o.LastBlob -= o.Numbers.Blob
		o.LastActor = unk(o.LastActor)
		return err
	})
	return o, err
}

// Count implements transfer.Source.
func (s *Store) Count(ctx context.Context, t *transfer.Table) (n int64, err error) {
	err = s.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		n, err = number(ctx, tx, t.SelectCount(s.zone))
		return err
	})
	return n, err
}

// Outside implements transfer.Source.
func (s *Store) Outside(ctx context.Context) (blobs, bytes int64, err error) {
	err = s.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*),coalesce(sum(size),0)::bigint FROM blobs WHERE place<>0 AND `+transfer.BlobTable().Where(s.zone)).
			Scan(&blobs, &bytes)
	})
	return blobs, bytes, err
}

// Export implements transfer.Source.
func (s *Store) Export(ctx context.Context, t *transfer.Table, after transfer.Row, fn func(transfer.Row) error) error {
	return s.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		return exportRows(ctx, tx, t.Select(s.zone, after != nil, dialect), after, t.Columns, fn)
	})
}

// exportRows hands on the rows of a query, in the server's binary format, which
// has the same bytes for text and bytea. An error of fn ends the connection: the
// server would send the rest first.
func exportRows(ctx context.Context, tx pgx.Tx, sql string, params transfer.Row, cols []transfer.Column, fn func(transfer.Row) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	values := make([][]byte, len(params))
	formats := make([]int16, len(params))
	for i, v := range params {
		formats[i] = pgx.BinaryFormatCode
		var err error
		if values[i], err = binaryValue(v); err != nil {
			return err
		}
	}
	r := tx.Conn().PgConn().ExecParams(ctx, sql, values, nil, formats, []int16{pgx.BinaryFormatCode})
	for r.NextRow() {
		row, err := decodeRow(r.Values(), cols)
		if err == nil {
			err = fn(row)
		}
		if err != nil {
			stop()
			_, _ = r.Close() // it says that it was stopped
			return err
		}
	}
	_, err := r.Close()
	return err
}

func decodeRow(raw [][]byte, cols []transfer.Column) (transfer.Row, error) {
	row := make(transfer.Row, len(cols))
	for i, v := range raw {
		switch {
		case v == nil:
		case cols[i].Type == transfer.Text:
			row[i] = string(v)
		case cols[i].Type == transfer.Bytes:
			row[i] = append([]byte{}, v...)
		case len(v) == 8:
			row[i] = int64(binary.BigEndian.Uint64(v))
		default:
			return nil, errFormat
		}
	}
	return row, nil
}

// binaryValue is a value as the server's binary format has it; nil for NULL.
func binaryValue(v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case int64:
		return binary.BigEndian.AppendUint64(nil, uint64(v)), nil
	case string:
		return append([]byte{}, v...), nil
	case []byte:
		return v, nil
	}
	return nil, meta.E("migrate", 0, "", meta.KindInvalid, fmt.Errorf("a row holds a value of type %T", v))
}

// copyRows writes rows by COPY.
func copyRows(ctx context.Context, tx pgx.Tx, t *transfer.Table, list []transfer.Row) error {
	b := append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0) // no flags, no extension
	for _, row := range list {
		b = binary.BigEndian.AppendUint16(b, uint16(len(row)))
		for _, v := range row {
			raw, err := binaryValue(v)
			if err != nil {
				return err
			}
			if v == nil {
				b = binary.BigEndian.AppendUint32(b, 1<<32-1) // -1
				continue
			}
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(raw))), raw...)
		}
	}
	b = binary.BigEndian.AppendUint16(b, 1<<16-1) // -1: the end
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(b), fmt.Sprintf("COPY %s(%s) FROM STDIN (FORMAT binary)", t.Name, t.Names()))
	if err == nil && tag.RowsAffected() != int64(len(list)) {
		err = fmt.Errorf("the server took %d rows of %d", tag.RowsAffected(), len(list))
	}
	return err
}
