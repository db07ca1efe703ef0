-- The commit: one call of commit_batch per batch (P2). DESIGN.md has the outline.
--
-- A batch arrives as one value of type batch: arrays of rows, one array per kind
-- of row, NULL where there is none. Each row says in c to which change of the
-- batch it belongs, counted from 0; a change's revision is shift + c.

-- An inode that is new.
CREATE TYPE made_row AS (
  c bigint, ino bigint, mode bigint, uid bigint, gid bigint, nlink bigint, rdev bigint, flags bigint, size bigint, bytes bigint,
  entries bigint, atime bigint, mtime bigint, ctime bigint, btime bigint, parent bigint, cookie bigint, creator bigint,
  content_rev bigint,  -- -1: the change's revision
  version bigint, target bytea
);
-- A new image of an inode that is no directory. Guard: its revision is rev.
CREATE TYPE file_row AS (
  c bigint, ino bigint, rev bigint, mode bigint, uid bigint, gid bigint, nlink bigint, rdev bigint, flags bigint, size bigint,
  atime bigint, mtime bigint, ctime bigint, content_rev bigint, version bigint,
  parent bigint, cookie bigint,  -- NULL: stay
  grow bigint,                   -- bytes of the change's new extents
  counts bigint,                 -- 1: its bytes matter to the caller or to a counter
  old_uid bigint, old_named bigint
);
-- A directory's own change. Guard: it has (named) or lacks a name, it is empty
-- where empty is 1, its old attributes hold, and it does not come to lie below
-- itself. NULL times stay.
CREATE TYPE dir_row AS (
  c bigint, ino bigint, old_mode bigint, old_uid bigint, old_gid bigint, old_flags bigint, old_parent bigint, named bigint, empty bigint,
  mode bigint, uid bigint, gid bigint, flags bigint, nlink bigint, entries bigint,
  atime bigint, mtime bigint, ctime bigint, parent bigint, cookie bigint
);
-- What names do to their directory. Guard: it is alive.
CREATE TYPE delta_row AS (c bigint, ino bigint, entries bigint, nlink bigint, time bigint);
-- A name that is set where there was none, or that ends or changes (before).
CREATE TYPE name_row AS (c bigint, parent bigint, cookie bigint, name bytea, before bigint, after bigint, type bigint);
-- Where an inode that the change does not write got a name.
CREATE TYPE hint_row AS (c bigint, ino bigint, parent bigint, cookie bigint);
-- value NULL: removed.
CREATE TYPE xattr_row AS (c bigint, ino bigint, name bytea, value bytea);
-- What lies in [off, till) of a file ends.
CREATE TYPE cut_row AS (c bigint, ino bigint, off bigint, till bigint);
-- known 1: blobs has the extent's blob too.
CREATE TYPE extent_row AS (c bigint, ino bigint, off bigint, len bigint, blob bytea, blob_off bigint, known bigint);
CREATE TYPE blob_row AS (c bigint, id bytea, size bigint, place bigint, segment bigint, "offset" bigint, uses bigint, data bytea);
-- fresh 1: a new version, else the one there is moves.
CREATE TYPE version_row AS (c bigint, ino bigint, n bigint, fresh bigint, size bigint, actor bigint, time bigint);
-- Inodes that lose their last name (gone 1), stay without one, or get one.
CREATE TYPE nameless_row AS (c bigint, ino bigint, gone bigint);
-- uid -1 stands for history.
CREATE TYPE usage_row AS (c bigint, uid bigint, inodes bigint, bytes bigint);
CREATE TYPE actor_row AS (actor bigint, uid bigint, gid bigint, pid bigint, start bigint, exe bytea, cgroup bytea, node bytea, agent bytea, task bytea);
CREATE TYPE record_row AS (
  c bigint, kind bigint, ino bigint, parent bigint, name bytea, new_parent bigint, new_name bytea, time bigint, actor bigint,
  version bigint, size bigint, seq bigint, before text, after text, topology bigint
);
CREATE TYPE batch AS (
  made made_row[], files file_row[], dirs dir_row[], deltas delta_row[], named name_row[], ended name_row[], hints hint_row[],
  xattrs xattr_row[], cuts cut_row[], extents extent_row[], blobs blob_row[], versions version_row[], nameless nameless_row[],
  usage usage_row[], actors actor_row[], records record_row[]
);

