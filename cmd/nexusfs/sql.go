package main

import (
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func sqlVerb(a *app) *cobra.Command {
	var asJSON, asCSV bool
	cmd := &cobra.Command{
		Use:   "sql [STORE] QUERY",
		Short: "ask the metadata and the history with SQL, read-only",
		Long: `sql runs one read-only statement over the documented views (docs/SQL.md): files
with their paths, versions, operations, history. Without a STORE the mount of
the working directory is asked, or the only one. A query may last 30 seconds.`,
		Example: `  nexusfs sql "select path, size from files order by size desc limit 10"
  nexusfs sql projects "select kind, count(*) from operations group by kind" --json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: action(func(ctx context.Context, args []string) error {
			if asJSON && asCSV {
				return fail(exitUsage, "--json and --csv exclude each other")
			}
			store, text := "", args[0]
			if len(args) == 2 {
				store, text = args[0], args[1]
			}
			t, err := a.resolve(store)
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessRead, "sql", func(c *client) error {
				return a.printQuery(ctx, c, text, asJSON, asCSV)
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object per row")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "comma-separated values, with a head line")
	return cmd
}

// printQuery sends the statement in a parameter: it is short, and URL
// parameters carry any byte.
func (a *app) printQuery(ctx context.Context, c *client, text string, asJSON, asCSV bool) error {
	out := a.sqlTable()
	if asJSON {
		out = a.sqlJSON()
	} else if asCSV {
		out = a.sqlCSV()
	}
	var rows sqlEnd
	first := true
	err := c.stream(ctx, http.MethodPost, "sql", url.Values{"query": {text}}, streamSink{item: func(raw json.RawMessage) error {
		if first {
			first = false
			var head []string
			if err := json.Unmarshal(raw, &head); err != nil {
				return err
			}
			return out.head(head)
		}
		var cells []sqlValue
		if err := json.Unmarshal(raw, &cells); err != nil {
			return err
		}
		return out.row(cells)
	}}, &rows)
	if err != nil {
		return err
	}
	if err := out.end(); err != nil {
		return err
	}
	if !asJSON && !asCSV && isTerminal(os.Stdout) {
		a.note("%d rows", rows.Rows)
	}
	return nil
}

// sqlOutput is one way of printing a result.
type sqlOutput struct {
	head func([]string) error
	row  func([]sqlValue) error
	end  func() error
}

func (a *app) sqlTable() sqlOutput {
	var t *table
	numbers := true
	return sqlOutput{
		head: func(names []string) error {
			t = newTable(a.stdout, escapeAll(names)...)
			return nil
		},
		row: func(cells []sqlValue) error {
			texts := make([]string, len(cells))
			for i, v := range cells {
				if numbers { // the first row decides what is a column of numbers
					t.right[i] = v.isNumber()
				}
				texts[i] = v.display()
			}
			numbers = false
			return t.add(texts...)
		},
		end: func() error {
			if t == nil {
				return nil
			}
			return t.flush()
		},
	}
}

func (a *app) sqlJSON() sqlOutput {
	var names []string
	return sqlOutput{
		head: func(n []string) error { names = n; return nil },
		row: func(cells []sqlValue) error {
			line := []byte{'{'}
			for i, v := range cells {
				if i > 0 {
					line = append(line, ',')
				}
				line = append(append(append(line, mustJSON(names[i])...), ':'), mustJSON(v.forJSON())...)
			}
			return a.printLine(append(line, '}'))
		},
		end: func() error { return nil },
	}
}

func (a *app) sqlCSV() sqlOutput {
	w := csv.NewWriter(a.stdout)
	return sqlOutput{
		head: w.Write,
		row: func(cells []sqlValue) error {
			texts := make([]string, len(cells))
			for i, v := range cells {
				texts[i] = v.plain()
			}
			return w.Write(texts)
		},
		end: func() error { w.Flush(); return w.Error() },
	}
}

func escapeAll(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = escapeName(s)
	}
	return out
}

// sqlValue is one value on its way: exactly one field is set, none for NULL.
// Integers travel as strings, because JSON's numbers lose 64-bit ones, and so
// do floats, because JSON has no infinity.
type sqlValue struct {
	Int   *string `json:"i,omitempty"`
	Float *string `json:"f,omitempty"`
	Text  *string `json:"t,omitempty"`
	Blob  *string `json:"b,omitempty"` // base64; also of text that is not UTF-8
}

// toSQLValue encodes what the store's driver hands out.
func toSQLValue(v any) (sqlValue, error) {
	str := func(s string) *string { return &s }
	switch v := v.(type) {
	case nil:
		return sqlValue{}, nil
	case int64:
		return sqlValue{Int: str(strconv.FormatInt(v, 10))}, nil
	case bool:
		if v {
			return sqlValue{Int: str("1")}, nil
		}
		return sqlValue{Int: str("0")}, nil
	case float64:
		return sqlValue{Float: str(strconv.FormatFloat(v, 'g', -1, 64))}, nil
	case string:
		if !utf8.ValidString(v) {
			return sqlValue{Blob: str(base64.StdEncoding.EncodeToString([]byte(v)))}, nil
		}
		return sqlValue{Text: &v}, nil
	case []byte:
		return sqlValue{Blob: str(base64.StdEncoding.EncodeToString(v))}, nil
	}
	return sqlValue{}, fmt.Errorf("value of type %T in a result", v)
}

func (v sqlValue) isNumber() bool { return v.Int != nil || v.Float != nil }

// bytes returns a blob's bytes.
func (v sqlValue) bytes() []byte {
	data, err := base64.StdEncoding.DecodeString(*v.Blob)
	if err != nil {
		return []byte(*v.Blob)
	}
	return data
}

// display is for a terminal. Names are stored as blobs, so a blob that is text
// is shown as text.
func (v sqlValue) display() string {
	switch {
	case v.Int != nil:
		return *v.Int
	case v.Float != nil:
		return *v.Float
	case v.Text != nil:
		return escapeName(*v.Text)
	case v.Blob != nil:
		data := v.bytes()
		if len(data) == 32 && !plainName(string(data)) {
			return fmt.Sprintf("%x", data) // a hash
		}
		return escapeName(string(data))
	}
	return "NULL"
}

// plain is for other programs: no escapes.
func (v sqlValue) plain() string {
	switch {
	case v.Int != nil:
		return *v.Int
	case v.Float != nil:
		return *v.Float
	case v.Text != nil:
		return *v.Text
	case v.Blob != nil:
		return string(v.bytes())
	}
	return ""
}

func (v sqlValue) forJSON() any {
	switch {
	case v.Int != nil:
		return json.Number(*v.Int)
	case v.Float != nil:
		f, err := strconv.ParseFloat(*v.Float, 64)
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			return *v.Float
		}
		return json.Number(*v.Float)
	case v.Text != nil:
		return *v.Text
	case v.Blob != nil:
		return bytesName(v.bytes())
	}
	return nil
}

// sqlEnd closes a result.
type sqlEnd struct {
	Rows int64 `json:"rows"`
}

// sql is the store's side. The query ends with the request, and after
// readingLimit: its transaction holds up checkpoints (P30).
func (c *control) sql(ctx context.Context, r *http.Request, s *sender) (sqlEnd, error) {
	var end sqlEnd
	limited, cancel := context.WithTimeout(ctx, readingLimit)
	defer cancel()
	err := c.engine.history.Query(limited, r.FormValue("query"), nil,
		func(names []string) error { return s.item(names) },
		func(row []any) error {
			cells := make([]sqlValue, len(row))
			for i, v := range row {
				cell, err := toSQLValue(v)
				if err != nil {
					return err
				}
				cells[i] = cell
			}
			end.Rows++
			return s.item(cells)
		})
	switch {
	case ctx.Err() != nil:
		return end, ctx.Err()
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		return end, fail(exitFailed, "the query took longer than %s and was ended: ask for less, or take a copy of the store", readingLimit)
	case err != nil:
		return end, fail(exitFailed, "%w", err)
	}
	return end, nil
}
