package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// check is one comparison: rows of its query are findings. The query's columns
// are inode, revision and the values for text; its parameters $1 and $2 the
// zone's first and last key, $3 the zone's number.
type check struct {
	name string
	text string
	sql  string
	with string // a further common table expression, ", name AS (...)"
}

const isDir = `mode & 61440 = 16384`

var checks = []check{
	{"dentry-without-inode", "the name %q in directory %d refers to inode %d, which does not exist",
		`SELECT d.ino,d.begin,d.name,d.parent,d.ino FROM dentries d LEFT JOIN inodes i ON i.ino=d.ino
		WHERE d.parent BETWEEN $1 AND $2 AND i.ino IS NULL`, ""},
	{"dentry-to-unlinked", "the name %q in directory %d refers to an inode without links",
		`SELECT d.ino,d.begin,d.name,d.parent FROM dentries d JOIN inodes i ON i.ino=d.ino
		WHERE d.parent BETWEEN $1 AND $2 AND i.nlink=0`, ""},
	{"dentry-in-nothing", "the name %q lies in %d, which is not a living directory",
		`SELECT d.parent,d.begin,d.name,d.parent FROM dentries d LEFT JOIN inodes i ON i.ino=d.parent
		WHERE d.parent BETWEEN $1 AND $2 AND (i.ino IS NULL OR i.nlink=0 OR NOT i.` + isDir + `)`, ""},
	{"dentry-type", "the name %q says type %d, its inode %d",
		`SELECT d.ino,d.begin,d.name,d.type,i.mode>>12 FROM dentries d JOIN inodes i ON i.ino=d.ino
		WHERE d.parent BETWEEN $1 AND $2 AND d.type<>i.mode>>12`, ""},
	{"directory-entries", "the directory counts %d entries and %d links, it has %d and %d",
		`SELECT i.ino,i.rev,i.entries,i.nlink,coalesce(n.names,0),2+coalesce(n.dirs,0) FROM inodes i
		LEFT JOIN (SELECT parent,count(*) AS names,count(*) FILTER (WHERE type=4) AS dirs FROM dentries WHERE parent BETWEEN $1 AND $2 GROUP BY parent) n ON n.parent=i.ino
		WHERE i.ino BETWEEN $1 AND $2 AND i.nlink>0 AND i.` + isDir + ` AND (i.entries<>coalesce(n.names,0) OR i.nlink<>2+coalesce(n.dirs,0))`, ""},
	{"directory-parent", "the directory's parent is %d, but %d names there refer to it",
		`SELECT i.ino,i.rev,i.parent,count(d.ino) FROM inodes i LEFT JOIN dentries d ON d.parent=i.parent AND d.cookie=i.cookie AND d.ino=i.ino
		WHERE i.ino BETWEEN $1+2 AND $2 AND i.nlink>0 AND i.` + isDir + ` GROUP BY i.ino HAVING count(d.ino)<>1`, ""},
	{"links", "the inode counts %d links, %d names refer to it",
		`SELECT i.ino,i.rev,i.nlink,coalesce(n.names,0) FROM inodes i
		LEFT JOIN (SELECT ino,count(*) AS names FROM dentries WHERE parent BETWEEN $1 AND $2 GROUP BY ino) n ON n.ino=i.ino
		WHERE i.ino BETWEEN $1 AND $2 AND i.ino<>$1+1
		AND CASE WHEN i.` + isDir + ` THEN least(i.nlink,1) ELSE i.nlink END<>coalesce(n.names,0)`, ""},
	{"nameless", "the inode has %d links, the list of inodes without names says otherwise",
		`SELECT coalesce(i.ino,o.ino),coalesce(i.rev,o.rev),coalesce(i.nlink,-1) FROM (SELECT * FROM inodes WHERE ino BETWEEN $1 AND $2) i
		FULL JOIN (SELECT * FROM nameless WHERE ino BETWEEN $1 AND $2) o ON o.ino=i.ino
		WHERE i.ino IS NULL OR (i.nlink=0)<>(o.ino IS NOT NULL) OR o.ino IS NOT NULL AND (o.rev<>i.rev OR o.born<>(i.cookie<>0))`, ""},
	{"inode-number", "the inode's number was never handed out (the next one is %d)",
		`SELECT i.ino,i.rev,z.next_ino FROM inodes i JOIN zones z ON z.zone=$3 WHERE i.ino BETWEEN $1 AND $2 AND i.ino>=$1+z.next_ino`, ""},
	{"inode-revision", "the inode is of revision %d, the zone's newest is %d",
		`SELECT i.ino,i.rev,i.rev,c.rev FROM inodes i JOIN counters c ON c.zone=$3 AND c.kind=0 WHERE i.ino BETWEEN $1 AND $2 AND i.rev>c.rev`, ""},
	{"extent-without-inode", "an extent at offset %d belongs to no file",
		`SELECT e.ino,e.begin,e.off FROM extents e LEFT JOIN inodes i ON i.ino=e.ino
		WHERE e.ino BETWEEN $1 AND $2 AND (i.ino IS NULL OR i.mode & 61440<>32768)`, ""},
	{"extent-past-end", "the extent at offset %d ends at %d, the file at %d",
		`SELECT e.ino,e.begin,e.off,e.off+e.len,i.size FROM extents e JOIN inodes i ON i.ino=e.ino
		WHERE e.ino BETWEEN $1 AND $2 AND e.off+e.len>i.size`, ""},
	{"extent-overlap", "the extent at offset %d reaches over the one at offset %d",
		`SELECT ino,begin,off,after FROM (SELECT ino,begin,off,len,lead(off) OVER (PARTITION BY ino ORDER BY off) AS after FROM extents
		WHERE ino BETWEEN $1 AND $2) x WHERE after<off+len OR len<=0`, ""},
	{"extent-without-blob", "the extent at offset %d refers to a blob that has no row",
		`SELECT e.ino,e.begin,e.off FROM (SELECT ino,off,begin,blob FROM extents UNION ALL SELECT ino,off,begin,blob FROM extent_history) e
		LEFT JOIN blobs b ON b.blob=e.blob AND b.zone=$3 WHERE e.ino BETWEEN $1 AND $2 AND b.blob IS NULL`, ""},
	{"extent-outside-blob", "the extent at offset %d reaches out of its blob (%d+%d of %d bytes)",
		`SELECT e.ino,e.begin,e.off,e.blob_off,e.len,b.size FROM (SELECT ino,off,len,blob_off,begin,blob FROM extents UNION ALL
		SELECT ino,off,len,blob_off,begin,blob FROM extent_history) e JOIN blobs b ON b.blob=e.blob
		WHERE e.ino BETWEEN $1 AND $2 AND (e.blob_off<0 OR e.blob_off+e.len>b.size)`, ""},
	{"bytes", "the inode counts %d bytes, its extents hold %d",
		`SELECT i.ino,i.rev,i.bytes,coalesce(x.n,0) FROM inodes i LEFT JOIN (SELECT ino,sum(len)::bigint AS n FROM extents WHERE ino BETWEEN $1 AND $2
		GROUP BY ino) x ON x.ino=i.ino WHERE i.ino BETWEEN $1 AND $2 AND i.bytes<>coalesce(x.n,0)`, ""},
	{"blob-references", "blob %x counts %d references, it has %d",
		`SELECT 0::bigint,0::bigint,b.id,b.refs,coalesce(x.n,0) FROM blobs b LEFT JOIN (SELECT blob,count(*) AS n FROM
		(SELECT blob FROM extents UNION ALL SELECT blob FROM extent_history) y GROUP BY blob) x ON x.blob=b.blob
		WHERE b.zone=$3 AND b.refs<>coalesce(x.n,0)`, ""},
	{"blob-condemned", "blob %x is condemned and has %d references",
		`SELECT 0::bigint,0::bigint,id,refs FROM blobs WHERE zone=$3 AND condemned IS NOT NULL AND refs>0`, ""},
	{"blob-data", "blob %x is said to lie here with %d bytes and has %d",
		`SELECT 0::bigint,0::bigint,id,size,coalesce(length(data),0) FROM blobs WHERE zone=$3 AND place=0 AND length(data) IS DISTINCT FROM size`, ""},
	{"version", "the inode is at version %d, the newest row is version %d",
		`SELECT i.ino,i.rev,i.version,v.n FROM inodes i JOIN (SELECT ino,max(n) AS n FROM version_rows WHERE ino BETWEEN $1 AND $2 GROUP BY ino) v
		ON v.ino=i.ino WHERE i.version<>v.n`, ""},
	{"version-without-inode", "version %d belongs to no inode",
		`SELECT v.ino,v.rev,v.n FROM version_rows v LEFT JOIN inodes i ON i.ino=v.ino WHERE v.ino BETWEEN $1 AND $2 AND i.ino IS NULL`, ""},
	{"xattr-without-inode", "the attribute %q belongs to no inode",
		`SELECT x.ino,x.begin,x.name FROM xattrs x LEFT JOIN inodes i ON i.ino=x.ino WHERE x.ino BETWEEN $1 AND $2 AND i.ino IS NULL`, ""},
	{"xattr-flag", "the inode's flags say %d about attributes, it has %d",
		`SELECT i.ino,i.rev,i.flags&1,coalesce(x.n,0) FROM inodes i LEFT JOIN (SELECT ino,count(*) AS n FROM xattrs WHERE ino BETWEEN $1 AND $2 GROUP BY ino) x
		ON x.ino=i.ino WHERE i.ino BETWEEN $1 AND $2 AND (i.flags&1=1)<>(coalesce(x.n,0)>0)`, ""},
	{"usage-user", "user %d counts %d inodes and %d bytes, it has %d and %d",
		`SELECT 0::bigint,0::bigint,coalesce(c.id,i.uid),coalesce(c.inodes,0),coalesce(c.bytes,0),coalesce(i.n,0),coalesce(i.b,0)
		FROM (SELECT id,inodes,bytes FROM counters WHERE zone=$3 AND kind=1) c
		FULL JOIN (SELECT uid,count(*) AS n,sum(bytes)::bigint AS b FROM inodes WHERE nlink>0 AND ino BETWEEN $1 AND $2 GROUP BY uid) i ON i.uid=c.id
		WHERE coalesce(c.inodes,0)<>coalesce(i.n,0) OR coalesce(c.bytes,0)<>coalesce(i.b,0)`, ""},
	{"usage-zone", "the zone counts %d inodes, %d bytes and %d bytes of history, it has %d, %d and %d",
		`SELECT 0::bigint,0::bigint,c.inodes,c.bytes,c.history,i.n,i.b,i.h+x.h FROM counters c,
		(SELECT count(*) FILTER (WHERE nlink>0) AS n,coalesce(sum(bytes) FILTER (WHERE nlink>0),0)::bigint AS b,
			coalesce(sum(bytes) FILTER (WHERE nlink=0),0)::bigint AS h FROM inodes WHERE ino BETWEEN $1 AND $2) i,
		(SELECT coalesce(sum(len),0)::bigint AS h FROM extent_history WHERE ino BETWEEN $1 AND $2) x
		WHERE c.zone=$3 AND c.kind=0 AND (c.inodes<>i.n OR c.bytes<>i.b OR c.history<>i.h+x.h)`, ""},
	{"unreachable", "the directory cannot be reached from the root",
		`SELECT ino,0::bigint FROM (SELECT ino FROM inodes WHERE ino BETWEEN $1 AND $2 AND nlink>0 AND ` + isDir + ` EXCEPT SELECT ino FROM tree) x`,
		`, tree(ino) AS (SELECT $1+1 UNION SELECT d.ino FROM tree t JOIN dentries d ON d.parent=t.ino AND d.type=4)`},
	{"record-of-inode", "revision %d made the inode and has no record",
		`SELECT i.ino,i.rev,i.rev FROM inodes i LEFT JOIN operation_records r ON r.rev=i.rev WHERE i.ino BETWEEN $1 AND $2 AND r.rev IS NULL
		AND i.rev>coalesce((SELECT max(rev) FROM chain_seals WHERE rev BETWEEN $1 AND $2),$1) AND NOT i.` + isDir, ""},
}

