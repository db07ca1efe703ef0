-- The first schema. Every inode number and every revision in these tables has
-- the number of its zone in the bits from 48 upward, so each key starts with
-- its zone and rows of two zones can never meet; the first zone of a database
-- is number 0, so there the numbers are what they look like. 0 stands for
-- 'none' in every zone. Times are nanoseconds since 1970. Names and values are
-- blobs: compared as bytes, any byte allowed.
--
-- The views below are the interface for users (docs/SQL.md); the tables are not.

CREATE TABLE zones (
  zone       INTEGER PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,
  epoch      INTEGER NOT NULL,            -- raised when revisions were lost (P15)
  policy_rev INTEGER NOT NULL DEFAULT 0,  -- revision of the rights
  next_ino   INTEGER NOT NULL,            -- first inode number that was never handed out
  created    INTEGER NOT NULL,
  indexed    INTEGER NOT NULL             -- newest revision that record_index covers
);

-- Kind 0: the zone's head and totals (id 0). Kind 1: usage per uid (id = uid).
-- Kind 2: usage per quota root (id = inode). One table, so that the counters
-- of a commit are one page.
CREATE TABLE counters (
  zone     INTEGER NOT NULL,
  kind     INTEGER NOT NULL,
  id       INTEGER NOT NULL,
  inodes   INTEGER NOT NULL DEFAULT 0,    -- with at least one name
  bytes    INTEGER NOT NULL DEFAULT 0,    -- held by current extents of inodes that have a name
  history  INTEGER,                       -- kind 0: bytes held only by history
  rev      INTEGER,                       -- kind 0: newest revision
  head     BLOB,                          -- its chain head
  barrier  INTEGER,                       -- everything up to here was durable (P22)
  reserved INTEGER,                       -- never issue a revision up to here after an unclean stop
  topology INTEGER,                       -- moves of directories so far (P3)
  sessions INTEGER,                       -- changes of the sessions table so far (P20)
  PRIMARY KEY (zone, kind, id)
) WITHOUT ROWID;

CREATE TABLE inodes (
  ino         INTEGER PRIMARY KEY,
  mode        INTEGER NOT NULL,
  uid         INTEGER NOT NULL,
  gid         INTEGER NOT NULL,
  nlink       INTEGER NOT NULL,
  rdev        INTEGER NOT NULL,
  flags       INTEGER NOT NULL,
  size        INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,
  entries     INTEGER NOT NULL,
  atime       INTEGER NOT NULL,
  mtime       INTEGER NOT NULL,
  ctime       INTEGER NOT NULL,
  btime       INTEGER NOT NULL,
  parent      INTEGER NOT NULL,           -- of a directory: its parent; else where its newest name was made, a hint
  cookie      INTEGER NOT NULL,           -- of that name, a hint
  creator     INTEGER NOT NULL,           -- uid, -1 unknown (P32)
  rev         INTEGER NOT NULL,           -- last change of the inode
  content_rev INTEGER NOT NULL,           -- last change of the content; of a directory: its creation
  version     INTEGER NOT NULL,
  target      BLOB                        -- of a symbolic link
);
-- What has no name: by age, and what never had one (O_TMPFILE).
CREATE INDEX inodes_unnamed ON inodes (rev) WHERE nlink = 0;
CREATE INDEX inodes_never_named ON inodes (rev) WHERE nlink = 0 AND cookie = 0;

-- The image of an inode that was current until the operation at revision "end".
CREATE TABLE inode_history (
  ino INTEGER NOT NULL, "end" INTEGER NOT NULL,
  mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL,
  rdev INTEGER NOT NULL, flags INTEGER NOT NULL, size INTEGER NOT NULL, bytes INTEGER NOT NULL,
  entries INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
  btime INTEGER NOT NULL, parent INTEGER NOT NULL, cookie INTEGER NOT NULL, creator INTEGER NOT NULL,
  rev INTEGER NOT NULL, content_rev INTEGER NOT NULL, version INTEGER NOT NULL, target BLOB,
  PRIMARY KEY (ino, "end")
) WITHOUT ROWID;

CREATE TABLE dentries (
  parent INTEGER NOT NULL,
  cookie INTEGER NOT NULL,                -- function of the name; orders listings
  name   BLOB NOT NULL,
  ino    INTEGER NOT NULL,
  type   INTEGER NOT NULL,                -- file type bits >> 12, as d_type: 4 directory, 8 file
  begin  INTEGER NOT NULL,
  PRIMARY KEY (parent, cookie, name)
) WITHOUT ROWID;

