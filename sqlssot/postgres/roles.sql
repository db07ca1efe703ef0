-- Roles with the least rights, for a database that serves nexusfs:
--
--   nexusfs_owner   owns schema, tables and functions; migrates
--   nexusfs_daemon  what a daemon needs day by day: rows, no DDL
--   nexusfs_reader  a person or a report: the documented views, nothing else
--
-- Run it in that database as its owner or a superuser, once; again is harmless:
--
--   psql -d DATABASE -f roles.sql
--
-- Then give them to users that log in, and start the daemon as one of them (the
-- first start, and one after each upgrade, as a member of nexusfs_owner):
--
--   CREATE USER fs1 PASSWORD '...' IN ROLE nexusfs_daemon;

DO $$
DECLARE
  r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['nexusfs_owner', 'nexusfs_daemon', 'nexusfs_reader'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', r);
    END IF;
  END LOOP;
  IF to_regnamespace('nexusfs') IS NULL THEN
    CREATE SCHEMA nexusfs AUTHORIZATION nexusfs_owner;
  END IF;
  -- Recovery works with temporary tables.
  EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO nexusfs_owner, nexusfs_daemon', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO nexusfs_reader', current_database());
  IF to_regprocedure('nexusfs.grant_roles()') IS NOT NULL THEN
    PERFORM nexusfs.grant_roles();
  END IF;
END $$;