// Verify implements meta.Upkeep. Each check reads one state of the database;
// between two checks commits may change it, which is no finding. The names of
// the checks are stable. It reads everything: minutes for millions of files.
func (s *Store) Verify(ctx context.Context, report func(meta.Finding)) error {
	for i := range checks {
		ch := &checks[i]
		err := s.scan(ctx, "verify", 0, func(tx pgx.Tx) error { return s.runCheck(ctx, tx, ch, report) })
		if err != nil {
			return fmt.Errorf("check %s: %w", ch.name, err)
		}
	}
	if err := s.verifyCookies(ctx, report); err != nil {
		return err
	}
	_, err := s.VerifyChain(ctx, 1, report)
	return err
}

func (s *Store) runCheck(ctx context.Context, tx pgx.Tx, ch *check, report func(meta.Finding)) error {
	// Every check has the same parameters, used or not: their types are said once.
	sql := `WITH RECURSIVE zone AS (SELECT $1::bigint,$2::bigint,$3::bigint)` + ch.with + ` ` + ch.sql
	return each(ctx, tx, sql, func(rows pgx.Rows) error {
		values, err := rows.Values()
		if err != nil {
			return err
		}
		ino, _ := values[0].(int64)
		rev, _ := values[1].(int64)
		vals := values[2:]
		for i, v := range vals {
			switch v := v.(type) {
			case int64:
				if v&^keyMask == s.base {
					vals[i] = unk(v) // a key
				}
			case int32:
				vals[i] = int64(v)
			}
		}
		report(meta.Finding{Check: ch.name, Ino: meta.Ino(unk(ino)), Rev: meta.Rev(unk(rev)), Text: fmt.Sprintf(ch.text, vals...)})
		return nil
	}, s.base, s.base|keyMask, s.zone)
}

// verifyCookies recomputes where each name belongs in its directory's order: a
// name at another place cannot be looked up.
func (s *Store) verifyCookies(ctx context.Context, report func(meta.Finding)) error {
	return s.scan(ctx, "verify", 0, func(tx pgx.Tx) error {
		return each(ctx, tx, `SELECT ino,begin,parent,cookie,name FROM dentries WHERE parent BETWEEN $1 AND $2`, func(rows pgx.Rows) error {
			var ino, begin, parent, cookie int64
			var name []byte
			if err := rows.Scan(&ino, &begin, &parent, &cookie, &name); err != nil {
				return err
			}
			if uint64(cookie) != meta.NameCookie(string(name)) {
				report(meta.Finding{Check: "dentry-cookie", Ino: meta.Ino(unk(ino)), Rev: meta.Rev(unk(begin)),
					Text: fmt.Sprintf("the name %q in directory %d cannot be found by its name", name, unk(parent))})
			}
			return nil
		}, s.base, s.base|keyMask)
	})
}
