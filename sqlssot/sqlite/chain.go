package sqlite

import (
	"context"
	"encoding/json"
	"fmt"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
	"zombiezen.com/go/sqlite"
)

// VerifyChain implements meta.Upkeep. It reads every record from first on (from
// the start of the batch that holds it; from where records were pruned, if that
// is later), recomputes its digest, and the chain
// heads from the last one before. Findings: "record-digest" for a record that
// is not what was committed, "record-missing" for revisions without a record,
// "chain-head" for a batch whose head does not follow from its records and the
// head before, "chain-open" for records behind the last head, "chain-end" when
// the newest head is not the one that the zone's counters hold. Revisions that
// a recovery took back or skipped are no finding: its record names them (P33).
func (s *Store) VerifyChain(ctx context.Context, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	err = s.scan(ctx, "verify", 0, func(c *conn) error {
		pruned, err := c.number("SELECT coalesce(max(rev),?1) FROM chain_seals WHERE rev BETWEEN ?1 AND ?2", s.base, s.base|keyMask)
		if err != nil {
			return err
		}
		at, head, err := s.sealBefore(c, max(s.base|int64(max(first, 1)), pruned+1))
		if err != nil {
			return err
		}
		v := &chainCheck{zone: s.zoneName, last: unk(at), prev: unk(at), head: head, report: report}
		var r row
		err = c.each(`SELECT `+recordCols+recordFrom+`WHERE r.rev>? AND r.rev<=? ORDER BY r.rev`, func(st *sqlite.Stmt) error {
			scanRecord(st, &r)
			v.add(&r)
			checked++
			return nil
		}, at, s.base|keyMask)
		if err != nil {
			return err
		}
		return c.query(stHead, func(st *sqlite.Stmt) bool {
			v.end(unk(st.ColumnInt64(0)), colHash(st, 1))
			return true
		}, s.zone)
	})
	return checked, err
}

// chainCheck follows the chain. It is pure but for report.
type chainCheck struct {
	zone    string
	last    int64      // revision of the last record seen, or skipped on purpose
	prev    int64      // revision of the last head
	head    chain.Hash // the head at prev
	digests []chain.Hash
	first   int64 // revision of digests[0]
	report  func(meta.Finding)
}

func (v *chainCheck) find(check string, rev int64, format string, args ...any) {
	v.report(meta.Finding{Check: check, Rev: meta.Rev(rev), Text: fmt.Sprintf(format, args...)})
}

func (v *chainCheck) add(r *row) {
	rev := int64(r.Rev)
	if rev != v.last+1 && !v.recovered(r) {
		v.find("record-missing", v.last+1, "revisions %d to %d have no record", v.last+1, rev-1)
	}
	v.last = rev
	if d := meta.RecordDigest(&r.Record, r.session); d != r.Digest {
		v.find("record-digest", rev, "revision %d (%s) is not what was committed", rev, r.Kind)
	}
	if len(v.digests) == 0 {
		v.first = rev
	}
	v.digests = append(v.digests, r.Digest)
	if r.batch == 0 {
		return
	}
	want := chain.Next(v.head, v.zone, v.first, v.digests)
	if int64(len(v.digests)) != r.batch || want != r.head {
		v.find("chain-head", v.first, "the chain breaks in the batch of revisions %d to %d (%d records, %d were committed)",
			v.first, rev, len(v.digests), r.batch)
	}
	v.head, v.prev, v.digests = r.head, rev, v.digests[:0] // go on from what is stored
}

// recovered reports whether a recovery's record explains the gap before it.
func (v *chainCheck) recovered(r *row) bool {
	var l lost
	return r.Kind == meta.OpRecovery && json.Unmarshal([]byte(r.After), &l) == nil &&
		l.First == v.last+1 && int64(r.Rev) == max(l.Last, l.Reserved)+1
}

func (v *chainCheck) end(rev int64, head chain.Hash) {
	if len(v.digests) > 0 {
		v.find("chain-open", v.first, "revisions %d to %d belong to no batch", v.first, v.last)
	}
	if rev != v.prev || head != v.head {
		v.find("chain-end", v.prev+1, "the newest head stands at revision %d, the zone's counters are at %d", v.prev, rev)
	}
}