CREATE TABLE dentry_history (
  parent INTEGER NOT NULL, cookie INTEGER NOT NULL, name BLOB NOT NULL, "end" INTEGER NOT NULL,
  ino INTEGER NOT NULL, type INTEGER NOT NULL, begin INTEGER NOT NULL,
  PRIMARY KEY (parent, cookie, name, "end")
) WITHOUT ROWID;

CREATE TABLE xattrs (
  ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, begin INTEGER NOT NULL,
  PRIMARY KEY (ino, name)
) WITHOUT ROWID;

CREATE TABLE xattr_history (
  ino INTEGER NOT NULL, name BLOB NOT NULL, "end" INTEGER NOT NULL, value BLOB NOT NULL, begin INTEGER NOT NULL,
  PRIMARY KEY (ino, name, "end")
) WITHOUT ROWID;

-- Content: [off, off+len) of a file are the bytes from blob_off on of a blob.
CREATE TABLE extents (
  ino INTEGER NOT NULL, off INTEGER NOT NULL, len INTEGER NOT NULL,
  blob INTEGER NOT NULL, blob_off INTEGER NOT NULL, begin INTEGER NOT NULL,
  PRIMARY KEY (ino, off)
) WITHOUT ROWID;

CREATE TABLE extent_history (
  ino INTEGER NOT NULL, off INTEGER NOT NULL, "end" INTEGER NOT NULL, len INTEGER NOT NULL,
  blob INTEGER NOT NULL, blob_off INTEGER NOT NULL, begin INTEGER NOT NULL,
  PRIMARY KEY (ino, off, "end")
) WITHOUT ROWID;

-- refs counts the rows of extents and extent_history that use the blob.
CREATE TABLE blobs (
  blob      INTEGER PRIMARY KEY,
  zone      INTEGER NOT NULL,
  id        BLOB NOT NULL,
  size      INTEGER NOT NULL,
  place     INTEGER NOT NULL,             -- 0 here, 1 in a pack segment, 2 a file of its own
  segment   INTEGER NOT NULL,
  offset    INTEGER NOT NULL,
  refs      INTEGER NOT NULL,
  condemned INTEGER,                      -- time; NULL while in use (P28)
  removing  INTEGER NOT NULL DEFAULT 0,   -- 1: its bytes are being removed
  data      BLOB                          -- the bytes, at place 0
);
CREATE UNIQUE INDEX blobs_id ON blobs (id, zone);
CREATE INDEX blobs_unused ON blobs (zone, condemned) WHERE refs = 0;

-- Version 1 of a file that was created empty has no row until the file
-- changes: it is implied by inodes.version = 1.
CREATE TABLE version_rows (
  ino INTEGER NOT NULL, n INTEGER NOT NULL,
  first_rev INTEGER NOT NULL, rev INTEGER NOT NULL, size INTEGER NOT NULL,
  actor INTEGER, time INTEGER NOT NULL,
  PRIMARY KEY (ino, n)
) WITHOUT ROWID;

CREATE TABLE operation_records (
  rev        INTEGER PRIMARY KEY,
  kind       INTEGER NOT NULL,
  ino        INTEGER NOT NULL,
  parent     INTEGER NOT NULL,
  name       BLOB,
  new_parent INTEGER NOT NULL,
  new_name   BLOB,
  time       INTEGER NOT NULL,
  actor      INTEGER NOT NULL,
  version    INTEGER NOT NULL,
  size       INTEGER NOT NULL,
  session    INTEGER NOT NULL,
  seq        INTEGER NOT NULL,
  before     TEXT,
  after      TEXT,
  digest     BLOB NOT NULL,
  batch      INTEGER,                     -- on the last record of a batch: how many records it has
  head       BLOB                         -- and the chain head after it (P4)
);

CREATE TABLE actors (
  actor  INTEGER PRIMARY KEY,
  uid INTEGER NOT NULL, gid INTEGER NOT NULL, pid INTEGER NOT NULL, start INTEGER NOT NULL,
  exe TEXT NOT NULL, cgroup TEXT NOT NULL, node TEXT NOT NULL, agent TEXT NOT NULL, task TEXT NOT NULL
);

