package transfer

import (
	"fmt"

	"nexusfs/meta"
)

// Mapping turns a zone's numbers in one database into those in another. It
// keeps the order of keys.
type Mapping struct{ From, To Numbers }

// Row maps a row of t in place. KindDamaged when a number is not of the zone.
func (m Mapping) Row(t *Table, r Row) error { return m.columns(t, t.Columns, r) }

// Key maps the key of a row.
func (m Mapping) Key(t *Table, key Row) error { return m.columns(t, t.Columns[:t.Keys], key) }

func (m Mapping) columns(t *Table, cols []Column, r Row) error {
	for i := range cols {
		ref := cols[i].Ref
		if ref == Usage {
			ref = Plain
			if kind, ok := r[i-1].(int64); ok && kind == quotaUsage {
				ref = Key
			}
		}
		n, ok := r[i].(int64)
		if ref == Plain || !ok {
			continue
		}
		to, ok := m.number(ref, n)
		if !ok {
			return meta.E("migrate", 0, "", meta.KindDamaged,
				fmt.Errorf("%s.%s holds %d, which is no number of this zone: check the source with nexusfs fsck", t.Name, cols[i].Name, n))
		}
		r[i] = to
	}
	return nil
}

// quotaUsage is the kind of counters whose id is an inode.
const quotaUsage = 2

func (m Mapping) number(ref Ref, n int64) (int64, bool) {
	switch ref {
	case Key:
		if n == 0 {
			return 0, true
		}
		return n&(1<<zoneShift-1) | m.To.Zone<<zoneShift, n>>zoneShift == m.From.Zone
	case Mark:
		return n&(1<<zoneShift-1) | m.To.Zone<<zoneShift, n == 0 || n>>zoneShift == m.From.Zone
	case Zone:
		return m.To.Zone, n == m.From.Zone
	case BlobRow:
		return n - m.From.Blob + m.To.Blob, n > m.From.Blob
	}
	return n, true
}
