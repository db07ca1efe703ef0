package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// minServer is the oldest server that works: 15.
const minServer = 150000

// migrationLock is the advisory lock that daemons which start at once take
// before they look at the schema: "nxfs" twice.
const migrationLock = 0x6e7866736e786673

//go:embed migrations/*.sql
var migrationFiles embed.FS

// RolesScript makes the roles nexusfs_owner, nexusfs_daemon and nexusfs_reader
// and gives them their rights. An administrator runs it in the database once,
// before or after the first migration.
//
//go:embed roles.sql
var RolesScript string

// migration is one numbered script.
type migration struct {
	version int
	name    string
	sql     string
}

// migrations returns the scripts in order.
func migrations() ([]migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	out := make([]migration, len(names))
	for i, n := range names {
		base := strings.TrimSuffix(strings.TrimPrefix(n, "migrations/"), ".sql")
		if !strings.HasPrefix(base, fmt.Sprintf("%04d_", i+1)) {
			return nil, fmt.Errorf("migration %s is out of sequence", n)
		}
		b, err := migrationFiles.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out[i] = migration{i + 1, base, string(b)}
	}
	return out, nil
}

// Migrate brings the schema up to date, under a lock that makes daemons which
// start at once migrate once. KindInvalid when the database holds something
// else in our schema, was written by a newer version or the server is too old;
// KindAccess when the role may not change the schema. Nothing is changed then.
func Migrate(ctx context.Context, o Options) error {
	return withConn(ctx, o, func(c *pgx.Conn) error { return migrate(ctx, c) })
}

// MigrationPlan returns what Migrate would run now, in order, and changes
// nothing. It is empty when the schema is up to date.
func MigrationPlan(ctx context.Context, o Options) (statements []string, err error) {
	err = withConn(ctx, o, func(c *pgx.Conn) error {
		version, err := schemaVersion(ctx, c)
		if err != nil {
			return err
		}
		statements, err = plan(version)
		return err
	})
	return statements, err
}

// withConn runs fn on a connection of its own.
func withConn(ctx context.Context, o Options, fn func(c *pgx.Conn) error) error {
	if err := interrupted(ctx, "migrate"); err != nil {
		return err
	}
	o = o.withDefaults()
	config, err := o.poolConfig(poolLong, 1, &trips{})
	if err != nil {
		return err
	}
	c, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return classify("connect", 0, "", err)
	}
	err = fn(c)
	return classify("migrate", 0, "", errors.Join(err, c.Close(context.WithoutCancel(ctx))))
}

const createSchema = "CREATE SCHEMA IF NOT EXISTS " + schemaName

// ownSchema makes the schema where it is missing, and goes on as nexusfs_owner
// where that owns it, so that whoever migrates next may change what is made now.
func ownSchema(ctx context.Context, tx pgx.Tx) error {
	var there, role bool
	if err := tx.QueryRow(ctx, `SELECT to_regnamespace('nexusfs') IS NOT NULL, EXISTS (SELECT FROM pg_roles WHERE rolname = 'nexusfs_owner')`).Scan(&there, &role); err != nil {
		return err
	}
	if !there {
		sql := "CREATE SCHEMA " + schemaName
		if role {
			sql += " AUTHORIZATION nexusfs_owner"
		}
		if _, err := exec(ctx, tx, sql); err != nil {
			return err
		}
	}
	var owner bool
	if err := tx.QueryRow(ctx, `SELECT r.rolname = 'nexusfs_owner' AND pg_has_role(current_user, r.oid, 'MEMBER')
		FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'nexusfs'`).Scan(&owner); err != nil || !owner {
		return err
	}
	_, err := exec(ctx, tx, "SET LOCAL ROLE nexusfs_owner")
	return err
}

// plan lists the statements from a version on.
func plan(version int) ([]string, error) {
	list, err := migrations()
	if err != nil || version >= len(list) {
		return nil, err
	}
	var out []string
	if version == 0 {
		out = append(out, createSchema)
	}
	for _, m := range list[version:] {
		out = append(out, m.sql, fmt.Sprintf("INSERT INTO schema_version(version, name) VALUES (%d, '%s')", m.version, m.name))
	}
	for _, k := range meta.OpKinds() {
		out = append(out, fmt.Sprintf("INSERT INTO operation_kinds(kind, name) VALUES (%d, '%s') ON CONFLICT (kind) DO UPDATE SET name = excluded.name", k, k))
	}
	return append(out, "SELECT grant_roles()"), nil
}

// schemaVersion reads the version of the schema, 0 when there is none, and
// refuses what is not ours, too new or too old a server.
func schemaVersion(ctx context.Context, c querier) (version int, err error) {
	var server, tables int
	var encoding string
	var ours bool
	err = c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
		to_regclass('nexusfs.schema_version') IS NOT NULL,
		(SELECT count(*)::int FROM pg_class WHERE relnamespace = to_regnamespace('nexusfs'))`).Scan(&server, &encoding, &ours, &tables)
	if err != nil {
		return 0, err
	}
	refuse := func(format string, args ...any) error {
		return meta.E("open", 0, "", meta.KindInvalid, fmt.Errorf(format, args...))
	}
	switch {
	case server < minServer:
		return 0, refuse("the server is PostgreSQL %d: version %d or newer is needed", server/10000, minServer/10000)
	case encoding != "UTF8":
		return 0, refuse("the database's encoding is %s: make one with encoding UTF8", encoding)
	case !ours && tables > 0:
		return 0, refuse("the schema %s of this database was not made by nexusfs: use another database", schemaName)
	case !ours:
		return 0, nil
	}
	if err := c.QueryRow(ctx, `SELECT coalesce(max(version), 0)::int FROM nexusfs.schema_version`).Scan(&version); err != nil {
		return 0, err
	}
	list, err := migrations()
	if err == nil && version > len(list) {
		err = refuse("the store has schema version %d, this nexusfs knows versions up to %d: use the newer nexusfs that wrote it", version, len(list))
	}
	return version, err
}

// querier is a connection, a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// migrate runs the scripts that the database has not seen, all in one
// transaction: a migration that fails leaves nothing behind.
func migrate(ctx context.Context, c *pgx.Conn) error {
	if version, err := schemaVersion(ctx, c); err != nil || version == lastVersion() {
		return err
	}
	tx, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	err = migrateIn(ctx, tx)
	if err == nil {
		err = tx.Commit(ctx)
	} else {
		err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
	}
	if codeOf(err) == codePrivilege {
		return meta.E("migrate", 0, "", meta.KindAccess, fmt.Errorf(
			"the schema must be brought to version %d and this role may not do that: start once as a member of nexusfs_owner: %w", lastVersion(), err))
	}
	return err
}

func lastVersion() int {
	list, err := migrations()
	if err != nil {
		return 0
	}
	return len(list)
}

func migrateIn(ctx context.Context, tx pgx.Tx) error {
	if _, err := exec(ctx, tx, "SELECT pg_advisory_xact_lock($1)", int64(migrationLock)); err != nil {
		return err
	}
	version, err := schemaVersion(ctx, tx) // another daemon may have been faster
	if err != nil {
		return err
	}
	if err := ownSchema(ctx, tx); err != nil {
		return err
	}
	statements, err := plan(version)
	if err != nil {
		return err
	}
	for _, sql := range statements {
		if sql == createSchema {
			continue // by ownSchema
		}
		if _, err := tx.Conn().PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}
