package sqlite

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
	"zombiezen.com/go/sqlite"
)

// Rewind implements meta.Upkeep: the state becomes that of revision first-1,
// in one transaction. first may be the revision after the newest one: then
// nothing is taken back and the record only says that the numbers up to the
// reserved one are skipped. The records taken back are removed; the chain goes
// on from the last one that stays, and the recovery's own record is part of it.
//
// Exact are names, types, attributes, links, entries, content, extended
// attributes, versions and usage. A directory's times come from the first
// record that touched it (its before-image); extents that were cut come back as
// several extents with the same bytes.
//
// Rejected: applying the inverse of each record, newest first. It needs a rule
// per kind of operation and fails on the first one that is wrong; the rows with
// begin and end say the same for all kinds at once.
func (s *Store) Rewind(ctx context.Context, first meta.Rev, now int64) (rev meta.Rev, err error) {
	err = s.update(ctx, "rewind", func(w *conn) error {
		last := s.head.rev
		if int64(first) < 2 || int64(first) > last+1 {
			return meta.E("rewind", 0, "", meta.KindInvalid, fmt.Errorf("revision %d is not one of 2 to %d", first, last+1))
		}
		l := chain.Lost{First: int64(first), Last: last, Reserved: s.head.reserved, Head: hex.EncodeToString(s.head.hash[:]), Durable: s.head.barrier}
		if l.Last >= l.First {
			r := &rewinder{s: s, w: w, first: s.base | int64(first), refs: refDeltas{}}
			if err := r.run(); err != nil {
				return err
			}
			if err := s.resealBefore(w, int64(first)); err != nil {
				return err
			}
		}
		rev = meta.Rev(max(last, s.head.reserved) + 1)
		return s.recordRecovery(l, rev, now)
	})
	if err != nil {
		return 0, err
	}
	return rev, s.Sync(ctx)
}

// recordRecovery writes the recovery's own record at rev.
func (s *Store) recordRecovery(l chain.Lost, rev meta.Rev, now int64) error {
	after, err := json.Marshal(l)
	if err != nil {
		return err
	}
	t := s.newTx(&meta.Batch{Changes: []*meta.Change{{Record: meta.Record{Kind: meta.OpRecovery, Time: now, After: string(after)}}}})
	s.head.rev = int64(rev) - 1 // numbers are skipped, never issued twice
	if err := s.w.script("UPDATE counters SET rev=? WHERE zone=? AND kind=0 AND id=0", s.k(s.head.rev), s.zone); err != nil {
		return err
	}
	if err := s.w.script("UPDATE zones SET epoch=epoch+1 WHERE zone=?", s.zone); err != nil {
		return err
	}
	if err := t.apply(0); err != nil {
		return err
	}
	return t.finish()
}

// resealBefore removes the records from first on and makes the last one that
// stays the end of a batch, so that the chain has no loose end.
func (s *Store) resealBefore(w *conn, first int64) error {
	from := s.base | first
	if err := s.unindex(w, from-1, s.base|keyMask); err != nil {
		return err
	}
	for _, sql := range []string{
		"DELETE FROM operation_records WHERE rev>=?1 AND rev<=?2",
		"DELETE FROM late_answers WHERE rev>=?1 AND rev<=?2",
		"UPDATE zones SET indexed=min(indexed,?1-1) WHERE zone=?2>>48",
	} {
		if err := w.script(sql, from, s.base|keyMask); err != nil {
			return err
		}
	}
	sealed, head, err := s.sealBefore(w, from)
	if err != nil {
		return err
	}
	var digests []chain.Hash
	last := unk(sealed)
	if err := w.each("SELECT rev,digest FROM operation_records WHERE rev>? AND rev<? ORDER BY rev", func(st *sqlite.Stmt) error {
		last = unk(st.ColumnInt64(0))
		digests = append(digests, colHash(st, 1))
		return nil
	}, sealed, from); err != nil {
		return err
	}
	if len(digests) > 0 {
		names, err := s.names(w)
		if err != nil {
			return err
		}
		begin := last - int64(len(digests)) + 1
		head = chain.Next(head, chain.NameAt(names, s.zoneName, begin), begin, digests)
		if err := w.script("UPDATE operation_records SET batch=?,head=? WHERE rev=?", len(digests), head[:], s.k(last)); err != nil {
			return err
		}
	}
	s.head.rev, s.head.hash = last, head
	return w.script("UPDATE counters SET rev=?,head=? WHERE zone=? AND kind=0 AND id=0", s.k(last), head[:], s.zone)
}

