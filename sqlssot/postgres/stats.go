package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

const (
	// indexLag is how many of the newest records may be missing from
	// record_index: reading that many takes some ten milliseconds.
	indexLag = 1 << 16
	// indexChunk bounds the records of one transaction, so that commits wait
	// little, and indexRun those of one call.
	indexChunk = 1 << 10
	indexRun   = 1 << 15
)

// Checkpoint implements meta.Upkeep. The server looks after its own log; what
// is done here is to let the index of records catch up, when there is enough to
// do or nothing else goes on.
func (s *Store) Checkpoint(ctx context.Context, idle bool) error {
	if err := interrupted(ctx, "checkpoint"); err != nil {
		return err
	}
	if s.o.ReadOnly || !idle {
		return nil
	}
	for range indexRun / indexChunk {
		var behind int64
		err := s.one(ctx, "checkpoint", 0, "", `SELECT c.rev-z.indexed FROM counters c JOIN zones z ON z.zone=c.zone WHERE c.zone=$1 AND c.kind=0 AND c.id=0`,
			[]any{&behind}, s.zone)
		if err != nil || behind <= s.indexLag {
			return err
		}
		if err := s.update(ctx, "index", s.indexSome(ctx)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) indexSome(ctx context.Context) func(tx pgx.Tx) error {
	return func(tx pgx.Tx) error {
		from, err := number(ctx, tx, `SELECT indexed FROM zones WHERE zone=$1`, s.zone)
		if err != nil {
			return err
		}
		to := from + indexChunk
		if _, err := exec(ctx, tx, `INSERT INTO record_index(ino,rev)
			SELECT ino,rev FROM operation_records WHERE rev>$1 AND rev<=$2 UNION
			SELECT parent,rev FROM operation_records WHERE rev>$1 AND rev<=$2 AND parent<>0 UNION
			SELECT new_parent,rev FROM operation_records WHERE rev>$1 AND rev<=$2 AND new_parent<>0 ON CONFLICT DO NOTHING`, from, to); err != nil {
			return err
		}
		_, err = exec(ctx, tx, `UPDATE zones SET indexed=$2 WHERE zone=$1`, s.zone, to)
		return err
	}
}

// Stats implements meta.Upkeep. FileBytes is what our schema takes in the
// database, all zones together; the log is the server's and not counted.
func (s *Store) Stats(ctx context.Context) (meta.StoreStats, error) {
	st := meta.StoreStats{Path: s.address}
	err := s.one(ctx, "stats", 0, "", `SELECT c.inodes,
			coalesce((SELECT max(rev) FROM operation_records WHERE rev BETWEEN $2 AND $3)
				-(SELECT min(rev) FROM operation_records WHERE rev BETWEEN $2 AND $3)+1,0),
			(SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relnamespace=to_regnamespace('nexusfs') AND relkind='r')
		FROM counters c WHERE c.zone=$1 AND c.kind=0 AND c.id=0`, []any{&st.Inodes, &st.Records, &st.FileBytes}, s.zone, s.base, s.base|keyMask)
	st.Schema = lastVersion() // Open has seen to it
	return st, err
}
