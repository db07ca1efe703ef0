-- What a zone was called before it was migrated here under another name: up to
-- the revision rev (and behind that of the row before) its chain was made under
-- that name (P4).
CREATE TABLE zone_names (
  rev  INTEGER PRIMARY KEY,
  name TEXT NOT NULL
);
