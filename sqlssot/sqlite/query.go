package sqlite

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// Query implements meta.History. Exactly one statement, which may only read:
// anything else is KindInvalid with a sentence. Values arrive as nil, int64,
// float64, string or []byte. A nul or broken UTF-8 in a name stays as it is.
func (s *Store) Query(ctx context.Context, sql string, args []any, columns func([]string) error, row func([]any) error) error {
	return s.scan(ctx, "sql", 0, func(c *conn) error {
		if err := c.SetAuthorizer(sqlite.AuthorizeFunc(readsOnly)); err != nil {
			return err
		}
		defer c.SetAuthorizer(nil)
		st, trailing, err := c.PrepareTransient(sql)
		if err != nil {
			return queryError(ctx, err)
		}
		defer st.Finalize()
		if rest := strip(sql[len(sql)-trailing:]); rest != "" {
			return meta.E("sql", 0, "", meta.KindInvalid, errors.New("only one statement at a time"))
		}
		if st.ColumnCount() == 0 {
			return meta.E("sql", 0, "", meta.KindInvalid, errors.New("the statement returns nothing: only SELECT is possible here"))
		}
		if err := bindArgs(st, args); err != nil {
			return err
		}
		if err := columns(columnNames(st)); err != nil {
			return err
		}
		for {
			ok, err := st.Step()
			if err != nil {
				return queryError(ctx, err)
			}
			if !ok {
				return nil
			}
			if err := row(values(st)); err != nil {
				return err
			}
		}
	})
}

// readsOnly allows what reads and nothing else.
func readsOnly(a sqlite.Action) sqlite.AuthResult {
	switch a.Type() {
	case sqlite.OpSelect, sqlite.OpRead, sqlite.OpFunction, sqlite.OpRecursive:
		return sqlite.AuthResultOK
	}
	return sqlite.AuthResultDeny
}

func queryError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return meta.E("sql", 0, "", meta.KindInterrupted, ctx.Err())
	}
	switch sqlite.ErrCode(err).ToPrimary() {
	case sqlite.ResultAuth:
		return meta.E("sql", 0, "", meta.KindInvalid, errors.New("only statements that read are possible here"))
	case sqlite.ResultError, sqlite.ResultRange, sqlite.ResultMismatch:
		return meta.E("sql", 0, "", meta.KindInvalid, err)
	}
	return err
}

// strip removes white space, semicolons and comments from the front.
func strip(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f;")
		var after string
		switch {
		case strings.HasPrefix(sql, "--"):
			_, after, _ = strings.Cut(sql, "\n")
		case strings.HasPrefix(sql, "/*"):
			_, after, _ = strings.Cut(sql[2:], "*/")
		default:
			return sql
		}
		sql = after
	}
}

func bindArgs(st *sqlite.Stmt, args []any) error {
	if len(args) != st.BindParamCount() {
		return meta.E("sql", 0, "", meta.KindInvalid, fmt.Errorf("the statement has %d parameters, %d were given", st.BindParamCount(), len(args)))
	}
	for i, a := range args {
		switch v := a.(type) {
		case nil:
			st.BindNull(i + 1)
		case int:
			st.BindInt64(i+1, int64(v))
		case int64:
			st.BindInt64(i+1, v)
		case float64:
			st.BindFloat(i+1, v)
		case string:
			st.BindText(i+1, v)
		case []byte:
			st.BindBytes(i+1, v)
		case bool:
			st.BindBool(i+1, v)
		default:
			return meta.E("sql", 0, "", meta.KindInvalid, fmt.Errorf("parameter %d has type %T", i+1, a))
		}
	}
	return nil
}

func columnNames(st *sqlite.Stmt) []string {
	names := make([]string, st.ColumnCount())
	for i := range names {
		if names[i] = st.ColumnName(i); names[i] == "" { // the name occurs twice
			names[i] = fmt.Sprintf("column%d", i+1)
		}
	}
	return names
}

func values(st *sqlite.Stmt) []any {
	out := make([]any, st.ColumnCount())
	for i := range out {
		switch st.ColumnType(i) {
		case sqlite.TypeInteger:
			out[i] = st.ColumnInt64(i)
		case sqlite.TypeFloat:
			out[i] = st.ColumnFloat(i)
		case sqlite.TypeText:
			out[i] = st.ColumnText(i)
		case sqlite.TypeBlob:
			out[i] = colBytes(st, i)
		}
	}
	return out
}
