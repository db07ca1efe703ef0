-- What migrate needs (package transfer).

-- What a zone was called before it was migrated here under another name: up to
-- the revision rev (and behind that of the row before) its chain was made under
-- that name (P4).
CREATE TABLE zone_names (
  rev  bigint PRIMARY KEY,
  name text COLLATE "C" NOT NULL
);

-- Zones that are being filled. Until they are complete they have another name.
CREATE TABLE migrations (
  zone   bigint PRIMARY KEY,
  blob   bigint NOT NULL,                -- what was added to the numbers of its blobs
  origin text NOT NULL                   -- what it is filled from, as JSON
);

-- Zones whose content is on its way to another place, and the new places of
-- their blobs. Until they are in force (done) nobody may open the zone.
CREATE TABLE content_moves (
  zone bigint PRIMARY KEY,
  dest text COLLATE "C" NOT NULL,
  done boolean NOT NULL DEFAULT false
);
CREATE TABLE moved_blobs (
  blob     bigint PRIMARY KEY,
  place    bigint NOT NULL,
  segment  bigint NOT NULL,
  "offset" bigint NOT NULL
);

-- reserve_blobs takes a run of numbers of blobs' rows that nobody else gets, and
-- returns the one before its first. at: where it begins when there are no blobs.
-- The lock keeps everybody else from taking a number meanwhile.
CREATE FUNCTION reserve_blobs(at bigint, count bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  before bigint;
BEGIN
  LOCK TABLE blobs IN SHARE ROW EXCLUSIVE MODE;
  before := nextval(pg_get_serial_sequence('nexusfs.blobs', 'blob'));
  IF NOT EXISTS (SELECT FROM zones) THEN
    PERFORM setval(pg_get_serial_sequence('nexusfs.blobs', 'blob'), greatest(before, at + count));
    RETURN at;
  END IF;
  PERFORM setval(pg_get_serial_sequence('nexusfs.blobs', 'blob'), before + count);
  RETURN before;
END $$;

-- skip_actors makes daemons take blocks of numbers of actors from behind one on.
CREATE FUNCTION skip_actors(block bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  at bigint := nextval('nexusfs.actor_blocks');
BEGIN
  -- Not by setval, which could take back what another daemon was given just now.
  PERFORM nextval('nexusfs.actor_blocks') FROM generate_series(at + 1, block);
END $$;

-- As in 0001, and daemons may reserve numbers.
CREATE OR REPLACE FUNCTION grant_roles() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v record;
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nexusfs_daemon') THEN
    GRANT USAGE ON SCHEMA nexusfs TO nexusfs_daemon;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nexusfs TO nexusfs_daemon;
    REVOKE INSERT, UPDATE, DELETE ON nexusfs.schema_version FROM nexusfs_daemon;
    GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA nexusfs TO nexusfs_daemon;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nexusfs_reader') THEN
    GRANT USAGE ON SCHEMA nexusfs TO nexusfs_reader;
    FOR v IN SELECT viewname FROM pg_views WHERE schemaname = 'nexusfs' LOOP
      EXECUTE format('GRANT SELECT ON nexusfs.%I TO nexusfs_reader', v.viewname);
    END LOOP;
  END IF;
END $$;
