package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"nexusfs/meta"
)

// Query implements meta.History. Exactly one statement, which may only read:
// anything else is KindInvalid with a sentence. Parameters are written ? as on
// SQLite, or $1, $2. Values arrive as nil, int64 (booleans as 0 and 1), float64,
// string or []byte.
func (s *Store) Query(ctx context.Context, sql string, args []any, columns func([]string) error, row func([]any) error) error {
	sql, values, err := bindArgs(sql, args)
	if err != nil {
		return err
	}
	return s.scan(ctx, "sql", 0, func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `SELECT set_config('nexusfs.zone', $1, true)`, s.o.Zone); err != nil {
			return err
		}
		const name = "nexusfs_query"
		d, err := tx.Conn().PgConn().Prepare(ctx, name, sql, nil)
		if err != nil {
			return queryError(ctx, err)
		}
		s.trips.n.Add(1)
		defer tx.Conn().PgConn().Deallocate(context.WithoutCancel(ctx), name) // fails only with the connection
		switch {
		case len(d.Fields) == 0:
			return meta.E("sql", 0, "", meta.KindInvalid, errors.New("only one statement that reads is possible here: SELECT"))
		case len(d.ParamOIDs) != len(values):
			return meta.E("sql", 0, "", meta.KindInvalid, fmt.Errorf("the statement has %d parameters, %d were given", len(d.ParamOIDs), len(values)))
		}
		names := make([]string, len(d.Fields))
		for i, f := range d.Fields {
			names[i] = f.Name
		}
		if err := columns(names); err != nil {
			return err
		}
		s.trips.n.Add(1)
		r := tx.Conn().PgConn().ExecPrepared(ctx, name, values, nil, nil) // all as text
		for r.NextRow() {
			v, err := textValues(r.Values(), d.Fields)
			if err == nil {
				err = row(v)
			}
			if err != nil {
				_, cerr := r.Close() // reads the rest
				return errors.Join(err, cerr)
			}
		}
		_, err = r.Close()
		return queryError(ctx, err)
	})
}

func queryError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return meta.E("sql", 0, "", meta.KindInterrupted, ctx.Err())
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch {
		case pg.Code == codeReadOnly:
			return meta.E("sql", 0, "", meta.KindInvalid, errors.New("only statements that read are possible here"))
		case pg.Code[:2] == "42" || pg.Code[:2] == "22" || pg.Code[:2] == "0A": // syntax and names, values, not supported
			return meta.E("sql", 0, "", meta.KindInvalid, err)
		}
	}
	return err
}

// textValues turns values in the server's text format into Go values.
func textValues(raw [][]byte, fields []pgconn.FieldDescription) ([]any, error) {
	out := make([]any, len(raw))
	for i, v := range raw {
		if v == nil {
			continue
		}
		var err error
		if out[i], err = textValue(string(v), fields[i].DataTypeOID); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func textValue(v string, oid uint32) (any, error) {
	switch oid {
	case pgtype.BoolOID:
		if v == "t" {
			return int64(1), nil
		}
		return int64(0), nil
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID:
		return strconv.ParseInt(v, 10, 64)
	case pgtype.NumericOID: // sums of integers are of this type
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n, nil
		}
		return strconv.ParseFloat(v, 64)
	case pgtype.Float4OID, pgtype.Float8OID:
		return strconv.ParseFloat(v, 64)
	case pgtype.ByteaOID:
		return hex.DecodeString(strings.TrimPrefix(v, `\x`))
	}
	return v, nil
}

// bindArgs gives each parameter the type of its Go value and encodes the values
// as text.
func bindArgs(sql string, args []any) (string, [][]byte, error) {
	values, types := make([][]byte, len(args)), make([]string, len(args))
	for i, a := range args {
		types[i] = "text"
		switch v := a.(type) {
		case nil:
			continue
		case int:
			values[i], types[i] = strconv.AppendInt(nil, int64(v), 10), "bigint"
		case int64:
			values[i], types[i] = strconv.AppendInt(nil, v, 10), "bigint"
		case float64:
			values[i], types[i] = strconv.AppendFloat(nil, v, 'g', -1, 64), "double precision"
		case string:
			values[i] = []byte(v)
		case []byte:
			values[i], types[i] = []byte(`\x`+hex.EncodeToString(v)), "bytea"
		case bool:
			values[i], types[i] = strconv.AppendBool(nil, v), "boolean"
		default:
			return "", nil, meta.E("sql", 0, "", meta.KindInvalid, fmt.Errorf("parameter %d has type %T", i+1, a))
		}
	}
	return placeholders(sql, types), values, nil
}

// placeholders numbers parameters that are written as a question mark, outside
// of literals, quoted names and comments. Without arguments nothing is replaced:
// PostgreSQL has operators of that name.
func placeholders(sql string, types []string) string {
	var out strings.Builder
	for n := 0; sql != "" && n < len(types); {
		skip := 1
		switch {
		case sql[0] == '\'' || sql[0] == '"':
			skip = closing(sql, sql[:1], 1)
		case strings.HasPrefix(sql, "--"):
			skip = closing(sql, "\n", 2)
		case strings.HasPrefix(sql, "/*"):
			skip = closing(sql, "*/", 2)
		case sql[0] == '?':
			fmt.Fprintf(&out, "$%d::%s", n+1, types[n])
			n++
			sql = sql[1:]
			continue
		}
		out.WriteString(sql[:skip])
		sql = sql[skip:]
	}
	return out.String() + sql
}

// closing finds where what begins at the front of sql ends.
func closing(sql, end string, from int) int {
	if i := strings.Index(sql[from:], end); i >= 0 {
		return from + i + len(end)
	}
	return len(sql)
}
