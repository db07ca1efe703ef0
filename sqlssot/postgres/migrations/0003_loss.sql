-- A server that lost its tail is found (P15). DESIGN.md has the argument.

-- One row per zone while the server has every commit that it acknowledged. The
-- server empties an unlogged table after a crash, and has it empty on a standby
-- that was promoted and in a base backup; an orderly stop keeps it. made is the
-- table's own number: a row that a dump brought back names another table.
CREATE UNLOGGED TABLE unbroken (
  zone bigint PRIMARY KEY,
  made oid NOT NULL
);

ALTER TABLE zones ADD COLUMN lineage text COLLATE "C" NOT NULL DEFAULT '';         -- the server that wrote unbroken: system identifier/timeline/oid of that table
ALTER TABLE session_rows ADD COLUMN relaxed boolean NOT NULL DEFAULT false; -- its commits may be lost by a crash; 2 in fenced: they may have been