-- A run of changes of which no two touch the same row, but that what names do to
-- one directory is a single delta_row, with the last one's c and time. The counts
-- say how many rows of each kind must be found: guards count.
CREATE TYPE wave AS (
  lo bigint, hi bigint,
  files bigint, dirs bigint, deltas bigint, ended bigint, extents bigint,
  reused bigint,  -- blobs that extents use and that the wave does not bring
  moved bigint    -- versions that are not fresh
);

-- What apply_changes has to say: usage that only the rows knew, and the bytes
-- that each content change left, as pairs (c, bytes).
CREATE TYPE applied AS (usage usage_row[], bytes bigint[]);

-- refuse ends a change whose belief does not hold; reason is one of reasons in
-- commit.go.
CREATE FUNCTION refuse(reason int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = 'NX001', MESSAGE = reason::text;
END $$;

-- cut_extents ends what lies in [p_off, p_till) of a file and returns how many
-- bytes that were. Extents that reach over an edge are split: what lies outside
-- stays current with its begin, what lies inside goes to history.
CREATE FUNCTION cut_extents(p_ino bigint, p_off bigint, p_till bigint, p_rev bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  gone bigint;
BEGIN
  WITH hit AS MATERIALIZED (
    SELECT * FROM extents WHERE ino = p_ino AND off < p_till AND off + len > p_off
      AND off >= coalesce((SELECT max(off) FROM extents WHERE ino = p_ino AND off <= p_off), p_off)
  ), ended AS (
    INSERT INTO extent_history(ino, off, "end", len, blob, blob_off, begin)
    SELECT ino, greatest(off, p_off), p_rev, least(off + len, p_till) - greatest(off, p_off), blob, blob_off + greatest(off, p_off) - off, begin FROM hit
    RETURNING len
  ), dropped AS (
    DELETE FROM extents e USING hit h WHERE e.ino = p_ino AND e.off = h.off AND h.off >= p_off
  ), trimmed AS (
    UPDATE extents e SET len = p_off - h.off FROM hit h WHERE e.ino = p_ino AND e.off = h.off AND h.off < p_off
  ), rest AS (
    INSERT INTO extents(ino, off, len, blob, blob_off, begin)
    SELECT ino, p_till, off + len - p_till, blob, blob_off + p_till - off, begin FROM hit WHERE off + len > p_till
  ), counted AS (
    UPDATE blobs b SET refs = b.refs + u.n
    FROM (SELECT blob, sum((off < p_off)::int + (off + len > p_till)::int) AS n FROM hit GROUP BY blob) u WHERE b.blob = u.blob AND u.n <> 0
  )
  SELECT coalesce(sum(len), 0) INTO gone FROM ended;
  RETURN gone;
END $$;

-- put_content ends and sets extents, counts the references of blobs, inserts
-- the new ones and locks in the old ones (P28). It returns the bytes that each
-- change ended: element c - lo + 1 of the wave.
CREATE FUNCTION put_content(b batch, w wave, p_zone bigint, shift bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  gone bigint[];
  r cut_row;
  n bigint;
BEGIN
  IF b.blobs IS NOT NULL THEN
    -- A blob that is there stays as it is, unless it is condemned: then it takes the new place.
    INSERT INTO blobs AS o (zone, id, size, place, segment, "offset", refs, data)
    SELECT DISTINCT ON (x.id) p_zone, x.id, x.size, x.place, x.segment, x."offset", sum(x.uses) OVER (PARTITION BY x.id), x.data
    FROM unnest(b.blobs) x WHERE x.c BETWEEN w.lo AND w.hi ORDER BY x.id, x.c
    ON CONFLICT (id, zone) DO UPDATE SET refs = o.refs + excluded.refs,
      place = CASE WHEN o.condemned IS NULL THEN o.place ELSE excluded.place END,
      segment = CASE WHEN o.condemned IS NULL THEN o.segment ELSE excluded.segment END,
      "offset" = CASE WHEN o.condemned IS NULL THEN o."offset" ELSE excluded."offset" END,
      data = CASE WHEN o.condemned IS NULL THEN o.data ELSE excluded.data END,
      condemned = NULL, removing = 0;
  END IF;
  IF w.reused > 0 THEN
    UPDATE blobs o SET refs = o.refs + u.n
    FROM (SELECT e.blob, count(*) AS n FROM unnest(b.extents) e WHERE e.c BETWEEN w.lo AND w.hi AND e.known = 0 GROUP BY e.blob) u
    WHERE o.id = u.blob AND o.zone = p_zone AND o.condemned IS NULL;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n <> w.reused THEN PERFORM refuse(7); END IF;
  END IF;
  IF b.cuts IS NOT NULL THEN
    gone := array_fill(0::bigint, ARRAY[(w.hi - w.lo + 1)::int]);
    FOR r IN SELECT * FROM unnest(b.cuts) x WHERE x.c BETWEEN w.lo AND w.hi ORDER BY x.c, x.off LOOP
      gone[r.c - w.lo + 1] := gone[r.c - w.lo + 1] + cut_extents(r.ino, r.off, r.till, shift + r.c);
    END LOOP;
  END IF;
  IF b.extents IS NOT NULL THEN
    INSERT INTO extents(ino, off, len, blob, blob_off, begin)
    SELECT e.ino, e.off, e.len, o.blob, e.blob_off, shift + e.c
    FROM unnest(b.extents) e JOIN blobs o ON o.id = e.blob AND o.zone = p_zone AND e.blob_off <= o.size - e.len
    WHERE e.c BETWEEN w.lo AND w.hi;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n <> w.extents THEN PERFORM refuse(100); END IF;
  END IF;
  RETURN gone;
END $$;

-- put_versions makes versions of files or moves them to the change's revision.
CREATE FUNCTION put_versions(b batch, w wave, shift bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
  m bigint;
BEGIN
  INSERT INTO version_rows(ino, n, first_rev, rev, size, actor, time)
  SELECT i.ino, 1, i.content_rev, i.content_rev, i.size, r.actor, coalesce(r.time, i.btime)
  FROM unnest(b.versions) v JOIN inodes i ON i.ino = v.ino AND i.version = 1 LEFT JOIN operation_records r ON r.rev = i.content_rev
  WHERE v.c BETWEEN w.lo AND w.hi AND v.fresh = 1 AND v.n = 2
  ON CONFLICT DO NOTHING;
  INSERT INTO version_rows(ino, n, first_rev, rev, size, actor, time)
  SELECT v.ino, v.n, shift + v.c, shift + v.c, v.size, v.actor, v.time FROM unnest(b.versions) v WHERE v.c BETWEEN w.lo AND w.hi AND v.fresh = 1;
  IF w.moved = 0 THEN
    RETURN;
  END IF;
  UPDATE version_rows o SET rev = shift + v.c, size = v.size, actor = v.actor, time = v.time
  FROM unnest(b.versions) v WHERE v.c BETWEEN w.lo AND w.hi AND v.fresh = 0 AND o.ino = v.ino AND o.n = v.n;
  GET DIAGNOSTICS n = ROW_COUNT;
  IF n = w.moved THEN
    RETURN;
  END IF;
  -- Version 1 of a file that was created empty gets its row now.
  INSERT INTO version_rows(ino, n, first_rev, rev, size, actor, time)
  SELECT v.ino, 1, i.content_rev, shift + v.c, v.size, v.actor, v.time
  FROM unnest(b.versions) v JOIN inodes i ON i.ino = v.ino AND i.version = 1
  WHERE v.c BETWEEN w.lo AND w.hi AND v.fresh = 0 AND v.n = 1
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS m = ROW_COUNT;
  IF n + m <> w.moved THEN PERFORM refuse(8); END IF;
END $$;

-- end_names ends and changes names.
CREATE FUNCTION end_names(b batch, w wave, shift bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
BEGIN
  INSERT INTO dentry_history(parent, cookie, name, "end", ino, type, begin)
  SELECT d.parent, d.cookie, d.name, shift + x.c, d.ino, d.type, d.begin
  FROM unnest(b.ended) x JOIN dentries d ON d.parent = x.parent AND d.cookie = x.cookie AND d.name = x.name AND d.ino = x.before
  WHERE x.c BETWEEN w.lo AND w.hi;
  GET DIAGNOSTICS n = ROW_COUNT;
  IF n <> w.ended THEN PERFORM refuse(5); END IF;
  DELETE FROM dentries d USING unnest(b.ended) x
  WHERE x.c BETWEEN w.lo AND w.hi AND x.after = 0 AND d.parent = x.parent AND d.cookie = x.cookie AND d.name = x.name;
  GET DIAGNOSTICS n = ROW_COUNT;
  IF n < w.ended THEN -- the others refer to something else now
    UPDATE dentries d SET ino = x.after, type = x.type, begin = shift + x.c FROM unnest(b.ended) x
    WHERE x.c BETWEEN w.lo AND w.hi AND x.after <> 0 AND d.parent = x.parent AND d.cookie = x.cookie AND d.name = x.name;
  END IF;
END $$;

-- put_xattrs sets and removes attributes. Guard: afterwards the inode's flags
-- say whether it has any. A directory's revision is no guard, so two daemons
-- that each remove another of its last two attributes both believe that one
-- stays: the second one is refused here and looks again.
CREATE FUNCTION put_xattrs(b batch, w wave, shift bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO xattr_history(ino, name, "end", value, begin)
  SELECT a.ino, a.name, shift + x.c, a.value, a.begin
  FROM unnest(b.xattrs) x JOIN xattrs a ON a.ino = x.ino AND a.name = x.name WHERE x.c BETWEEN w.lo AND w.hi;
  DELETE FROM xattrs a USING unnest(b.xattrs) x WHERE x.c BETWEEN w.lo AND w.hi AND x.value IS NULL AND a.ino = x.ino AND a.name = x.name;
  INSERT INTO xattrs(ino, name, value, begin)
  SELECT x.ino, x.name, x.value, shift + x.c FROM unnest(b.xattrs) x WHERE x.c BETWEEN w.lo AND w.hi AND x.value IS NOT NULL
  ON CONFLICT (ino, name) DO UPDATE SET value = excluded.value, begin = excluded.begin;
  PERFORM refuse(12) FROM unnest(b.xattrs) x JOIN inodes i ON i.ino = x.ino
  WHERE x.c BETWEEN w.lo AND w.hi AND (i.flags & 1 = 1) <> EXISTS (SELECT FROM xattrs a WHERE a.ino = x.ino);
END $$;

-- put_files writes the new images of inodes that are no directories; the old
-- ones go to history.
CREATE FUNCTION put_files(b batch, w wave, shift bigint, gone bigint[]) RETURNS applied LANGUAGE plpgsql AS $$
DECLARE
  a applied;
  n bigint;
BEGIN
  INSERT INTO inode_history(ino, "end", mode, uid, gid, nlink, rdev, flags, size, bytes, entries, atime, mtime, ctime, btime,
    parent, cookie, creator, rev, content_rev, version, target)
  SELECT i.ino, shift + f.c, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.flags, i.size, i.bytes, i.entries, i.atime, i.mtime, i.ctime, i.btime,
    i.parent, i.cookie, i.creator, i.rev, i.content_rev, i.version, i.target
  FROM unnest(b.files) f JOIN inodes i ON i.ino = f.ino AND i.rev = f.rev WHERE f.c BETWEEN w.lo AND w.hi;
  GET DIAGNOSTICS n = ROW_COUNT;
  IF n <> w.files THEN PERFORM refuse(2); END IF;
  WITH u AS (
    UPDATE inodes i SET mode = f.mode, uid = f.uid, gid = f.gid, nlink = f.nlink, rdev = f.rdev, flags = f.flags, size = f.size,
      atime = f.atime, mtime = f.mtime, ctime = f.ctime, rev = shift + f.c,
      content_rev = CASE WHEN f.content_rev < 0 THEN shift + f.c ELSE f.content_rev END, version = f.version,
      bytes = i.bytes + f.grow - coalesce(gone[f.c - w.lo + 1], 0), parent = coalesce(f.parent, i.parent), cookie = coalesce(f.cookie, i.cookie)
    FROM unnest(b.files) f WHERE f.c BETWEEN w.lo AND w.hi AND i.ino = f.ino
    RETURNING f.c, f.old_uid, f.old_named, i.uid, i.nlink, i.bytes, i.bytes - f.grow + coalesce(gone[f.c - w.lo + 1], 0) AS was, f.counts, f.grow
  ), counted AS (SELECT * FROM u WHERE counts = 1)
  SELECT (SELECT array_agg(r) FROM (
      SELECT ROW(c, CASE old_named WHEN 1 THEN old_uid ELSE -1 END, -old_named, -was)::usage_row FROM counted
      UNION ALL
      SELECT ROW(c, CASE WHEN nlink > 0 THEN uid ELSE -1 END, (nlink > 0)::int, bytes)::usage_row FROM counted
      UNION ALL
      SELECT ROW(c, -1, 0, gone[c - w.lo + 1])::usage_row FROM counted WHERE gone[c - w.lo + 1] > 0) x(r)),
    (SELECT array_agg(v ORDER BY k, part) FROM (SELECT c AS k, 1 AS part, c AS v FROM counted UNION ALL SELECT c, 2, bytes FROM counted) y)
  INTO a.usage, a.bytes;
  RETURN a;
END $$;

-- put_dirs writes directories' own changes. A row may be newer than what the
-- change saw, for names move it on without asking: its revision is no guard but
-- its other attributes are, and what names move is set by difference or only
-- where the change itself changed it.
CREATE FUNCTION put_dirs(b batch, w wave, shift bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
BEGIN
  INSERT INTO inode_history(ino, "end", mode, uid, gid, nlink, rdev, flags, size, bytes, entries, atime, mtime, ctime, btime,
    parent, cookie, creator, rev, content_rev, version, target)
  SELECT i.ino, shift + d.c, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.flags, i.size, i.bytes, i.entries, i.atime, i.mtime, i.ctime, i.btime,
    i.parent, i.cookie, i.creator, i.rev, i.content_rev, i.version, i.target
  FROM unnest(b.dirs) d JOIN inodes i ON i.ino = d.ino AND (i.nlink > 0) = (d.named = 1) AND (d.empty = 0 OR i.entries = 0)
    AND i.mode = d.old_mode AND i.uid = d.old_uid AND i.gid = d.old_gid AND i.flags = d.old_flags AND i.parent = d.old_parent
  WHERE d.c BETWEEN w.lo AND w.hi;
  GET DIAGNOSTICS n = ROW_COUNT;
  IF n <> w.dirs THEN PERFORM refuse(3); END IF;
  UPDATE inodes i SET mode = d.mode, uid = d.uid, gid = d.gid, flags = d.flags,
    nlink = CASE d.empty WHEN 1 THEN 0 ELSE i.nlink + d.nlink END, entries = i.entries + d.entries,
    atime = coalesce(d.atime, i.atime), mtime = coalesce(d.mtime, i.mtime), ctime = coalesce(d.ctime, i.ctime), rev = shift + d.c,
    parent = d.parent, cookie = coalesce(d.cookie, i.cookie)
  FROM unnest(b.dirs) d WHERE d.c BETWEEN w.lo AND w.hi AND i.ino = d.ino;
  -- 'mv a b/a' and 'mv b a/b': no guard of the second one sees the first (P3).
  WITH RECURSIVE up(dir, ino) AS (
    SELECT d.ino, d.parent FROM unnest(b.dirs) d WHERE d.c BETWEEN w.lo AND w.hi AND d.parent <> d.old_parent
    UNION SELECT u.dir, i.parent FROM up u JOIN inodes i ON i.ino = u.ino WHERE u.ino <> u.dir
  )
  SELECT count(*) INTO n FROM up u WHERE u.ino = u.dir;
  IF n > 0 THEN PERFORM refuse(13); END IF;
END $$;

-- apply_changes writes the changes of a wave. The order lets each step still see
-- what it needs: versions and content look at the inode's old row. It raises NX001, or
-- unique_violation, when a guard fails; then nothing of it may stay.
CREATE FUNCTION apply_changes(b batch, w wave, p_zone bigint, shift bigint) RETURNS applied LANGUAGE plpgsql AS $$
DECLARE
  a applied;
  gone bigint[];
  n bigint;
BEGIN
  IF b.versions IS NOT NULL THEN
    PERFORM put_versions(b, w, shift);
  END IF;
  IF b.extents IS NOT NULL OR b.cuts IS NOT NULL OR b.blobs IS NOT NULL THEN
    gone := put_content(b, w, p_zone, shift);
  END IF;
  IF b.files IS NOT NULL THEN
    a := put_files(b, w, shift, gone);
  END IF;
  IF b.dirs IS NOT NULL THEN
    PERFORM put_dirs(b, w, shift);
  END IF;
  IF b.ended IS NOT NULL THEN
    PERFORM end_names(b, w, shift);
  END IF;
  -- New inodes, new names and their directories: what most operations are. One
  -- statement, for beginning one costs more than its rows.
  IF b.made IS NOT NULL OR b.deltas IS NOT NULL THEN
    WITH new_inodes AS (
      INSERT INTO inodes(ino, mode, uid, gid, nlink, rdev, flags, size, bytes, entries, atime, mtime, ctime, btime,
        parent, cookie, creator, rev, content_rev, version, target)
      SELECT m.ino, m.mode, m.uid, m.gid, m.nlink, m.rdev, m.flags, m.size, m.bytes, m.entries, m.atime, m.mtime, m.ctime, m.btime,
        m.parent, m.cookie, m.creator, shift + m.c, CASE WHEN m.content_rev < 0 THEN shift + m.c ELSE m.content_rev END, m.version, m.target
      FROM unnest(b.made) m WHERE m.c BETWEEN w.lo AND w.hi
    ), new_names AS (
      INSERT INTO dentries(parent, cookie, name, ino, type, begin)
      SELECT x.parent, x.cookie, x.name, x.after, x.type, shift + x.c FROM unnest(b.named) x WHERE x.c BETWEEN w.lo AND w.hi
    )
    UPDATE inodes i SET entries = i.entries + d.entries, nlink = i.nlink + d.nlink, mtime = d.time, ctime = d.time, rev = shift + d.c
    FROM unnest(b.deltas) d WHERE d.c BETWEEN w.lo AND w.hi AND i.ino = d.ino AND i.nlink > 0;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n <> w.deltas THEN PERFORM refuse(4); END IF;
  ELSIF b.named IS NOT NULL THEN
    INSERT INTO dentries(parent, cookie, name, ino, type, begin)
    SELECT x.parent, x.cookie, x.name, x.after, x.type, shift + x.c FROM unnest(b.named) x WHERE x.c BETWEEN w.lo AND w.hi;
  END IF;
  IF b.hints IS NOT NULL THEN
    UPDATE inodes i SET parent = x.parent, cookie = x.cookie FROM unnest(b.hints) x WHERE x.c BETWEEN w.lo AND w.hi AND i.ino = x.ino;
  END IF;
  IF b.xattrs IS NOT NULL THEN
    PERFORM put_xattrs(b, w, shift);
  END IF;
  IF b.nameless IS NOT NULL THEN
    DELETE FROM nameless o USING unnest(b.nameless) x WHERE x.c BETWEEN w.lo AND w.hi AND o.ino = x.ino;
    INSERT INTO nameless(ino, rev, born) SELECT i.ino, i.rev, i.cookie <> 0
    FROM unnest(b.nameless) x JOIN inodes i ON i.ino = x.ino WHERE x.c BETWEEN w.lo AND w.hi AND x.gone = 1;
  END IF;
  RETURN a;
END $$;

-- reason_of says which guard a violated constraint was.
CREATE FUNCTION reason_of(t text) RETURNS int LANGUAGE sql IMMUTABLE
  RETURN CASE t WHEN 'inodes' THEN 1 WHEN 'dentries' THEN 6 WHEN 'version_rows' THEN 9 WHEN 'extents' THEN 10 ELSE 11 END;

-- commit_batch applies a batch in the calling transaction and returns two
-- numbers per change: its revision, or minus the reason why it was refused, and
-- the bytes that its content left.
--
-- It locks the zone's row of counters first, so one batch of a zone runs at a
-- time and what it reads in later statements is the newest state. With careful
-- false the changes are applied wave by wave (waves holds the last change of
-- each), and the first guard that fails raises NX001 or unique_violation and
-- ends the transaction; the caller then sends the batch again with careful true:
-- each change in a subtransaction of its own, so that a refused one costs nobody
-- else (P2).
--
-- It raises NX003 when the session has ended or was fenced (P20), NX004 when the
-- batch's number p_seq was abandoned (P5), and NX005 when the session's newest
-- batch is older than p_before: the server lost what it had committed (P15). digests has the changes' record
-- digests, 32 bytes each; chained is the zone's part of the chain (package chain).
CREATE FUNCTION commit_batch(p_zone bigint, p_session bigint, p_epoch bigint, p_before bigint, p_seq bigint, count bigint, waves wave[], careful boolean,
  durable boolean, p_barrier bigint, chained bytea, digests bytea, b batch) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  z record;
  a applied;
  usage usage_row[] := b.usage;
  result bigint[] := array_fill(0::bigint, ARRAY[2 * count::int]);
  sealed bytea := digests;
  accepted bigint := 0;
  w wave;
  before bigint;
  last bigint;
  new_head bytea;
  moves bigint := 0;
  text_of text;
BEGIN
  IF NOT durable THEN
    text_of := set_config('synchronous_commit', 'off', true);
  END IF;
  SELECT c.rev, c.head INTO z FROM counters c WHERE c.zone = p_zone AND c.kind = 0 AND c.id = 0 FOR NO KEY UPDATE;
  IF NOT careful THEN
    FOREACH w IN ARRAY waves LOOP
      a := apply_changes(b, w, p_zone, z.rev + 1);
      usage := usage || a.usage;
      FOR i IN 1 .. coalesce(array_length(a.bytes, 1), 0) BY 2 LOOP
        result[2 * a.bytes[i] + 2] := a.bytes[i + 1];
      END LOOP;
    END LOOP;
    FOR i IN 1 .. count LOOP
      result[2 * i - 1] := z.rev + i;
    END LOOP;
    accepted := count;
  ELSE
    sealed := '';
    FOREACH w IN ARRAY waves LOOP
      BEGIN
        a := apply_changes(b, w, p_zone, z.rev + 1 + accepted - w.lo);
        accepted := accepted + 1;
        result[2 * w.lo + 1] := z.rev + accepted;
        result[2 * w.lo + 2] := coalesce(a.bytes[2], 0);
        usage := usage || a.usage;
        sealed := sealed || substr(digests, 32 * w.lo::int + 1, 32);
      EXCEPTION
        WHEN SQLSTATE 'NX001' THEN
          result[2 * w.lo + 1] := -SQLERRM::bigint;
        WHEN unique_violation THEN
          GET STACKED DIAGNOSTICS text_of = TABLE_NAME;
          result[2 * w.lo + 1] := -reason_of(text_of);
      END;
    END LOOP;
    IF accepted = 0 THEN
      PERFORM FROM session_rows s WHERE s.session = p_session AND s.epoch = p_epoch AND s.fenced = 0 AND s.ended IS NULL;
      IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = 'NX003', MESSAGE = 'the session has ended or was fenced'; END IF;
      RETURN result;
    END IF;
    SELECT array_agg(u) INTO usage FROM unnest(usage) u WHERE result[2 * u.c + 1] > 0;
  END IF;

  IF b.actors IS NOT NULL THEN
    INSERT INTO actors(actor, uid, gid, pid, start, exe, cgroup, node, agent, task) SELECT (unnest(b.actors)).*;
  END IF;
  last := z.rev + accepted;
  new_head := sha256(z.head || chained || int8send((z.rev & 281474976710655) + 1) || int8send(accepted) || sha256(sealed));
  IF b.dirs IS NOT NULL THEN
    SELECT coalesce(sum(x.topology), 0) INTO moves FROM unnest(b.records) x WHERE result[2 * x.c + 1] > 0;
  END IF;
  WITH logged AS (
    INSERT INTO operation_records(rev, kind, ino, parent, name, new_parent, new_name, time, actor, version, size, session, seq, before, after,
      digest, batch, head)
    SELECT result[2 * x.c + 1], x.kind, x.ino, x.parent, x.name, x.new_parent, x.new_name, x.time, x.actor, x.version, x.size,
      p_session & 281474976710655, x.seq, x.before, x.after, substr(digests, 32 * x.c::int + 1, 32),
      CASE result[2 * x.c + 1] WHEN last THEN accepted END, CASE result[2 * x.c + 1] WHEN last THEN new_head END
    FROM unnest(b.records) x WHERE result[2 * x.c + 1] > 0
  ), u AS MATERIALIZED (
    SELECT uid, sum(inodes)::bigint AS inodes, sum(bytes)::bigint AS bytes FROM unnest(usage) GROUP BY uid
  ), fresh AS (
    INSERT INTO counters(zone, kind, id, inodes, bytes) SELECT p_zone, 1, u.uid, u.inodes, u.bytes FROM u
    WHERE u.uid >= 0 AND NOT EXISTS (SELECT FROM counters c WHERE c.zone = p_zone AND c.kind = 1 AND c.id = u.uid)
  ), counted AS (
    UPDATE counters c SET inodes = c.inodes + t.inodes, bytes = c.bytes + t.bytes, history = c.history + t.history,
      rev = t.rev, head = t.head, barrier = greatest(c.barrier, t.barrier), topology = c.topology + moves -- of a user's row they are NULL
    FROM (
      SELECT 0 AS kind, 0::bigint AS id, coalesce(sum(u.inodes) FILTER (WHERE u.uid >= 0), 0)::bigint AS inodes,
        coalesce(sum(u.bytes) FILTER (WHERE u.uid >= 0), 0)::bigint AS bytes, coalesce(sum(u.bytes) FILTER (WHERE u.uid < 0), 0)::bigint AS history,
        last AS rev, new_head AS head, p_barrier AS barrier FROM u
      UNION ALL SELECT 1, u.uid, u.inodes, u.bytes, 0, NULL, NULL, NULL FROM u WHERE u.uid >= 0
    ) t WHERE c.zone = p_zone AND c.kind = t.kind AND c.id = t.id
  )
  UPDATE session_rows s SET seq = p_seq, outcome = result
  WHERE s.session = p_session AND s.epoch = p_epoch AND s.fenced = 0 AND s.ended IS NULL AND s.seq = p_before;
  IF NOT FOUND THEN
    SELECT s.seq INTO before FROM session_rows s WHERE s.session = p_session AND s.epoch = p_epoch AND s.fenced = 0 AND s.ended IS NULL;
    IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = 'NX003', MESSAGE = 'the session has ended or was fenced'; END IF;
    IF before < p_before THEN RAISE EXCEPTION USING ERRCODE = 'NX005', MESSAGE = 'the server has lost commits of this session'; END IF;
    RAISE EXCEPTION USING ERRCODE = 'NX004', MESSAGE = 'the batch was abandoned';
  END IF;
  RETURN result;
END $$;

-- settle_batch ends the doubt about a batch whose answer was lost (P5). It waits
-- for a transaction that still runs, then returns the batch's outcome if it was
-- committed; else it abandons the number, so that it never will be, and returns
-- NULL. It raises NX003 as commit_batch does.
CREATE FUNCTION settle_batch(p_zone bigint, p_session bigint, p_epoch bigint, p_seq bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  s record;
BEGIN
  PERFORM FROM counters WHERE zone = p_zone AND kind = 0 AND id = 0 FOR NO KEY UPDATE;
  SELECT * INTO s FROM session_rows WHERE session = p_session AND epoch = p_epoch FOR NO KEY UPDATE;
  IF s.seq = p_seq THEN
    RETURN s.outcome;
  END IF;
  IF s.session IS NULL OR s.fenced <> 0 OR s.ended IS NOT NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'NX003', MESSAGE = 'the session has ended or was fenced';
  END IF;
  UPDATE session_rows SET seq = p_seq, outcome = NULL WHERE session = p_session AND seq < p_seq;
  RETURN NULL;
END $$;

-- make_durable returns when everything committed before the call is on disk,
-- whoever committed it: a tiny commit flushes the log before it. It spares the
-- flush when there is nothing to flush and no standby to wait for.
CREATE FUNCTION make_durable() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('synchronous_standby_names') = '' AND pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn() THEN
    RETURN;
  END IF;
  PERFORM set_config('synchronous_commit', 'on', true);
  PERFORM pg_logical_emit_message(true, 'nexusfs', '');
END $$;
