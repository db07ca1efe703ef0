package postgres

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
)

// Rewind implements meta.Upkeep: the state becomes that of revision first-1,
// in one transaction. first may be the revision after the newest one: then
// nothing is taken back and the record only says that the numbers up to the
// reserved one are skipped. The records taken back are removed; the chain goes
// on from the last one that stays, and the recovery's own record is part of it.
//
// No loss of power needs this here; an administrator who restored content from
// an older copy does. Exact are names, types, attributes, links, entries,
// content, extended attributes, versions and usage. A directory's times come
// from the first record that touched it; extents that were cut come back as
// several extents with the same bytes.
func (s *Store) Rewind(ctx context.Context, first meta.Rev, now int64) (rev meta.Rev, err error) {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	if err := interrupted(ctx, "rewind"); err != nil {
		return 0, err
	}
	if err := s.writable("rewind"); err != nil {
		return 0, err
	}
	c, err := s.acquire(ctx, s.pools.commit)
	if err != nil {
		return 0, classify("rewind", 0, "", err)
	}
	defer c.Release()
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		rev, err = s.rewind(ctx, tx, first, now)
		return err
	})
	return rev, classify("rewind", 0, "", err)
}

func (s *Store) rewind(ctx context.Context, tx pgx.Tx, first meta.Rev, now int64) (meta.Rev, error) {
	// It reads whole tables, and takes its time.
	if _, err := exec(ctx, tx, `SELECT set_config('enable_hashjoin','on',true),set_config('enable_seqscan','on',true),
		set_config('plan_cache_mode','auto',true),set_config('statement_timeout','0',true)`); err != nil {
		return 0, err
	}
	if err := s.lockZone(ctx, tx); err != nil {
		return 0, err
	}
	var last, barrier, reserved, epoch int64
	var hash []byte
	if err := tx.QueryRow(ctx, headSQL, s.zone).Scan(&last, &hash, &barrier, &reserved, &epoch); err != nil {
		return 0, err
	}
	last, barrier, reserved = unk(last), unk(barrier), unk(reserved)
	if int64(first) < 2 || int64(first) > last+1 {
		return 0, meta.E("rewind", 0, "", meta.KindInvalid, fmt.Errorf("revision %d is not one of 2 to %d", first, last+1))
	}
	l := chain.Lost{First: int64(first), Last: last, Reserved: reserved, Head: hex.EncodeToString(hash), Durable: barrier}
	if l.Last >= l.First {
		r := &rewinder{s: s, ctx: ctx, tx: tx, first: s.base | int64(first)}
		if err := r.run(); err != nil {
			return 0, err
		}
		if err := s.resealBefore(ctx, tx, int64(first)); err != nil {
			return 0, err
		}
	}
	rev := meta.Rev(max(last, reserved) + 1)
	return rev, s.recordRecovery(ctx, tx, l, rev, now)
}

// recordRecovery writes the recovery's own record at rev.
func (s *Store) recordRecovery(ctx context.Context, tx pgx.Tx, l chain.Lost, rev meta.Rev, now int64) error {
	after, err := json.Marshal(l)
	if err != nil {
		return err
	}
	// Numbers are skipped, never issued twice.
	if _, err := exec(ctx, tx, `UPDATE counters SET rev=$2 WHERE zone=$1 AND kind=0 AND id=0`, s.zone, s.base|int64(rev-1)); err != nil {
		return err
	}
	if _, err := exec(ctx, tx, `UPDATE zones SET epoch=epoch+1 WHERE zone=$1`, s.zone); err != nil {
		return err
	}
	return s.commitIn(ctx, tx, &meta.Change{Record: meta.Record{Kind: meta.OpRecovery, Time: now, After: string(after)}})
}

// resealBefore removes the records from first on and makes the last one that
// stays the end of a batch, so that the chain has no loose end.
func (s *Store) resealBefore(ctx context.Context, tx pgx.Tx, first int64) error {
	from := s.base | first
	if err := s.unindex(ctx, tx, from-1, s.base|keyMask); err != nil {
		return err
	}
	for _, sql := range []string{
		`DELETE FROM operation_records WHERE rev>=$1 AND rev<=$2`,
		`DELETE FROM late_answers WHERE rev>=$1 AND rev<=$2`,
		`UPDATE zones SET indexed=least(indexed,$1::bigint-1) WHERE zone=$2::bigint>>48`,
	} {
		if _, err := exec(ctx, tx, sql, from, s.base|keyMask); err != nil {
			return err
		}
	}
	sealed, head, err := s.sealBefore(ctx, tx, from)
	if err != nil {
		return err
	}
	var digests []chain.Hash
	last := sealed
	if err := each(ctx, tx, `SELECT rev,digest FROM operation_records WHERE rev>$1 AND rev<$2 ORDER BY rev`, func(rows pgx.Rows) error {
		var d []byte
		err := rows.Scan(&last, &d)
		digests = append(digests, blobID(d))
		return err
	}, sealed, from); err != nil {
		return err
	}
	if len(digests) > 0 {
		names, err := s.names(ctx, tx)
		if err != nil {
			return err
		}
		begin := unk(last) - int64(len(digests)) + 1
		head = chain.Next(head, chain.NameAt(names, s.o.Zone, begin), begin, digests)
		if _, err := exec(ctx, tx, `UPDATE operation_records SET batch=$1,head=$2 WHERE rev=$3`, len(digests), head[:], last); err != nil {
			return err
		}
	}
	_, err = exec(ctx, tx, `UPDATE counters SET rev=$2,head=$3 WHERE zone=$1 AND kind=0 AND id=0`, s.zone, last, head[:])
	return err
}

