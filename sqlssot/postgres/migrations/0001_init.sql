-- The first schema: the tables and views of the store, as on SQLite. Every
-- inode number and every revision in these tables has the number of its zone in
-- the bits from 48 upward, so each key starts with its zone and rows of two
-- zones can never meet; the first zone of a database is number 0, so there the
-- numbers are what they look like. 0 stands for 'none' in every zone. Times are
-- nanoseconds since 1970. Names, values and every text that a caller chose are
-- bytea: compared as bytes, any byte allowed, whatever the database's collation.
--
-- The views below are the interface for users (docs/SQL.md); the tables are not.

CREATE TABLE schema_version (
  version bigint PRIMARY KEY,
  name    text NOT NULL,
  applied timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE zones (
  zone       bigint PRIMARY KEY,
  name       text COLLATE "C" NOT NULL UNIQUE,
  epoch      bigint NOT NULL,            -- raised when revisions were lost (P15)
  policy_rev bigint NOT NULL DEFAULT 0,  -- revision of the rights
  next_ino   bigint NOT NULL,            -- first inode number that was never handed out
  created    bigint NOT NULL,
  indexed    bigint NOT NULL,            -- newest revision that record_index covers
  uid        uuid NOT NULL DEFAULT gen_random_uuid(), -- the same in no other database
  content    text COLLATE "C" NOT NULL DEFAULT ''     -- where its content lies, as its first mount said
);

-- Kind 0: the zone's head and totals (id 0). Kind 1: usage per uid (id = uid).
-- Kind 2: usage per quota root (id = inode). The zone's row of kind 0 is what
-- everything that changes a zone locks first (DESIGN.md). These rows change with
-- every commit and no index covers what changes: room on the page keeps their
-- updates off the index.
CREATE TABLE counters (
  zone     bigint NOT NULL,
  kind     bigint NOT NULL,
  id       bigint NOT NULL,
  inodes   bigint NOT NULL DEFAULT 0,    -- with at least one name
  bytes    bigint NOT NULL DEFAULT 0,    -- held by current extents of inodes that have a name
  history  bigint,                       -- kind 0: bytes held only by history
  rev      bigint,                       -- kind 0: newest revision
  head     bytea,                        -- its chain head
  barrier  bigint,                       -- everything up to here was durable (P22)
  reserved bigint,                       -- never issue a revision up to here after an unclean stop
  topology bigint,                       -- moves of directories so far (P3)
  sessions bigint,                       -- changes of the sessions table so far (P20)
  live     bigint,                       -- sessions that may commit
  PRIMARY KEY (zone, kind, id)
) WITH (fillfactor = 20);

-- No index covers a column that names move in their directory (rev, nlink,
-- entries, times): a directory's row takes an update per name in it.
CREATE TABLE inodes (
  ino         bigint PRIMARY KEY,
  mode        bigint NOT NULL,
  uid         bigint NOT NULL,
  gid         bigint NOT NULL,
  nlink       bigint NOT NULL,
  rdev        bigint NOT NULL,
  flags       bigint NOT NULL,
  size        bigint NOT NULL,
  bytes       bigint NOT NULL,
  entries     bigint NOT NULL,
  atime       bigint NOT NULL,
  mtime       bigint NOT NULL,
  ctime       bigint NOT NULL,
  btime       bigint NOT NULL,
  parent      bigint NOT NULL,           -- of a directory: its parent; else where its newest name was made, a hint
  cookie      bigint NOT NULL,           -- of that name, a hint
  creator     bigint NOT NULL,           -- uid, -1 unknown (P32)
  rev         bigint NOT NULL,           -- last change of the inode
  content_rev bigint NOT NULL,           -- last change of the content; of a directory: its creation
  version     bigint NOT NULL,
  target      bytea                      -- of a symbolic link
) WITH (fillfactor = 85);

-- Inodes without names, by age; born says that there was a name once (else O_TMPFILE).
CREATE TABLE nameless (
  ino  bigint PRIMARY KEY,
  rev  bigint NOT NULL,                  -- as in inodes
  born boolean NOT NULL
);
CREATE INDEX nameless_age ON nameless (rev);
CREATE INDEX nameless_unborn ON nameless (rev) WHERE NOT born;

-- The image of an inode that was current until the operation at revision "end".
CREATE TABLE inode_history (
  ino bigint NOT NULL, "end" bigint NOT NULL,
  mode bigint NOT NULL, uid bigint NOT NULL, gid bigint NOT NULL, nlink bigint NOT NULL,
  rdev bigint NOT NULL, flags bigint NOT NULL, size bigint NOT NULL, bytes bigint NOT NULL,
  entries bigint NOT NULL, atime bigint NOT NULL, mtime bigint NOT NULL, ctime bigint NOT NULL,
  btime bigint NOT NULL, parent bigint NOT NULL, cookie bigint NOT NULL, creator bigint NOT NULL,
  rev bigint NOT NULL, content_rev bigint NOT NULL, version bigint NOT NULL, target bytea,
  PRIMARY KEY (ino, "end")
);

CREATE TABLE dentries (
  parent bigint NOT NULL,
  cookie bigint NOT NULL,                -- function of the name; orders listings
  name   bytea NOT NULL,
  ino    bigint NOT NULL,
  type   bigint NOT NULL,                -- file type bits >> 12, as d_type: 4 directory, 8 file
  begin  bigint NOT NULL,
  PRIMARY KEY (parent, cookie, name)
);

CREATE TABLE dentry_history (
  parent bigint NOT NULL, cookie bigint NOT NULL, name bytea NOT NULL, "end" bigint NOT NULL,
  ino bigint NOT NULL, type bigint NOT NULL, begin bigint NOT NULL,
  PRIMARY KEY (parent, cookie, name, "end")
);

CREATE TABLE xattrs (
  ino bigint NOT NULL, name bytea NOT NULL, value bytea NOT NULL, begin bigint NOT NULL,
  PRIMARY KEY (ino, name)
);

CREATE TABLE xattr_history (
  ino bigint NOT NULL, name bytea NOT NULL, "end" bigint NOT NULL, value bytea NOT NULL, begin bigint NOT NULL,
  PRIMARY KEY (ino, name, "end")
);

-- Content: [off, off+len) of a file are the bytes from blob_off on of a blob.
CREATE TABLE extents (
  ino bigint NOT NULL, off bigint NOT NULL, len bigint NOT NULL,
  blob bigint NOT NULL, blob_off bigint NOT NULL, begin bigint NOT NULL,
  PRIMARY KEY (ino, off)
);

CREATE TABLE extent_history (
  ino bigint NOT NULL, off bigint NOT NULL, "end" bigint NOT NULL, len bigint NOT NULL,
  blob bigint NOT NULL, blob_off bigint NOT NULL, begin bigint NOT NULL,
  PRIMARY KEY (ino, off, "end")
);

-- refs counts the rows of extents and extent_history that use the blob.
CREATE TABLE blobs (
  blob      bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  zone      bigint NOT NULL,
  id        bytea NOT NULL,
  size      bigint NOT NULL,
  place     bigint NOT NULL,             -- 0 here, 1 in a pack segment, 2 a file of its own
  segment   bigint NOT NULL,
  "offset"  bigint NOT NULL,
  refs      bigint NOT NULL,
  condemned bigint,                      -- time; NULL while in use (P28)
  removing  bigint NOT NULL DEFAULT 0,   -- 1: its bytes are being removed
  data      bytea                        -- the bytes, at place 0
);
ALTER TABLE blobs ALTER COLUMN data SET STORAGE EXTERNAL; -- compressing costs more than it saves
CREATE UNIQUE INDEX blobs_id ON blobs (id, zone);
CREATE INDEX blobs_unused ON blobs (zone, condemned) WHERE refs = 0;

-- Version 1 of a file that was created empty has no row until the file
-- changes: it is implied by inodes.version = 1.
CREATE TABLE version_rows (
  ino bigint NOT NULL, n bigint NOT NULL,
  first_rev bigint NOT NULL, rev bigint NOT NULL, size bigint NOT NULL,
  actor bigint, time bigint NOT NULL,
  PRIMARY KEY (ino, n)
);

CREATE TABLE operation_records (
  rev        bigint PRIMARY KEY,
  kind       bigint NOT NULL,
  ino        bigint NOT NULL,
  parent     bigint NOT NULL,
  name       bytea,
  new_parent bigint NOT NULL,
  new_name   bytea,
  time       bigint NOT NULL,
  actor      bigint NOT NULL,
  version    bigint NOT NULL,
  size       bigint NOT NULL,
  session    bigint NOT NULL,
  seq        bigint NOT NULL,
  before     text COLLATE "C",
  after      text COLLATE "C",
  digest     bytea NOT NULL,
  batch      bigint,                     -- on the last record of a batch: how many records it has
  head       bytea                       -- and the chain head after it (P4)
);

-- Numbers of actors, handed to daemons in blocks.
CREATE SEQUENCE actor_blocks;
CREATE TABLE actors (
  actor  bigint PRIMARY KEY,
  uid bigint NOT NULL, gid bigint NOT NULL, pid bigint NOT NULL, start bigint NOT NULL,
  exe bytea NOT NULL, cgroup bytea NOT NULL, node bytea NOT NULL, agent bytea NOT NULL, task bytea NOT NULL
);

CREATE TABLE session_rows (
  session    bigint PRIMARY KEY,
  epoch      bigint NOT NULL,
  node       bytea NOT NULL,
  pid        bigint NOT NULL,
  boot_id    bytea NOT NULL,
  mountpoint bytea NOT NULL,
  lease      bigint NOT NULL,            -- ns; 0: it has the zone to itself and no lease
  started    bigint NOT NULL,
  ended      bigint,
  fenced     bigint NOT NULL DEFAULT 0,
  until      bigint NOT NULL DEFAULT 0,  -- end of the lease by the server's clock; 0: none
  shared     boolean NOT NULL DEFAULT false, -- it said that it keeps nothing cached that others may change
  seq        bigint NOT NULL DEFAULT 0,  -- number of its newest batch, settled for good (P5)
  outcome    bigint[]                    -- of that batch as commit_batch returned it; NULL: abandoned
) WITH (fillfactor = 50);

CREATE TABLE late_answers (
  rev bigint NOT NULL, reason text NOT NULL, time bigint NOT NULL,
  PRIMARY KEY (rev, reason)
);

-- Where records were pruned: the chain head after the last of them (P33).
CREATE TABLE chain_seals (
  rev bigint PRIMARY KEY, head bytea NOT NULL, time bigint NOT NULL
);

-- Which records concern an inode. Filled in bulk away from the commit path, up
-- to zones.indexed; records behind that are found by reading them.
CREATE TABLE record_index (
  ino bigint NOT NULL, rev bigint NOT NULL,
  PRIMARY KEY (ino, rev)
);

CREATE TABLE operation_kinds (kind bigint PRIMARY KEY, name text NOT NULL);

-- Text as users see it. Bytes that are no UTF-8 are shown as octal escapes, for
-- text here cannot hold them.
CREATE FUNCTION odd_text(b bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
  RETURN convert_from(b, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
  RETURN encode(b, 'escape');
END $$;

CREATE FUNCTION as_text(b bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN CASE WHEN octet_length(encode(b, 'escape')) = octet_length(b) THEN encode(b, 'escape') ELSE odd_text(b) END;

CREATE FUNCTION as_time(ns bigint) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN to_char(timestamp '1970-01-01' + make_interval(secs => (ns - mod(mod(ns, 1000000000) + 1000000000, 1000000000)) / 1000000000),
    'YYYY-MM-DD"T"HH24:MI:SS') || '.' || lpad(mod(mod(ns, 1000000000) + 1000000000, 1000000000)::text, 9, '0') || 'Z';

CREATE FUNCTION as_type(type bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE type WHEN 1 THEN 'fifo' WHEN 2 THEN 'char' WHEN 4 THEN 'dir' WHEN 6 THEN 'block'
    WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' WHEN 12 THEN 'socket' END;

-- Views for users. Revisions and inode numbers are shown without their zone.
-- Text compares as bytes, as on SQLite.

-- The zones that the views below show: all, or the one that nexusfs.zone names,
-- which `nexusfs sql` sets.
CREATE VIEW shown_zones AS
SELECT zone, name FROM zones WHERE name = coalesce(nullif(current_setting('nexusfs.zone', true), ''), name);

CREATE VIEW versions AS
SELECT z.name AS zone, v.ino & 281474976710655 AS ino, v.n AS version,
  v.first_rev & 281474976710655 AS first_revision, v.rev & 281474976710655 AS revision,
  v.size AS size, as_time(v.time) COLLATE "C" AS time,
  a.uid AS uid, as_text(a.exe) COLLATE "C" AS exe, as_text(a.agent) COLLATE "C" AS agent
FROM version_rows v JOIN shown_zones z ON z.zone = v.ino >> 48 LEFT JOIN actors a ON a.actor = v.actor
UNION ALL
SELECT z.name, i.ino & 281474976710655, 1, i.content_rev & 281474976710655, i.content_rev & 281474976710655, i.size,
  as_time(i.btime) COLLATE "C", a.uid, as_text(a.exe) COLLATE "C", as_text(a.agent) COLLATE "C"
FROM inodes i JOIN shown_zones z ON z.zone = i.ino >> 48
LEFT JOIN operation_records r ON r.rev = i.content_rev LEFT JOIN actors a ON a.actor = r.actor
WHERE i.version = 1 AND NOT EXISTS (SELECT 1 FROM version_rows v WHERE v.ino = i.ino);

CREATE VIEW operations AS
SELECT z.name AS zone, r.rev & 281474976710655 AS revision, as_time(r.time) COLLATE "C" AS time,
  coalesce(k.name, r.kind::text) COLLATE "C" AS kind, r.ino & 281474976710655 AS ino,
  nullif(r.parent & 281474976710655, 0) AS parent, as_text(r.name) COLLATE "C" AS name,
  nullif(r.new_parent & 281474976710655, 0) AS new_parent, as_text(r.new_name) COLLATE "C" AS new_name,
  a.uid AS uid, a.gid AS gid, a.pid AS pid, as_text(a.exe) COLLATE "C" AS exe, as_text(a.cgroup) COLLATE "C" AS cgroup,
  as_text(a.node) COLLATE "C" AS node, as_text(a.agent) COLLATE "C" AS agent, as_text(a.task) COLLATE "C" AS task,
  nullif(r.version, 0) AS version, r.size AS size, r.before AS before, r.after AS after,
  r.session AS session, r.seq AS seq, encode(r.digest, 'hex') COLLATE "C" AS digest,
  (SELECT string_agg(l.reason, '; ') FROM late_answers l WHERE l.rev = r.rev) COLLATE "C" AS not_acknowledged
FROM operation_records r JOIN shown_zones z ON z.zone = r.rev >> 48
LEFT JOIN operation_kinds k ON k.kind = r.kind LEFT JOIN actors a ON a.actor = r.actor;

CREATE VIEW batches AS
SELECT z.name AS zone, (rev & 281474976710655) - batch + 1 AS first_revision, rev & 281474976710655 AS revision,
  batch AS count, encode(head, 'hex') COLLATE "C" AS head
FROM operation_records JOIN shown_zones z ON z.zone = rev >> 48 WHERE head IS NOT NULL;

CREATE VIEW files AS
WITH RECURSIVE tree(zone, ino, path) AS (
  SELECT name, zone << 48 | 1, ''::bytea FROM shown_zones
  UNION ALL
  SELECT t.zone, d.ino, t.path || '/'::bytea || d.name FROM tree t JOIN dentries d ON d.parent = t.ino
)
SELECT t.zone AS zone, as_text(CASE t.path WHEN ''::bytea THEN '/'::bytea ELSE t.path END) COLLATE "C" AS path,
  i.ino & 281474976710655 AS ino, as_type(i.mode >> 12) COLLATE "C" AS type,
  lpad(((i.mode >> 9) & 7)::text || ((i.mode >> 6) & 7)::text || ((i.mode >> 3) & 7)::text || (i.mode & 7)::text, 4, '0') COLLATE "C" AS mode,
  i.uid AS uid, i.gid AS gid, i.nlink AS nlink, i.size AS size, i.bytes AS bytes, i.entries AS entries,
  as_time(i.mtime) COLLATE "C" AS mtime, as_time(i.ctime) COLLATE "C" AS ctime, as_time(i.btime) COLLATE "C" AS btime,
  i.rev & 281474976710655 AS revision, nullif(i.version, 0) AS version, as_text(i.target) COLLATE "C" AS target
FROM tree t JOIN inodes i ON i.ino = t.ino;

CREATE VIEW history AS
SELECT z.name AS zone, d.parent & 281474976710655 AS parent, as_text(d.name) COLLATE "C" AS name, d.ino & 281474976710655 AS ino,
  CASE d.type WHEN 4 THEN 'dir' WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' ELSE 'special' END COLLATE "C" AS type,
  d.begin & 281474976710655 AS first_revision, NULL::bigint AS end_revision
FROM dentries d JOIN shown_zones z ON z.zone = d.parent >> 48
UNION ALL
SELECT z.name, d.parent & 281474976710655, as_text(d.name) COLLATE "C", d.ino & 281474976710655,
  CASE d.type WHEN 4 THEN 'dir' WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' ELSE 'special' END COLLATE "C",
  d.begin & 281474976710655, d."end" & 281474976710655
FROM dentry_history d JOIN shown_zones z ON z.zone = d.parent >> 48;

CREATE VIEW deleted AS
SELECT z.name AS zone, h.parent & 281474976710655 AS parent, as_text(h.name) COLLATE "C" AS name, h.ino & 281474976710655 AS ino,
  i.size AS size, nullif(i.version, 0) AS version, h."end" & 281474976710655 AS revision,
  as_time(coalesce(r.time, i.ctime)) COLLATE "C" AS time, a.uid AS uid, as_text(a.exe) COLLATE "C" AS exe, as_text(a.agent) COLLATE "C" AS agent
FROM (SELECT parent, cookie, name, ino, max("end") AS "end" FROM dentry_history GROUP BY parent, cookie, name, ino) h
JOIN inodes i ON i.ino = h.ino AND i.nlink = 0 JOIN shown_zones z ON z.zone = h.parent >> 48
LEFT JOIN operation_records r ON r.rev = h."end" LEFT JOIN actors a ON a.actor = r.actor;

CREATE VIEW content AS
SELECT z.name AS zone, e.ino & 281474976710655 AS ino, e.off AS "offset", e.len AS length, encode(b.id, 'hex') COLLATE "C" AS blob,
  e.blob_off AS blob_offset, e.begin & 281474976710655 AS first_revision, NULL::bigint AS end_revision
FROM extents e JOIN blobs b ON b.blob = e.blob JOIN shown_zones z ON z.zone = e.ino >> 48
UNION ALL
SELECT z.name, e.ino & 281474976710655, e.off, e.len, encode(b.id, 'hex') COLLATE "C", e.blob_off,
  e.begin & 281474976710655, e."end" & 281474976710655
FROM extent_history e JOIN blobs b ON b.blob = e.blob JOIN shown_zones z ON z.zone = e.ino >> 48;

CREATE VIEW usage AS
SELECT z.name AS zone, CASE kind WHEN 0 THEN 'zone' WHEN 1 THEN 'user' ELSE 'quota' END COLLATE "C" AS scope,
  CASE kind WHEN 0 THEN NULL ELSE id END AS id, inodes, bytes, history AS history_bytes
FROM counters c JOIN shown_zones z ON z.zone = c.zone;

CREATE VIEW sessions AS
SELECT z.name AS zone, session & 281474976710655 AS session, s.epoch AS epoch, as_text(node) COLLATE "C" AS node, pid,
  as_text(mountpoint) COLLATE "C" AS mountpoint, substr(as_time(started), 1, 19) || 'Z' COLLATE "C" AS started,
  substr(as_time(ended), 1, 19) || 'Z' COLLATE "C" AS ended, fenced
FROM session_rows s JOIN shown_zones z ON z.zone = s.session >> 48;

-- Who may do what, for the roles that roles.sql makes, where they exist: the
-- daemon writes rows and calls functions, the reader sees the views and nothing
-- else. Run after every migration.
CREATE FUNCTION grant_roles() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v record;
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nexusfs_daemon') THEN
    GRANT USAGE ON SCHEMA nexusfs TO nexusfs_daemon;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nexusfs TO nexusfs_daemon;
    REVOKE INSERT, UPDATE, DELETE ON nexusfs.schema_version FROM nexusfs_daemon;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA nexusfs TO nexusfs_daemon;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nexusfs_reader') THEN
    GRANT USAGE ON SCHEMA nexusfs TO nexusfs_reader;
    FOR v IN SELECT viewname FROM pg_views WHERE schemaname = 'nexusfs' LOOP
      EXECUTE format('GRANT SELECT ON nexusfs.%I TO nexusfs_reader', v.viewname);
    END LOOP;
  END IF;
END $$;
