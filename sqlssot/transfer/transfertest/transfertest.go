package transfertest

import (
	"context"
	"errors"
	"testing"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
)

// Engine opens databases of one engine for a test. Database is a number: the
// same one is the same database, empty at first. The functions return what
// closes it; no other is open meanwhile.
type Engine struct {
	// Target opens a database to fill a zone of it.
	Target func(t *testing.T, database int, zone string) (transfer.Target, func() error)
	// Source opens a zone that is whole. An error when there is none.
	Source func(t *testing.T, database int, zone string) (transfer.Source, func() error, error)
}

// Run runs the suite.
func Run(t *testing.T, e Engine) {
	t.Run("RoundTrip", func(t *testing.T) { roundTrip(t, e, transfer.Numbers{}, "default") })
	t.Run("NumbersOfTheSource", func(t *testing.T) { roundTrip(t, e, transfer.Numbers{Zone: 5, Blob: 1000}, "default") })
	t.Run("BesideOthers", func(t *testing.T) { besideOthers(t, e) })
	t.Run("GoesOn", func(t *testing.T) { goesOn(t, e) })
	t.Run("AnotherName", func(t *testing.T) { anotherName(t, e) })
	t.Run("Order", func(t *testing.T) { order(t, e) })
}

// fill migrates a zone into a database.
func fill(t *testing.T, e Engine, database int, zone string, from *Memory, blobs, to *Content) transfer.Result {
	t.Helper()
	target, end := e.Target(t, database, zone)
	res, err := transfer.Run(t.Context(), transfer.Options{Source: from, Target: target, From: blobs, To: to})
	if err = errors.Join(err, end()); err != nil {
		t.Fatal(err)
	}
	return res
}

// back migrates a zone out of a database, into memory.
func back(t *testing.T, e Engine, database int, zone string, blobs *Content) *Memory {
	t.Helper()
	return backTo(t, e, database, zone, blobs, NewContent())
}

// backTo is back with the blobs where they can be read.
func backTo(t *testing.T, e Engine, database int, zone string, blobs, to *Content) *Memory {
	t.Helper()
	source, end, err := e.Source(t, database, zone)
	if err != nil {
		t.Fatal(err)
	}
	m := NewMemory()
	_, err = transfer.Run(t.Context(), transfer.Options{Source: source, Target: m, From: blobs, To: to})
	if err = errors.Join(err, end()); err != nil {
		t.Fatal(err)
	}
	return m
}

func roundTrip(t *testing.T, e Engine, n transfer.Numbers, zone string) {
	blobs, there := NewContent(), NewContent()
	from := NewZone(zone, n, blobs)
	res := fill(t, e, 1, zone, from, blobs, there)
	if res.Copied.Blobs != 150 || there.Len() != 150 || res.Copied.Rows != res.Rows {
		t.Errorf("copied %+v of %+v, %d blobs are there", res.Copied, res, there.Len())
	}
	same(t, from, back(t, e, 1, zone, there))
}

// same compares two zones through what a migration would compare.
func same(t *testing.T, want, got *Memory) {
	t.Helper()
	if !want.origin.Same(got.origin) {
		t.Errorf("origin %+v, want %+v", got.origin, want.origin)
	}
	m := transfer.Mapping{From: got.origin.Numbers, To: want.origin.Numbers}
	for _, table := range transfer.Tables() {
		var rows []transfer.Row
		_ = want.Export(context.Background(), table, nil, func(r transfer.Row) error { rows = append(rows, r); return nil })
		i := 0
		_ = got.Export(context.Background(), table, nil, func(r transfer.Row) error {
			if err := m.Row(table, r); err != nil {
				t.Error(err)
			}
			if i < len(rows) {
				sameRow(t, table, rows[i], r)
			}
			i++
			return nil
		})
		if i != len(rows) || i == 0 {
			t.Errorf("table %s has %d rows, want %d", table.Name, i, len(rows))
		}
	}
}

func sameRow(t *testing.T, table *transfer.Table, want, got transfer.Row) {
	t.Helper()
	for i, c := range table.Columns {
		w, isBytes := want[i].([]byte)
		g, gotBytes := got[i].([]byte)
		switch {
		case c.Local:
		case isBytes != gotBytes, isBytes && string(w) != string(g), !isBytes && want[i] != got[i]:
			t.Errorf("%s.%s is %#v, want %#v", table.Name, c.Name, got[i], want[i])
		}
	}
}

// besideOthers: a second zone gets other numbers and leaves the first alone.
func besideOthers(t *testing.T, e Engine) {
	blobs, there, beside := NewContent(), NewContent(), NewContent()
	first, second := NewZone("first", transfer.Numbers{}, blobs), NewZone("second", transfer.Numbers{}, blobs)
	fill(t, e, 1, "first", first, blobs, there)
	if _, err := beside.Put(t.Context(), []byte("of an earlier run")); err != nil {
		t.Fatal(err)
	}
	fill(t, e, 1, "second", second, blobs, beside)
	if beside.Len() != 150 {
		t.Errorf("%d blobs are there: one is of nobody", beside.Len())
	}
	one, two := back(t, e, 1, "first", there), back(t, e, 1, "second", beside)
	same(t, first, one)
	same(t, second, two)
	if one.origin.Numbers.Zone == two.origin.Numbers.Zone {
		t.Errorf("both zones have the number %d", one.origin.Numbers.Zone)
	}
}