// sealBefore returns the last chain head before a revision (as key) and where
// it stands: at the end of a batch, where records were pruned, or at the start.
func (s *Store) sealBefore(c *conn, before int64) (at int64, head chain.Hash, err error) {
	at = s.base
	err = c.each(`SELECT rev,head FROM (
			SELECT rev,head FROM (SELECT rev,head FROM operation_records WHERE rev>?1 AND rev<?2 AND head IS NOT NULL ORDER BY rev DESC LIMIT 1)
			UNION ALL SELECT rev,head FROM chain_seals WHERE rev>?1 AND rev<?2
		) ORDER BY rev DESC LIMIT 1`, func(st *sqlite.Stmt) error {
		at, head = st.ColumnInt64(0), colHash(st, 1)
		return nil
	}, s.base, before)
	return at, head, err
}

// rewinder makes the tables what they were before revision first.
type rewinder struct {
	s     *Store
	w     *conn
	first int64 // as key
	refs  refDeltas
}

func (r *rewinder) exec(sql string, args ...any) error { return r.w.script(sql, args...) }

func (r *rewinder) run() error {
	if err := r.touched(); err != nil {
		return err
	}
	before, err := r.usage()
	if err != nil {
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
	if err := r.bookUsage(before); err != nil {
		return err
	}
	return r.exec("DROP TABLE temp.touched")
}

// touched collects every inode that an operation from first on concerns, also
// those that records name only through a directory's names.
func (r *rewinder) touched() error {
	if err := r.exec("DROP TABLE IF EXISTS temp.touched"); err != nil {
		return err
	}
	if err := r.exec("CREATE TEMP TABLE touched (ino INTEGER PRIMARY KEY)"); err != nil {
		return err
	}
	return r.execAll(r.first,
		`INSERT OR IGNORE INTO touched(ino) SELECT ino FROM operation_records WHERE rev>=?1 AND rev<=?1|281474976710655 AND ino<>0`,
		`INSERT OR IGNORE INTO touched(ino) SELECT parent FROM operation_records WHERE rev>=?1 AND rev<=?1|281474976710655 AND parent<>0`,
		`INSERT OR IGNORE INTO touched(ino) SELECT new_parent FROM operation_records WHERE rev>=?1 AND rev<=?1|281474976710655 AND new_parent<>0`,
		`INSERT OR IGNORE INTO touched(ino) SELECT d.ino FROM (SELECT ino AS p FROM touched) CROSS JOIN dentries d ON d.parent=p WHERE d.begin>=?1`,
		`INSERT OR IGNORE INTO touched(ino) SELECT d.ino FROM (SELECT ino AS p FROM touched) CROSS JOIN dentry_history d ON d.parent=p WHERE d."end">=?1`,
	)
}

// execAll runs statements that take the first revision as their parameter.
func (r *rewinder) execAll(first int64, statements ...string) error {
	for _, sql := range statements {
		if err := r.exec(sql, first); err != nil {
			return fmt.Errorf("%w (%.60s)", err, sql)
		}
	}
	return nil
}

// names ends what began and brings back what ended.
func (r *rewinder) names() error {
	return r.execAll(r.first,
		`DELETE FROM dentries WHERE parent IN (SELECT ino FROM touched) AND begin>=?1`,
		`INSERT INTO dentries(parent,cookie,name,ino,type,begin) SELECT parent,cookie,name,ino,type,begin FROM dentry_history
			WHERE parent IN (SELECT ino FROM touched) AND begin<?1 AND "end">=?1`,
		`DELETE FROM dentry_history WHERE parent IN (SELECT ino FROM touched) AND "end">=?1`,
	)
}

// inodes brings back the images that were current before first. What did not
// exist then goes away; a directory's content_rev says when it was made.
func (r *rewinder) inodes() error {
	const image = `SELECT min("end") FROM inode_history h WHERE h.ino=t.ino AND h."end">=?1`
	return r.execAll(r.first,
		`INSERT OR REPLACE INTO inodes(ino,`+inodeCols+`)
			SELECT h.ino,`+inodeCols+` FROM touched t CROSS JOIN inode_history h ON h.ino=t.ino AND h."end"=(`+image+`)`,
		`DELETE FROM inode_history WHERE ino IN (SELECT ino FROM touched) AND "end">=?1`,
		`DELETE FROM inodes WHERE ino IN (SELECT ino FROM touched) AND iif(mode & 61440 = 16384, content_rev, rev)>=?1`,
	)
}

func (r *rewinder) attributes() error {
	return r.execAll(r.first,
		`DELETE FROM xattrs WHERE ino IN (SELECT ino FROM touched) AND begin>=?1`,
		`INSERT INTO xattrs(ino,name,value,begin) SELECT ino,name,value,begin FROM xattr_history
			WHERE ino IN (SELECT ino FROM touched) AND begin<?1 AND "end">=?1`,
		`DELETE FROM xattr_history WHERE ino IN (SELECT ino FROM touched) AND "end">=?1`,
	)
}

// content does the same for extents, and keeps the blobs' reference counts.
// Blobs that only the lost operations used are forgotten: their bytes may be
// missing, so nobody may take them for stored.
func (r *rewinder) content() error {
	const current = ` FROM extents WHERE ino IN (SELECT ino FROM touched) AND begin>=?1`
	const back = ` FROM extent_history WHERE ino IN (SELECT ino FROM touched) AND begin<?1 AND "end">=?1`
	const ended = ` FROM extent_history WHERE ino IN (SELECT ino FROM touched) AND "end">=?1`
	const group = ` GROUP BY blob`
	if err := r.refs.count(r.w, -1, `SELECT blob,count(*)`+current+group, r.first); err != nil {
		return err
	}
	if err := r.exec(`DELETE`+current, r.first); err != nil {
		return err
	}
	if err := r.refs.count(r.w, 1, `SELECT blob,count(*)`+back+group, r.first); err != nil {
		return err
	}
	if err := r.exec(`INSERT INTO extents(ino,off,len,blob,blob_off,begin) SELECT ino,off,len,blob,blob_off,begin`+back, r.first); err != nil {
		return err
	}
	if err := r.refs.count(r.w, -1, `SELECT blob,count(*)`+ended+group, r.first); err != nil {
		return err
	}
	if err := r.exec(`DELETE`+ended, r.first); err != nil {
		return err
	}
	if err := r.refs.apply(r.w); err != nil {
		return err
	}
	for blob := range r.refs {
		if err := r.exec("DELETE FROM blobs WHERE blob=? AND refs=0", blob); err != nil {
			return err
		}
	}
	return r.exec(`UPDATE inodes SET bytes=coalesce((SELECT sum(len) FROM extents e WHERE e.ino=inodes.ino),0)
		WHERE ino IN (SELECT ino FROM touched)`)
}

// versions removes what was made and moves back what was moved. Where a
// version stood is in the records that stay.
func (r *rewinder) versions() error {
	if err := r.exec(`DELETE FROM version_rows WHERE ino IN (SELECT ino FROM touched) AND first_rev>=?`, r.first); err != nil {
		return err
	}
	type moved struct{ ino, n, first int64 }
	var list []moved
	if err := r.w.each(`SELECT v.ino,v.n,v.first_rev FROM touched t CROSS JOIN version_rows v ON v.ino=t.ino WHERE v.rev>=?`,
		func(st *sqlite.Stmt) error {
			list = append(list, moved{st.ColumnInt64(0), st.ColumnInt64(1), st.ColumnInt64(2)})
			return nil
		}, r.first); err != nil {
		return err
	}
	for _, m := range list {
		if err := r.exec(`UPDATE version_rows SET (rev,size,actor,time)=(
				SELECT rev,size,actor,time FROM operation_records
				WHERE rev>=?3 AND rev<?4 AND ino=?1 AND version=?2 ORDER BY rev DESC LIMIT 1)
			WHERE ino=?1 AND n=?2 AND EXISTS (
				SELECT 1 FROM operation_records WHERE rev>=?3 AND rev<?4 AND ino=?1 AND version=?2)`, m.ino, m.n, m.first, r.first); err != nil {
			return err
		}
		// Without such a record the version began at first_rev and stood there.
		if err := r.exec(`UPDATE version_rows SET rev=first_rev,size=(SELECT size FROM inodes i WHERE i.ino=version_rows.ino)
			WHERE ino=?1 AND n=?2 AND rev>=?3`, m.ino, m.n, r.first); err != nil {
			return err
		}
	}
	return nil
}

// times are a directory's times before the lost operations.
type times struct {
	rev, mtime, ctime int64
}

// dirTimes finds for each directory the first lost record that changed its
// names, with the times that it had before.
func (r *rewinder) dirTimes() (map[int64]times, error) {
	out := make(map[int64]times)
	err := r.w.each(`SELECT rev,parent,new_parent,before FROM operation_records
		WHERE rev>=?1 AND rev<=?1|281474976710655 AND before IS NOT NULL ORDER BY rev DESC`, func(st *sqlite.Stmt) error {
		var b struct{ Pmtime, Pctime, Npmtime, Npctime *int64 }
		if json.Unmarshal([]byte(st.ColumnText(3)), &b) != nil {
			return nil // not one of ours: no times
		}
		rev := st.ColumnInt64(0)
		if b.Pmtime != nil && b.Pctime != nil {
			out[st.ColumnInt64(1)] = times{rev, *b.Pmtime, *b.Pctime}
		}
		if b.Npmtime != nil && b.Npctime != nil {
			out[st.ColumnInt64(2)] = times{rev, *b.Npmtime, *b.Npctime}
		}
		return nil
	}, r.first)
	if err != nil {
		return nil, err
	}
	// An image that was archived before the first of these names is exact itself.
	err = r.w.each(`SELECT h.ino,min(h."end") FROM touched t CROSS JOIN inode_history h ON h.ino=t.ino AND h."end">=? GROUP BY h.ino`,
		func(st *sqlite.Stmt) error {
			if t, ok := out[st.ColumnInt64(0)]; ok && st.ColumnInt64(1) <= t.rev {
				delete(out, st.ColumnInt64(0))
			}
			return nil
		}, r.first)
	return out, err
}

// directories counts entries and links anew and sets revision and times. The
// revision is that of the newest change of its names or of itself that stays.
func (r *rewinder) directories(when map[int64]times) error {
	if err := r.exec(`UPDATE inodes SET
			entries=(SELECT count(*) FROM dentries d WHERE d.parent=inodes.ino),
			nlink=iif(nlink>0,2+(SELECT count(*) FROM dentries d WHERE d.parent=inodes.ino AND d.type=4),0),
			rev=max(content_rev,
				coalesce((SELECT max(d.begin) FROM dentries d WHERE d.parent=inodes.ino),0),
				coalesce((SELECT max(h."end") FROM dentry_history h WHERE h.parent=inodes.ino),0),
				coalesce((SELECT max(h."end") FROM inode_history h WHERE h.ino=inodes.ino),0))
		WHERE ino IN (SELECT ino FROM touched) AND mode & 61440 = 16384`); err != nil {
		return err
	}
	for ino, t := range when {
		if err := r.exec(`UPDATE inodes SET mtime=?,ctime=? WHERE ino=? AND mode & 61440 = 16384`, t.mtime, t.ctime, ino); err != nil {
			return err
		}
	}
	// Hints point to where the names are again.
	for _, sql := range []string{
		`DROP TABLE IF EXISTS temp.hints`,
		`CREATE TEMP TABLE hints (ino INTEGER PRIMARY KEY, parent INTEGER, cookie INTEGER)`,
		`INSERT OR REPLACE INTO hints SELECT d.ino,d.parent,d.cookie FROM touched t CROSS JOIN dentries d ON d.parent=t.ino
			WHERE d.ino IN (SELECT ino FROM touched)`,
		`UPDATE inodes SET (parent,cookie)=(SELECT h.parent,h.cookie FROM hints h WHERE h.ino=inodes.ino)
			WHERE ino IN (SELECT ino FROM hints)`,
		`DROP TABLE temp.hints`,
	} {
		if err := r.exec(sql); err != nil {
			return err
		}
	}
	return nil
}

// usage adds up what the touched inodes count for.
func (r *rewinder) usage() (map[int64]usageDelta, error) {
	out := make(map[int64]usageDelta)
	err := r.w.each(`SELECT i.uid,count(*),sum(i.bytes) FROM touched t CROSS JOIN inodes i ON i.ino=t.ino WHERE i.nlink>0 GROUP BY i.uid`,
		func(st *sqlite.Stmt) error {
			out[st.ColumnInt64(0)] = usageDelta{st.ColumnInt64(0), st.ColumnInt64(1), st.ColumnInt64(2)}
			return nil
		})
	if err != nil {
		return nil, err
	}
	n, err := r.w.number(`SELECT coalesce((SELECT sum(i.bytes) FROM touched t CROSS JOIN inodes i ON i.ino=t.ino WHERE i.nlink=0),0)
		+coalesce((SELECT sum(h.len) FROM touched t CROSS JOIN extent_history h ON h.ino=t.ino),0)`)
	out[-1] = usageDelta{uid: -1, bytes: n}
	return out, err
}

// bookUsage books the difference that the rewind made.
func (r *rewinder) bookUsage(before map[int64]usageDelta) error {
	after, err := r.usage()
	if err != nil {
		return err
	}
	history := after[-1].bytes - before[-1].bytes
	delete(after, -1)
	delete(before, -1)
	t := r.s.newTx(&meta.Batch{})
	for uid, u := range after {
		t.addUsage(uid, u.inodes, u.bytes)
	}
	for uid, u := range before {
		t.addUsage(uid, -u.inodes, -u.bytes)
	}
	if err := t.writeUsage(); err != nil {
		return err
	}
	err = r.exec("UPDATE counters SET inodes=inodes+?,bytes=bytes+?,history=history+? WHERE zone=? AND kind=0 AND id=0",
		t.inodes, t.bytes, history, r.s.zone)
	if err == nil && r.w.Changes() != 1 {
		err = errors.New("the zone has no counters")
	}
	return err
}