CREATE TABLE session_rows (
  session    INTEGER PRIMARY KEY,
  epoch      INTEGER NOT NULL,
  node       TEXT NOT NULL,
  pid        INTEGER NOT NULL,
  boot_id    TEXT NOT NULL,
  mountpoint TEXT NOT NULL,
  lease      INTEGER NOT NULL,
  started    INTEGER NOT NULL,
  ended      INTEGER,
  fenced     INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE late_answers (
  rev INTEGER NOT NULL, reason TEXT NOT NULL, time INTEGER NOT NULL,
  PRIMARY KEY (rev, reason)
) WITHOUT ROWID;

-- Where records were pruned: the chain head after the last of them (P33).
CREATE TABLE chain_seals (
  rev INTEGER PRIMARY KEY, head BLOB NOT NULL, time INTEGER NOT NULL
);

-- Which records concern an inode. Filled in bulk away from the commit path, up
-- to zones.indexed; records behind that are found by reading them.
CREATE TABLE record_index (
  ino INTEGER NOT NULL, rev INTEGER NOT NULL,
  PRIMARY KEY (ino, rev)
) WITHOUT ROWID;

CREATE TABLE operation_kinds (kind INTEGER PRIMARY KEY, name TEXT NOT NULL);

-- Views for users. Revisions and inode numbers are shown without their zone.

CREATE VIEW versions AS
SELECT z.name AS zone, v.ino & 281474976710655 AS ino, v.n AS version,
  v.first_rev & 281474976710655 AS first_revision, v.rev & 281474976710655 AS revision,
  v.size AS size, strftime('%Y-%m-%dT%H:%M:%S', v.time/1000000000, 'unixepoch') || printf('.%09dZ', v.time%1000000000) AS time,
  a.uid AS uid, a.exe AS exe, a.agent AS agent
FROM version_rows v JOIN zones z ON z.zone = v.ino >> 48 LEFT JOIN actors a ON a.actor = v.actor
UNION ALL
SELECT z.name, i.ino & 281474976710655, 1, i.content_rev & 281474976710655, i.content_rev & 281474976710655, i.size,
  strftime('%Y-%m-%dT%H:%M:%S', i.btime/1000000000, 'unixepoch') || printf('.%09dZ', i.btime%1000000000), a.uid, a.exe, a.agent
FROM inodes i JOIN zones z ON z.zone = i.ino >> 48
LEFT JOIN operation_records r ON r.rev = i.content_rev LEFT JOIN actors a ON a.actor = r.actor
WHERE i.version = 1 AND NOT EXISTS (SELECT 1 FROM version_rows v WHERE v.ino = i.ino);

CREATE VIEW operations AS
SELECT z.name AS zone, r.rev & 281474976710655 AS revision,
  strftime('%Y-%m-%dT%H:%M:%S', r.time/1000000000, 'unixepoch') || printf('.%09dZ', r.time%1000000000) AS time,
  coalesce(k.name, r.kind) AS kind, r.ino & 281474976710655 AS ino,
  nullif(r.parent & 281474976710655, 0) AS parent, CAST(r.name AS TEXT) AS name,
  nullif(r.new_parent & 281474976710655, 0) AS new_parent, CAST(r.new_name AS TEXT) AS new_name,
  a.uid AS uid, a.gid AS gid, a.pid AS pid, a.exe AS exe, a.cgroup AS cgroup, a.node AS node, a.agent AS agent, a.task AS task,
  nullif(r.version, 0) AS version, r.size AS size, r.before AS before, r.after AS after,
  r.session AS session, r.seq AS seq, lower(hex(r.digest)) AS digest,
  (SELECT group_concat(l.reason, '; ') FROM late_answers l WHERE l.rev = r.rev) AS not_acknowledged
FROM operation_records r JOIN zones z ON z.zone = r.rev >> 48
LEFT JOIN operation_kinds k ON k.kind = r.kind LEFT JOIN actors a ON a.actor = r.actor;

CREATE VIEW batches AS
SELECT z.name AS zone, (rev & 281474976710655) - batch + 1 AS first_revision, rev & 281474976710655 AS revision,
  batch AS count, lower(hex(head)) AS head
FROM operation_records JOIN zones z ON z.zone = rev >> 48 WHERE head IS NOT NULL;

CREATE VIEW files AS
WITH RECURSIVE tree(zone, ino, path) AS (
  SELECT name, zone << 48 | 1, '' FROM zones
  UNION ALL
  SELECT t.zone, d.ino, t.path || '/' || CAST(d.name AS TEXT) FROM tree t JOIN dentries d ON d.parent = t.ino
)
SELECT t.zone AS zone, CASE t.path WHEN '' THEN '/' ELSE t.path END AS path, i.ino & 281474976710655 AS ino,
  CASE i.mode >> 12 WHEN 1 THEN 'fifo' WHEN 2 THEN 'char' WHEN 4 THEN 'dir' WHEN 6 THEN 'block'
    WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' WHEN 12 THEN 'socket' END AS type,
  printf('%04o', i.mode & 4095) AS mode, i.uid AS uid, i.gid AS gid, i.nlink AS nlink,
  i.size AS size, i.bytes AS bytes, i.entries AS entries,
  strftime('%Y-%m-%dT%H:%M:%S', i.mtime/1000000000, 'unixepoch') || printf('.%09dZ', i.mtime%1000000000) AS mtime,
  strftime('%Y-%m-%dT%H:%M:%S', i.ctime/1000000000, 'unixepoch') || printf('.%09dZ', i.ctime%1000000000) AS ctime,
  strftime('%Y-%m-%dT%H:%M:%S', i.btime/1000000000, 'unixepoch') || printf('.%09dZ', i.btime%1000000000) AS btime,
  i.rev & 281474976710655 AS revision, nullif(i.version, 0) AS version,
  CAST(i.target AS TEXT) AS target
FROM tree t JOIN inodes i ON i.ino = t.ino;

CREATE VIEW history AS
SELECT z.name AS zone, parent & 281474976710655 AS parent, CAST(d.name AS TEXT) AS name, ino & 281474976710655 AS ino,
  CASE type WHEN 4 THEN 'dir' WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' ELSE 'special' END AS type,
  begin & 281474976710655 AS first_revision, NULL AS end_revision
FROM dentries d JOIN zones z ON z.zone = d.parent >> 48
UNION ALL
SELECT z.name, parent & 281474976710655, CAST(d.name AS TEXT), ino & 281474976710655,
  CASE type WHEN 4 THEN 'dir' WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' ELSE 'special' END,
  begin & 281474976710655, "end" & 281474976710655
FROM dentry_history d JOIN zones z ON z.zone = d.parent >> 48;

CREATE VIEW deleted AS
SELECT z.name AS zone, h.parent & 281474976710655 AS parent, CAST(h.name AS TEXT) AS name, h.ino & 281474976710655 AS ino,
  i.size AS size, nullif(i.version, 0) AS version, max(h."end") & 281474976710655 AS revision,
  strftime('%Y-%m-%dT%H:%M:%S', coalesce(r.time, i.ctime)/1000000000, 'unixepoch') || printf('.%09dZ', coalesce(r.time, i.ctime)%1000000000) AS time,
  a.uid AS uid, a.exe AS exe, a.agent AS agent
FROM dentry_history h JOIN inodes i ON i.ino = h.ino AND i.nlink = 0 JOIN zones z ON z.zone = h.parent >> 48
LEFT JOIN operation_records r ON r.rev = h."end" LEFT JOIN actors a ON a.actor = r.actor
GROUP BY h.parent, h.cookie, h.name, h.ino;

CREATE VIEW content AS
SELECT z.name AS zone, e.ino & 281474976710655 AS ino, e.off AS offset, e.len AS length, lower(hex(b.id)) AS blob, e.blob_off AS blob_offset,
  e.begin & 281474976710655 AS first_revision, NULL AS end_revision
FROM extents e JOIN blobs b ON b.blob = e.blob JOIN zones z ON z.zone = e.ino >> 48
UNION ALL
SELECT z.name, e.ino & 281474976710655, e.off, e.len, lower(hex(b.id)), e.blob_off,
  e.begin & 281474976710655, e."end" & 281474976710655
FROM extent_history e JOIN blobs b ON b.blob = e.blob JOIN zones z ON z.zone = e.ino >> 48;

CREATE VIEW usage AS
SELECT z.name AS zone, CASE kind WHEN 0 THEN 'zone' WHEN 1 THEN 'user' ELSE 'quota' END AS scope,
  CASE kind WHEN 0 THEN NULL ELSE id END AS id, inodes, bytes, history AS history_bytes
FROM counters c JOIN zones z ON z.zone = c.zone;

CREATE VIEW sessions AS
SELECT z.name AS zone, session & 281474976710655 AS session, s.epoch AS epoch, node, pid, mountpoint,
  strftime('%Y-%m-%dT%H:%M:%SZ', started/1000000000, 'unixepoch') AS started,
  strftime('%Y-%m-%dT%H:%M:%SZ', ended/1000000000, 'unixepoch') AS ended, fenced
FROM session_rows s JOIN zones z ON z.zone = s.session >> 48;
