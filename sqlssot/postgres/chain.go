package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
)

// VerifyChain implements meta.Upkeep. It reads every record from first on (from
// the start of the batch that holds it; from where records were pruned, if that
// is later), recomputes its digest, and the chain heads from the last one
// before; chain.Check has the findings.
func (s *Store) VerifyChain(ctx context.Context, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	return s.verifyChain(ctx, s.o.Zone, first, report)
}

// verifyChain is VerifyChain where what has no other name is chained under zone.
func (s *Store) verifyChain(ctx context.Context, zone string, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	err = s.scan(ctx, "verify", 0, func(tx pgx.Tx) error {
		pruned, err := number(ctx, tx, `SELECT coalesce(max(rev),$1::bigint) FROM chain_seals WHERE rev BETWEEN $1 AND $2`, s.base, s.base|keyMask)
		if err != nil {
			return err
		}
		at, head, err := s.sealBefore(ctx, tx, max(s.base|int64(max(first, 1)), pruned+1))
		if err != nil {
			return err
		}
		names, err := s.names(ctx, tx)
		if err != nil {
			return err
		}
		v := &chain.Check{Zone: zone, Names: names, Last: unk(at), Prev: unk(at), Head: head, Report: report}
		var r recordRow
		dest := r.dest()
		if err := each(ctx, tx, `SELECT `+recordCols+recordFrom+`WHERE r.rev>$1 AND r.rev<=$2 ORDER BY r.rev`, func(rows pgx.Rows) error {
			if err := rows.Scan(dest...); err != nil {
				return err
			}
			sealed := chain.Sealed{Record: r.record(), Session: r.session, Head: blobID(r.head)}
			if r.batch != nil {
				sealed.Batch = *r.batch
			}
			v.Add(&sealed)
			checked++
			return nil
		}, at, s.base|keyMask); err != nil {
			return err
		}
		var rev, barrier, reserved, epoch int64
		var hash []byte
		if err := tx.QueryRow(ctx, headSQL, s.zone).Scan(&rev, &hash, &barrier, &reserved, &epoch); err != nil {
			return err
		}
		v.End(unk(rev), blobID(hash))
		return nil
	})
	return checked, err
}

// sealBefore returns the last chain head before a revision (as key) and where
// it stands: at the end of a batch, where records were pruned, or at the start.
func (s *Store) sealBefore(ctx context.Context, tx pgx.Tx, before int64) (at int64, head chain.Hash, err error) {
	at = s.base
	err = each(ctx, tx, `SELECT rev,head FROM (
			(SELECT rev,head FROM operation_records WHERE rev>$1 AND rev<$2 AND head IS NOT NULL ORDER BY rev DESC LIMIT 1)
			UNION ALL SELECT rev,head FROM chain_seals WHERE rev>$1 AND rev<$2
		) x ORDER BY rev DESC LIMIT 1`, func(rows pgx.Rows) error {
		var b []byte
		err := rows.Scan(&at, &b)
		head = blobID(b)
		return err
	}, s.base, before)
	return at, head, err
}

// names reads what the zone was called before, oldest first.
func (s *Store) names(ctx context.Context, tx pgx.Tx) (out []chain.Name, err error) {
	err = each(ctx, tx, `SELECT rev,name FROM zone_names WHERE rev BETWEEN $1 AND $2 ORDER BY rev`, func(rows pgx.Rows) error {
		var n chain.Name
		err := rows.Scan(&n.Until, &n.Name)
		n.Until = unk(n.Until)
		out = append(out, n)
		return err
	}, s.base, s.base|keyMask)
	return out, err
}