// rewinder makes the tables what they were before revision first, which is $1
// in its statements.
type rewinder struct {
	s     *Store
	ctx   context.Context
	tx    pgx.Tx
	first int64 // as key
}

// all runs statements of which each may use the first revision as $1.
func (r *rewinder) all(statements ...string) error {
	for _, sql := range statements {
		if _, err := exec(r.ctx, r.tx, sql, r.first); err != nil {
			return fmt.Errorf("%w (%.60s)", err, sql)
		}
	}
	return nil
}

// script runs statements without parameters.
func (r *rewinder) script(sql string) error {
	_, err := r.tx.Conn().PgConn().Exec(r.ctx, sql).ReadAll()
	return err
}

func (r *rewinder) run() error {
	if err := r.touched(); err != nil {
		return err
	}
	if err := r.usage(-1); err != nil {
		return err
	}
	// Directories' times are read before anything moves.
	times, err := r.dirTimes()
	if err != nil {
		return err
	}
	for _, step := range []func() error{r.names, r.inodes, r.attributes, r.content, r.versions} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := r.directories(times); err != nil {
		return err
	}
	if err := r.usage(1); err != nil {
		return err
	}
	if err := r.bookUsage(); err != nil {
		return err
	}
	return r.script(`DROP TABLE pg_temp.touched, pg_temp.moved_usage`)
}

// touched collects every inode that an operation from first on concerns, also
// those that records name only through a directory's names.
func (r *rewinder) touched() error {
	if err := r.script(`CREATE TEMP TABLE touched (ino bigint PRIMARY KEY) ON COMMIT DROP;
		CREATE TEMP TABLE moved_usage (uid bigint, inodes bigint, bytes bigint) ON COMMIT DROP`); err != nil {
		return err
	}
	return r.all(
		`INSERT INTO touched SELECT ino FROM operation_records WHERE rev>=$1 AND rev<=$1|281474976710655 AND ino<>0
			UNION SELECT parent FROM operation_records WHERE rev>=$1 AND rev<=$1|281474976710655 AND parent<>0
			UNION SELECT new_parent FROM operation_records WHERE rev>=$1 AND rev<=$1|281474976710655 AND new_parent<>0`,
		`INSERT INTO touched SELECT d.ino FROM touched t JOIN dentries d ON d.parent=t.ino WHERE d.begin>=$1
			UNION SELECT d.ino FROM touched t JOIN dentry_history d ON d.parent=t.ino WHERE d."end">=$1 ON CONFLICT DO NOTHING`,
	)
}

// names ends what began and brings back what ended.
func (r *rewinder) names() error {
	return r.all(
		`DELETE FROM dentries WHERE parent IN (SELECT ino FROM touched) AND begin>=$1`,
		`INSERT INTO dentries(parent,cookie,name,ino,type,begin) SELECT parent,cookie,name,ino,type,begin FROM dentry_history
			WHERE parent IN (SELECT ino FROM touched) AND begin<$1 AND "end">=$1`,
		`DELETE FROM dentry_history WHERE parent IN (SELECT ino FROM touched) AND "end">=$1`,
	)
}

// inodes brings back the images that were current before first. What did not
// exist then goes away; a directory's content_rev says when it was made.
func (r *rewinder) inodes() error {
	const back = `SELECT DISTINCT ON (h.ino) h.ino FROM touched t JOIN inode_history h ON h.ino=t.ino AND h."end">=$1`
	return r.all(
		`DELETE FROM inodes WHERE ino IN (`+back+`)`,
		`INSERT INTO inodes(ino,`+inodeCols+`) SELECT DISTINCT ON (h.ino) h.ino,`+inodeCols+`
			FROM touched t JOIN inode_history h ON h.ino=t.ino AND h."end">=$1 ORDER BY h.ino,h."end"`,
		`DELETE FROM inode_history WHERE ino IN (SELECT ino FROM touched) AND "end">=$1`,
		`DELETE FROM inodes WHERE ino IN (SELECT ino FROM touched) AND CASE WHEN mode & 61440 = 16384 THEN content_rev ELSE rev END>=$1`,
	)
}

