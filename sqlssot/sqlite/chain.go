package sqlite

import (
	"context"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
	"zombiezen.com/go/sqlite"
)

// VerifyChain implements meta.Upkeep. It reads every record from first on (from
// the start of the batch that holds it; from where records were pruned, if that
// is later), recomputes its digest, and the chain
// heads from the last one before; chain.Check has the findings.
func (s *Store) VerifyChain(ctx context.Context, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	return s.verifyChain(ctx, s.zoneName, first, report)
}

// verifyChain is VerifyChain where what has no other name is chained under zone.
func (s *Store) verifyChain(ctx context.Context, zone string, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	err = s.scan(ctx, "verify", 0, func(c *conn) error {
		pruned, err := c.number("SELECT coalesce(max(rev),?1) FROM chain_seals WHERE rev BETWEEN ?1 AND ?2", s.base, s.base|keyMask)
		if err != nil {
			return err
		}
		at, head, err := s.sealBefore(c, max(s.base|int64(max(first, 1)), pruned+1))
		if err != nil {
			return err
		}
		names, err := s.names(c)
		if err != nil {
			return err
		}
		v := &chain.Check{Zone: zone, Names: names, Last: unk(at), Prev: unk(at), Head: head, Report: report}
		var r chain.Sealed
		err = c.each(`SELECT `+recordCols+recordFrom+`WHERE r.rev>? AND r.rev<=? ORDER BY r.rev`, func(st *sqlite.Stmt) error {
			scanRecord(st, &r)
			v.Add(&r)
			checked++
			return nil
		}, at, s.base|keyMask)
		if err != nil {
			return err
		}
		return c.query(stHead, func(st *sqlite.Stmt) bool {
			v.End(unk(st.ColumnInt64(0)), colHash(st, 1))
			return true
		}, s.zone)
	})
	return checked, err
}

// names reads what the zone was called before, oldest first.
func (s *Store) names(c *conn) (out []chain.Name, err error) {
	err = c.each(`SELECT rev,name FROM zone_names WHERE rev BETWEEN ? AND ? ORDER BY rev`, func(st *sqlite.Stmt) error {
		out = append(out, chain.Name{Until: unk(st.ColumnInt64(0)), Name: st.ColumnText(1)})
		return nil
	}, s.base, s.base|keyMask)
	return out, err
}