// goesOn: a run that ends in the middle leaves nothing that can be opened, is
// gone on with by its own source alone, and not begun again after its end.
func goesOn(t *testing.T, e Engine) {
	blobs, there := NewContent(), NewContent()
	from := NewZone("default", transfer.Numbers{}, blobs)
	ctx, cancel := context.WithCancel(t.Context())
	target, end := e.Target(t, 1, "default")
	_, err := transfer.Run(ctx, transfer.Options{Source: from, Target: target, From: blobs, To: there, Progress: func(phase string, done, total int64) {
		if phase == "rows" && done > total/2 {
			cancel()
		}
	}})
	if end() != nil || err == nil {
		t.Fatal("a run that was ended came to its end")
	}
	if _, end, err := e.Source(t, 1, "default"); err == nil {
		end()
		t.Error("a zone that is not whole can be opened")
	}
	if _, err := there.Put(t.Context(), []byte("stored, its row not written")); err != nil {
		t.Fatal(err)
	}
	other := NewZone("default", transfer.Numbers{}, NewContent())
	other.origin.Sessions++
	target, end = e.Target(t, 1, "default")
	_, err = transfer.Run(t.Context(), transfer.Options{Source: other, Target: target, From: blobs, To: there})
	if end() != nil || meta.KindOf(err) != meta.KindExist {
		t.Errorf("another source went on: %v", err)
	}
	res := fill(t, e, 1, "default", from, blobs, there)
	if res.Copied.Rows == 0 || res.Copied.Rows >= res.Rows || there.Len() != 150 {
		t.Errorf("the second run copied %+v of %d rows; %d blobs are there", res.Copied, res.Rows, there.Len())
	}
	same(t, from, back(t, e, 1, "default", there))
	if res := fill(t, e, 1, "default", from, blobs, there); !res.Before || res.Copied.Rows != 0 {
		t.Errorf("a third run copied %+v", res.Copied)
	}
	target, end = e.Target(t, 1, "default")
	_, err = transfer.Run(t.Context(), transfer.Options{Source: other, Target: target, From: blobs, To: there})
	if end() != nil || meta.KindOf(err) != meta.KindExist {
		t.Errorf("another source into a zone that is whole: %v", err)
	}
}

// anotherName: a zone may be called otherwise in its target. Its chain still
// verifies there, and after it has its old name again.
func anotherName(t *testing.T, e Engine) {
	blobs, there, again := NewContent(), NewContent(), NewContent()
	from := NewZone("default", transfer.Numbers{}, blobs)
	fill(t, e, 1, "team", from, blobs, there)
	chained(t, e, 1, "team")
	here := NewContent()
	moved := backTo(t, e, 1, "team", there, here)
	names := moved.rows["zone_names"]
	if !moved.origin.Same(from.origin) || moved.origin.Name != "team" || len(names) != 2 || names[1][1] != "default" {
		t.Errorf("the zone came back as %+v, with the names %v", moved.origin, names)
	}
	if res := fill(t, e, 1, "team", from, blobs, there); !res.Before {
		t.Errorf("a second run copied %+v", res.Copied)
	}
	fill(t, e, 2, "default", moved, here, again)
	chained(t, e, 2, "default")
	same(t, moved, back(t, e, 2, "default", again))
}

// chained verifies the chain of a zone that is whole.
func chained(t *testing.T, e Engine, database int, zone string) {
	t.Helper()
	source, end, err := e.Source(t, database, zone)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	s, ok := source.(interface {
		VerifyChain(context.Context, meta.Rev, func(meta.Finding)) (int64, error)
	})
	if !ok {
		t.Fatalf("%T has no chain to verify", source)
	}
	n, err := s.VerifyChain(t.Context(), 1, func(f meta.Finding) { t.Errorf("zone %s: %+v", zone, f) })
	if err != nil || n == 0 {
		t.Errorf("zone %s: verified %d records, %v", zone, n, err)
	}
}

// order: rows come in the order of their keys, from behind any of them.
func order(t *testing.T, e Engine) {
	blobs := NewContent()
	from := NewZone("default", transfer.Numbers{}, blobs)
	fill(t, e, 1, "default", from, blobs, NewContent())
	source, end, err := e.Source(t, 1, "default")
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	for _, table := range transfer.Tables() {
		var keys []transfer.Row
		read := func(after transfer.Row) (n int) {
			err := source.Export(t.Context(), table, after, func(r transfer.Row) error {
				if after == nil {
					keys = append(keys, r[:table.Keys])
				}
				n++
				return nil
			})
			if err != nil {
				t.Fatalf("%s: %v", table.Name, err)
			}
			return n
		}
		read(nil)
		for i, key := range keys {
			if i > 0 && compareKeys(table, keys[i-1], key) >= 0 {
				t.Errorf("%s: %q comes before %q", table.Name, keys[i-1], key)
			}
			if table.Name != "blobs" || i%50 == 0 {
				if n := read(key); n != len(keys)-i-1 {
					t.Errorf("%s: behind row %d come %d of %d", table.Name, i, n, len(keys)-i-1)
				}
			}
		}
		if n, err := source.Count(t.Context(), table); err != nil || n != int64(len(keys)) {
			t.Errorf("%s: counted %d, %v, read %d", table.Name, n, err, len(keys))
		}
	}
}
