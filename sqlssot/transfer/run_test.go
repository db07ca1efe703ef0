package transfer_test

import (
	"errors"
	"testing"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
	"nexusfs/sqlssot/transfer/transfertest"
)

// TestMemoryPasses: the engine that others are measured by.
func TestMemoryPasses(t *testing.T) {
	type place struct {
		t        *testing.T
		database int
	}
	all := map[place]map[string]*transfertest.Memory{}
	get := func(t *testing.T, database int, zone string) *transfertest.Memory {
		at := place{t, database}
		if all[at] == nil {
			all[at] = map[string]*transfertest.Memory{}
		}
		if all[at][zone] == nil {
			m := transfertest.NewMemory()
			m.Name = zone
			if n := int64(len(all[at])); n > 0 {
				m.Numbers = &transfer.Numbers{Zone: n, Blob: n * 1000}
			}
			all[at][zone] = m
		}
		return all[at][zone]
	}
	end := func() error { return nil }
	transfertest.Run(t, transfertest.Engine{
		Target: func(t *testing.T, database int, zone string) (transfer.Target, func() error) {
			return get(t, database, zone), end
		},
		Source: func(t *testing.T, database int, zone string) (transfer.Source, func() error, error) {
			m := get(t, database, zone)
			if !m.Whole() {
				return nil, nil, errors.New("not whole")
			}
			return m, end, nil
		},
	})
}

// TestRunFindsWhatATargetGetsWrong: every kind of change in any table.
func TestRunFindsWhatATargetGetsWrong(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(table string, row transfer.Row)
	}{
		{"a number", func(table string, row transfer.Row) {
			if table == "inodes" && row[7] == int64(1<<63-1) {
				row[7] = int64(0)
			}
		}},
		{"empty for NULL", func(table string, row transfer.Row) {
			if table == "inodes" && row[20] == nil {
				row[20] = []byte{}
			}
		}},
		{"a byte of a name", func(table string, row transfer.Row) {
			if table == "dentries" && string(row[2].([]byte)) == "B" {
				row[2] = []byte("b")
			}
		}},
		{"text for bytes", func(table string, row transfer.Row) {
			if table == "blobs" && row[10] != nil {
				row[10] = string(row[10].([]byte))
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			blobs, m := transfertest.NewContent(), transfertest.NewMemory()
			m.Change = tc.change
			_, err := transfer.Run(t.Context(), transfer.Options{
				Source: transfertest.NewZone("default", transfer.Numbers{}, blobs), Target: m, From: blobs, To: transfertest.NewContent()})
			if err == nil || meta.KindOf(err) != meta.KindDamaged {
				t.Errorf("got %v, want damage", err)
			}
		})
	}
}

// TestRunRefusesDamage: a blob that is not what its row says, and a number that
// is of no zone.
func TestRunRefusesDamage(t *testing.T) {
	blobs := transfertest.NewContent()
	from := transfertest.NewZone("default", transfer.Numbers{}, blobs)
	blobs.Broken = brokenBlob(t, from)
	_, err := transfer.Run(t.Context(), transfer.Options{Source: from, Target: transfertest.NewMemory(), From: blobs, To: transfertest.NewContent()})
	if err == nil || meta.KindOf(err) != meta.KindDamaged {
		t.Errorf("a damaged blob: %v", err)
	}
}

// brokenBlob is one that lies outside of SQL.
func brokenBlob(t *testing.T, from *transfertest.Memory) (id meta.BlobID) {
	t.Helper()
	err := from.Export(t.Context(), transfer.BlobTable(), nil, func(row transfer.Row) error {
		if transfer.PlaceOf(row)[0] != int64(meta.PlaceInline) {
			copy(id[:], row[2].([]byte))
		}
		return nil
	})
	if err != nil || id == (meta.BlobID{}) {
		t.Fatalf("no blob lies outside of SQL (%v)", err)
	}
	return id
}

func TestMapping(t *testing.T) {
	const shift = 48
	m := transfer.Mapping{From: transfer.Numbers{Zone: 2, Blob: 100}, To: transfer.Numbers{Zone: 5, Blob: 7}}
	tables := map[string]*transfer.Table{}
	for _, table := range transfer.Tables() {
		tables[table.Name] = table
	}
	for _, tc := range []struct {
		table    string
		row      transfer.Row
		want     transfer.Row
		unusable bool
	}{
		{"record_index", transfer.Row{int64(2<<shift | 9), int64(2<<shift | 4)}, transfer.Row{int64(5<<shift | 9), int64(5<<shift | 4)}, false},
		{"record_index", transfer.Row{int64(2<<shift | 9), int64(0)}, transfer.Row{int64(5<<shift | 9), int64(0)}, false},
		{"record_index", transfer.Row{int64(3<<shift | 9), int64(0)}, nil, true},
		{"record_index", transfer.Row{int64(9), int64(0)}, nil, true},
		{"counters", transfer.Row{int64(2), int64(1), int64(1000), nil, nil, nil, nil, nil, nil, nil, nil, nil},
			transfer.Row{int64(5), int64(1), int64(1000), nil, nil, nil, nil, nil, nil, nil, nil, nil}, false},
		{"counters", transfer.Row{int64(2), int64(2), int64(2<<shift | 8), nil, nil, nil, nil, nil, nil, nil, nil, nil},
			transfer.Row{int64(5), int64(2), int64(5<<shift | 8), nil, nil, nil, nil, nil, nil, nil, nil, nil}, false},
		{"extents", transfer.Row{int64(2<<shift | 1), int64(0), int64(3), int64(104), int64(0), int64(2<<shift | 1)},
			transfer.Row{int64(5<<shift | 1), int64(0), int64(3), int64(11), int64(0), int64(5<<shift | 1)}, false},
		{"extents", transfer.Row{int64(2<<shift | 1), int64(0), int64(3), int64(100), int64(0), int64(2<<shift | 1)}, nil, true},
	} {
		err := m.Row(tables[tc.table], tc.row)
		if (err != nil) != tc.unusable {
			t.Errorf("%s %v: %v", tc.table, tc.row, err)
			continue
		}
		for i := range tc.want {
			if tc.row[i] != tc.want[i] {
				t.Errorf("%s column %d: got %v, want %v", tc.table, i, tc.row[i], tc.want[i])
			}
		}
	}
}
