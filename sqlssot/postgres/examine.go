package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// DaemonConns is how many connections a daemon uses at most with the default
// Options.
const DaemonConns = defaultConns + longConns + commitConns + 1 // one listens

// Examination is what a server says of itself, of a login and of a zone. What
// concerns the schema is zero when Refused is set or there is none.
type Examination struct {
	Server    string        // its version, in its words
	RoundTrip time.Duration // of the fastest of a few point selects
	Ahead     time.Duration // the server's clock minus this machine's
	Unsure    time.Duration // by how much Ahead may be wrong, either way

	Schema, SchemaNeeded int   // versions; Schema is 0 where there is none
	Refused              error // why this nexusfs cannot use what is there; nil: it can

	User       string
	MayMigrate bool // may bring the schema up to date
	MayWrite   bool // may do what a daemon does
	MayRead    bool // may read the tables, as commands do
	MayAsk     bool // may read the views
	ReadOnly   bool // a standby, or default_transaction_read_only is set

	Fsync, FullPages bool
	SyncStandbys     string // synchronous_standby_names
	Standbys         []Standby

	MaxConns, ReservedConns, UsedConns int // of the server
	LimitConns                         int // of the login or the database, the lower one; -1: none

	ZoneThere bool   // and complete
	ZoneBegun bool   // a migration into it has not come to its end
	Content   string // where its content lies (ContentPlace)
	ContentID string // and what marks it
	Moving    string // where its content is on its way to; "": nowhere
}

// Standby is a server that follows the examined one.
type Standby struct {
	Name, State, Sync string // as in pg_stat_replication; unknown without the right to see them
}

// Examine looks at a database and changes nothing. It opens one connection and
// sends about ten statements. Errors are those of connecting, as of Open; what it
// learns is in the Examination.
func Examine(ctx context.Context, o Options) (x Examination, err error) {
	o = o.withDefaults()
	if err := checkZone(o.Zone); err != nil {
		return x, err
	}
	x.SchemaNeeded = lastVersion()
	err = withConn(ctx, o, func(c *pgx.Conn) error {
		for _, look := range []func(context.Context, *pgx.Conn) error{x.clock, x.settings, x.connections, x.standbys, x.rights} {
			if err := look(ctx, c); err != nil {
				return err
			}
		}
		x.Schema, x.Refused = schemaVersion(ctx, c)
		if x.Refused != nil {
			x.Refused = classify("open", 0, "", x.Refused)
		}
		if x.Refused == nil && x.Schema == x.SchemaNeeded && x.MayRead {
			return x.zone(ctx, c, o.Zone)
		}
		return nil
	})
	return x, err
}

// clock measures the way and compares the clocks, as NTP does: the answer was
// made somewhere between sending and receiving.
func (x *Examination) clock(ctx context.Context, c *pgx.Conn) error {
	const tries = 4 // the first one prepares the statement
	for range tries {
		var there int64
		sent := time.Now()
		if err := c.QueryRow(ctx, `SELECT `+serverNow).Scan(&there); err != nil {
			return err
		}
		took := time.Since(sent)
		if x.RoundTrip == 0 || took < x.RoundTrip {
			x.RoundTrip, x.Unsure = took, took/2
			x.Ahead = time.Unix(0, there).Sub(sent.Add(took / 2))
		}
	}
	return nil
}

func (x *Examination) settings(ctx context.Context, c *pgx.Conn) error {
	return c.QueryRow(ctx, `SELECT current_setting('server_version'), current_user::text,
			pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool,
			current_setting('fsync')::bool, current_setting('full_page_writes')::bool,
			current_setting('synchronous_standby_names')`).
		Scan(&x.Server, &x.User, &x.ReadOnly, &x.Fsync, &x.FullPages, &x.SyncStandbys)
}

func (x *Examination) connections(ctx context.Context, c *pgx.Conn) error {
	return c.QueryRow(ctx, `SELECT current_setting('max_connections')::int,
			current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0),
			(SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend'),
			coalesce((SELECT min(n)::int FROM (SELECT rolconnlimit AS n FROM pg_roles WHERE rolname = session_user
				UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database()) l WHERE n >= 0), -1)`).
		Scan(&x.MaxConns, &x.ReservedConns, &x.UsedConns, &x.LimitConns)
}

func (x *Examination) standbys(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, `SELECT coalesce(application_name, ''), coalesce(state, ''), coalesce(sync_state, '') FROM pg_stat_replication ORDER BY 1`)
	if err != nil {
		return err
	}
	var s Standby
	_, err = pgx.ForEachRow(rows, []any{&s.Name, &s.State, &s.Sync}, func() error {
		x.Standbys = append(x.Standbys, s)
		return nil
	})
	return err
}

// rights are looked up by catalogue numbers: by name, what may not be seen is an error.
func (x *Examination) rights(ctx context.Context, c *pgx.Conn) error {
	return c.QueryRow(ctx, `WITH n AS (SELECT oid, nspowner FROM pg_namespace WHERE nspname = 'nexusfs'),
			t AS (SELECT c.relname AS name, c.oid FROM pg_class c JOIN n ON n.oid = c.relnamespace),
			u AS (SELECT coalesce((SELECT has_schema_privilege(oid, 'USAGE') FROM n), false) AS usage)
		SELECT coalesce((SELECT pg_has_role(nspowner, 'USAGE') FROM n), has_database_privilege(current_database(), 'CREATE')),
			u.usage AND coalesce((SELECT bool_and(has_table_privilege(t.oid, 'INSERT, UPDATE, DELETE')) FROM t WHERE name IN ('inodes', 'counters', 'session_rows')), false)
				AND has_database_privilege(current_database(), 'TEMPORARY'),
			u.usage AND coalesce((SELECT bool_and(has_table_privilege(t.oid, 'SELECT')) FROM t WHERE name IN ('inodes', 'zones', 'counters')), false),
			u.usage AND coalesce((SELECT bool_and(has_table_privilege(t.oid, 'SELECT')) FROM t WHERE name IN ('files', 'operations')), false)
		FROM u`).Scan(&x.MayMigrate, &x.MayWrite, &x.MayRead, &x.MayAsk)
}

func (x *Examination) zone(ctx context.Context, c *pgx.Conn, name string) error {
	var found string
	err := c.QueryRow(ctx, `SELECT z.name, z.content, z.uid::text, coalesce(m.dest, '')
			FROM zones z LEFT JOIN content_moves m ON m.zone = z.zone AND NOT m.done WHERE z.name IN ($1, $2)`, name, name+unfinished).
		Scan(&found, &x.Content, &x.ContentID, &x.Moving)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	x.ZoneThere, x.ZoneBegun = found == name, found != name
	return err
}