func (r *rewinder) attributes() error {
	return r.all(
		`DELETE FROM xattrs WHERE ino IN (SELECT ino FROM touched) AND begin>=$1`,
		`INSERT INTO xattrs(ino,name,value,begin) SELECT ino,name,value,begin FROM xattr_history
			WHERE ino IN (SELECT ino FROM touched) AND begin<$1 AND "end">=$1`,
		`DELETE FROM xattr_history WHERE ino IN (SELECT ino FROM touched) AND "end">=$1`,
	)
}

// content does the same for extents, and keeps the blobs' reference counts.
// Blobs that only the lost operations used are forgotten: their bytes may be
// missing, so nobody may take them for stored.
func (r *rewinder) content() error {
	const touched = `ino IN (SELECT ino FROM touched)`
	if err := r.script(`CREATE TEMP TABLE moved_blobs (blob bigint PRIMARY KEY, n bigint) ON COMMIT DROP`); err != nil {
		return err
	}
	if err := r.all(
		`INSERT INTO moved_blobs SELECT blob,sum(n) FROM (
			SELECT blob,-1 AS n FROM extents WHERE `+touched+` AND begin>=$1
			UNION ALL SELECT blob,CASE WHEN begin<$1 THEN 0 ELSE -1 END FROM extent_history WHERE `+touched+` AND "end">=$1) x GROUP BY blob`,
		`DELETE FROM extents WHERE `+touched+` AND begin>=$1`,
		`INSERT INTO extents(ino,off,len,blob,blob_off,begin) SELECT ino,off,len,blob,blob_off,begin
			FROM extent_history WHERE `+touched+` AND begin<$1 AND "end">=$1`,
		`DELETE FROM extent_history WHERE `+touched+` AND "end">=$1`,
	); err != nil {
		return err
	}
	return r.script(`UPDATE blobs b SET refs=b.refs+m.n FROM moved_blobs m WHERE m.blob=b.blob;
		DELETE FROM blobs b USING moved_blobs m WHERE m.blob=b.blob AND b.refs=0;
		UPDATE inodes i SET bytes=coalesce((SELECT sum(len) FROM extents e WHERE e.ino=i.ino),0) FROM touched t WHERE t.ino=i.ino;
		DROP TABLE pg_temp.moved_blobs`)
}

// versions removes what was made and moves back what was moved. Where a
// version stood is in the records that stay; without such a record it began at
// first_rev and stood there.
func (r *rewinder) versions() error {
	return r.all(
		`DELETE FROM version_rows WHERE ino IN (SELECT ino FROM touched) AND first_rev>=$1`,
		`UPDATE version_rows v SET rev=o.rev,size=o.size,actor=o.actor,time=o.time FROM touched t, operation_records o
			WHERE t.ino=v.ino AND v.rev>=$1 AND o.rev=(SELECT max(rev) FROM operation_records p
				WHERE p.rev>=v.first_rev AND p.rev<$1 AND p.ino=v.ino AND p.version=v.n)`,
		`UPDATE version_rows v SET rev=v.first_rev,size=i.size FROM touched t, inodes i WHERE t.ino=v.ino AND i.ino=v.ino AND v.rev>=$1`,
	)
}

// times are a directory's times before the lost operations.
type times struct {
	rev, mtime, ctime int64
}

// dirTimes finds for each directory the first lost record that changed its
// names, with the times that it had before.
func (r *rewinder) dirTimes() (map[int64]times, error) {
	out := make(map[int64]times)
	err := each(r.ctx, r.tx, `SELECT rev,parent,new_parent,before FROM operation_records
		WHERE rev>=$1 AND rev<=$1|281474976710655 AND before IS NOT NULL ORDER BY rev DESC`, func(rows pgx.Rows) error {
		var rev, parent, newParent int64
		var before string
		if err := rows.Scan(&rev, &parent, &newParent, &before); err != nil {
			return err
		}
		var b struct{ Pmtime, Pctime, Npmtime, Npctime *int64 }
		if json.Unmarshal([]byte(before), &b) != nil {
			return nil // not one of ours: no times
		}
		if b.Pmtime != nil && b.Pctime != nil {
			out[parent] = times{rev, *b.Pmtime, *b.Pctime}
		}
		if b.Npmtime != nil && b.Npctime != nil {
			out[newParent] = times{rev, *b.Npmtime, *b.Npctime}
		}
		return nil
	}, r.first)
	if err != nil {
		return nil, err
	}
	// An image that was archived before the first of these names is exact itself.
	err = each(r.ctx, r.tx, `SELECT h.ino,min(h."end") FROM touched t JOIN inode_history h ON h.ino=t.ino AND h."end">=$1 GROUP BY h.ino`,
		func(rows pgx.Rows) error {
			var ino, end int64
			err := rows.Scan(&ino, &end)
			if t, ok := out[ino]; ok && end <= t.rev {
				delete(out, ino)
			}
			return err
		}, r.first)
	return out, err
}

