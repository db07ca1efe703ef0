package sqlite

import (
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite/sqlitex"
)

// applicationID marks our databases: "nxfs" in the file's header.
const applicationID = 0x6e786673

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrations returns the scripts in order; script i makes schema version i+1.
func migrations() ([]string, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	out := make([]string, len(names))
	for i, n := range names {
		if !strings.HasPrefix(n, fmt.Sprintf("migrations/%04d_", i+1)) {
			return nil, fmt.Errorf("migration %s is out of sequence", n)
		}
		b, err := migrationFiles.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out[i] = string(b)
	}
	return out, nil
}

func dirOf(path string) string { return filepath.Dir(path) }

// probe looks at the file's header without opening it as a database, so that a
// foreign file is refused before anything could be written to it.
func probe(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return classify("open", 0, path, err)
	}
	defer f.Close()
	var h [100]byte
	if _, err := io.ReadFull(f, h[:]); err != nil || string(h[:16]) != "SQLite format 3\x00" {
		return meta.E("open", 0, path, meta.KindInvalid, errors.New("this is not a nexusfs database"))
	}
	if id := binary.BigEndian.Uint32(h[68:]); id != applicationID && id != 0 {
		return meta.E("open", 0, path, meta.KindInvalid, fmt.Errorf("this database belongs to another application (id %#x)", id))
	}
	return nil
}

// schemaVersion reads the version of the schema, 0 for an empty database, and
// refuses what is not ours or too new.
func (s *Store) schemaVersion() (int, error) {
	id, err := s.w.number("PRAGMA application_id")
	if err != nil {
		return 0, err
	}
	version, err := s.w.number("PRAGMA user_version")
	if err != nil {
		return 0, err
	}
	tables, err := s.w.number("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return 0, err
	}
	scripts, err := migrations()
	if err != nil {
		return 0, err
	}
	switch {
	case id == 0 && version == 0 && tables == 0:
		return 0, nil
	case id != applicationID:
		return 0, meta.E("open", 0, s.path, meta.KindInvalid, errors.New("this SQLite database was not made by nexusfs"))
	case version > int64(len(scripts)):
		return 0, meta.E("open", 0, s.path, meta.KindInvalid, fmt.Errorf(
			"the store has schema version %d, this nexusfs knows versions up to %d: use the newer nexusfs that wrote it", version, len(scripts)))
	}
	return int(version), nil
}

// checkSchema is for read-only stores, which cannot be migrated.
func (s *Store) checkSchema() error {
	version, err := s.schemaVersion()
	if err != nil {
		return s.openError(err)
	}
	scripts, err := migrations()
	if err != nil {
		return err
	}
	if version < len(scripts) {
		return meta.E("open", 0, s.path, meta.KindInvalid, fmt.Errorf(
			"the store has schema version %d, this nexusfs needs %d: mount it writable once", version, len(scripts)))
	}
	return nil
}

// migrate runs the scripts that the database has not seen, each in its own
// transaction.
func (s *Store) migrate(version int) error {
	scripts, err := migrations()
	if err != nil {
		return err
	}
	for v := version; v < len(scripts); v++ {
		if err := s.migrateOne(v+1, scripts[v]); err != nil {
			return fmt.Errorf("migrate to schema version %d: %w", v+1, err)
		}
	}
	return nil
}

func (s *Store) migrateOne(to int, script string) (err error) {
	end, err := sqlitex.ImmediateTransaction(s.w.Conn)
	if err != nil {
		return err
	}
	defer end(&err)
	if err := sqlitex.ExecuteScript(s.w.Conn, script+fmt.Sprintf(
		";\nPRAGMA user_version=%d;\nPRAGMA application_id=%d;", to, applicationID), nil); err != nil {
		return err
	}
	return s.syncKinds()
}

// syncKinds fills the table that turns operation kinds into text.
func (s *Store) syncKinds() error {
	for _, k := range meta.OpKinds() {
		if err := s.w.script("INSERT OR REPLACE INTO operation_kinds(kind,name) VALUES(?,?)", int64(k), k.String()); err != nil {
			return err
		}
	}
	return nil
}
