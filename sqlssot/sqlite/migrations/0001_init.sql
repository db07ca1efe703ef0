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
  created    INTEGER NOT NULL
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
CREATE INDEX inodes_unnamed ON inodes (ino) WHERE nlink = 0;

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

CREATE TABLE operation_kinds (kind INTEGER PRIMARY KEY, name TEXT NOT NULL);