// directories counts entries and links anew and sets revision, times and hints.
// The revision is that of the newest change of its names or of itself that stays.
func (r *rewinder) directories(when map[int64]times) error {
	if err := r.script(`UPDATE inodes i SET
			entries=(SELECT count(*) FROM dentries d WHERE d.parent=i.ino),
			nlink=CASE WHEN nlink>0 THEN 2+(SELECT count(*) FROM dentries d WHERE d.parent=i.ino AND d.type=4) ELSE 0 END,
			rev=greatest(content_rev,
				(SELECT max(d.begin) FROM dentries d WHERE d.parent=i.ino),
				(SELECT max(h."end") FROM dentry_history h WHERE h.parent=i.ino),
				(SELECT max(h."end") FROM inode_history h WHERE h.ino=i.ino))
		FROM touched t WHERE t.ino=i.ino AND mode & 61440 = 16384`); err != nil {
		return err
	}
	var inos, mtimes, ctimes []int64
	for ino, t := range when {
		inos, mtimes, ctimes = append(inos, ino), append(mtimes, t.mtime), append(ctimes, t.ctime)
	}
	if _, err := exec(r.ctx, r.tx, `UPDATE inodes i SET mtime=x.mtime,ctime=x.ctime FROM unnest($1::bigint[],$2::bigint[],$3::bigint[]) x(ino,mtime,ctime)
		WHERE i.ino=x.ino AND mode & 61440 = 16384`, inos, mtimes, ctimes); err != nil {
		return err
	}
	// Hints point to where the names are again, and what has none is listed.
	return r.script(`UPDATE inodes i SET parent=h.parent,cookie=h.cookie FROM (
			SELECT DISTINCT ON (d.ino) d.ino,d.parent,d.cookie FROM touched t JOIN dentries d ON d.parent=t.ino
			WHERE d.ino IN (SELECT ino FROM touched) ORDER BY d.ino,d.begin DESC) h
		WHERE h.ino=i.ino;
		DELETE FROM nameless WHERE ino IN (SELECT ino FROM touched);
		INSERT INTO nameless SELECT i.ino,i.rev,i.cookie<>0 FROM touched t JOIN inodes i ON i.ino=t.ino WHERE i.nlink=0`)
}

// usage adds what the touched inodes count for to moved_usage, with a sign;
// history's bytes stand under historyUID.
func (r *rewinder) usage(sign int) error {
	return r.script(fmt.Sprintf(`INSERT INTO moved_usage
		SELECT i.uid,%[1]d*count(*),%[1]d*coalesce(sum(i.bytes),0) FROM touched t JOIN inodes i ON i.ino=t.ino WHERE i.nlink>0 GROUP BY i.uid
		UNION ALL SELECT %[2]d,0,%[1]d*coalesce(sum(i.bytes),0) FROM touched t JOIN inodes i ON i.ino=t.ino WHERE i.nlink=0
		UNION ALL SELECT %[2]d,0,%[1]d*coalesce(sum(h.len),0) FROM touched t JOIN extent_history h ON h.ino=t.ino`, sign, historyUID))
}

// bookUsage books the difference that the rewind made.
func (r *rewinder) bookUsage() error {
	for _, sql := range []string{
		`INSERT INTO counters(zone,kind,id,inodes,bytes) SELECT $1,1,uid,sum(inodes),sum(bytes) FROM moved_usage WHERE uid>=0 GROUP BY uid
			ON CONFLICT (zone,kind,id) DO UPDATE SET inodes=counters.inodes+excluded.inodes,bytes=counters.bytes+excluded.bytes`,
		`UPDATE counters c SET inodes=c.inodes+x.inodes,bytes=c.bytes+x.bytes,history=c.history+x.history FROM (
			SELECT coalesce(sum(inodes),0) AS inodes,coalesce(sum(bytes) FILTER (WHERE uid>=0),0) AS bytes,
				coalesce(sum(bytes) FILTER (WHERE uid<0),0) AS history FROM moved_usage) x
			WHERE c.zone=$1 AND c.kind=0 AND c.id=0`,
	} {
		if _, err := exec(r.ctx, r.tx, sql, r.s.zone); err != nil {
			return err
		}
	}
	return nil
}
