package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"nexusfs/meta"
)

// schemaName is the schema of our tables, views, types and functions.
const schemaName = "nexusfs"

// Defaults and limits of Options.
const (
	defaultConns     = 8
	defaultConnect   = 5 * time.Second
	defaultStatement = 30 * time.Second
	defaultSettle    = 30 * time.Second
	longConns        = 4 // connections for what may take long: scans, checks, upkeep
	commitConns      = 2 // one commits; one more while a broken one is being replaced
)

// Options say which store to open.
type Options struct {
	// URL is postgres://user@host:port/database?...; parts that are left out come
	// from libpq's environment (PGHOST, PGSERVICE, PGPASSFILE, ...), the password
	// best from a passfile. It is never shown with its password.
	URL      string
	Zone     string // "" means "default"
	Strict   bool   // a commit is on disk before Commit returns; else after Sync
	ReadOnly bool   // writes nothing; Commit and everything else that writes gives KindReadOnly
	Conns    int    // connections for reads; 0 means 8. A few more are used for commits and upkeep
	// Connect bounds one attempt to connect, and for how long a server that is away
	// is tried again (0: 5 s), Statement how long a
	// statement of the filesystem may run (0: 30 s), Settle for how long the
	// outcome of a commit is looked for after its connection broke (0: 30 s).
	Connect, Statement, Settle time.Duration
	Log                        *slog.Logger
	Now                        func() time.Time

	// For Create: the root directory's permission bits and owner.
	Mode, UID, GID uint32
}

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	if o.Zone == "" {
		o.Zone = "default"
	}
	if o.Conns <= 0 {
		o.Conns = defaultConns
	}
	for d, value := range map[*time.Duration]time.Duration{&o.Connect: defaultConnect, &o.Statement: defaultStatement, &o.Settle: defaultSettle} {
		if *d <= 0 {
			*d = value
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// String shows where the store is, without its password.
func (o Options) String() string {
	c, err := pgx.ParseConfig(o.URL)
	if err != nil {
		return "postgres store (its address cannot be parsed), zone " + strconv.Quote(o.Zone)
	}
	return address(c) + ", zone " + strconv.Quote(o.Zone)
}

// GoString keeps the password out of %#v too.
func (o Options) GoString() string { return o.String() }

// LogValue keeps the password out of logs.
func (o Options) LogValue() slog.Value { return slog.StringValue(o.String()) }

// address is host, port, user and database of a connection.
func address(c *pgx.ConnConfig) string {
	u := url.URL{Scheme: "postgres", User: url.User(c.User), Host: c.Host + ":" + strconv.Itoa(int(c.Port)), Path: "/" + c.Database}
	if c.Host != "" && c.Host[0] == '/' {
		u.Host = ""
		u.RawQuery = url.Values{"host": {c.Host}, "port": {strconv.Itoa(int(c.Port))}}.Encode()
	}
	return u.String()
}

// poolKind says what a pool's connections are for.
type poolKind int

const (
	poolCommit poolKind = iota // batches: point statements, no sharing with readers
	poolRead                   // what a request waits for: point statements
	poolLong                   // scans and upkeep
)

// poolConfig makes the configuration of one pool.
func (o *Options) poolConfig(kind poolKind, conns int, t *trips) (*pgxpool.Config, error) {
	c, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, meta.E("open", 0, "", meta.KindInvalid, parseError(err))
	}
	c.MaxConns = int32(conns)
	c.ConnConfig.ConnectTimeout = o.Connect
	c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // a round trip; borrow repairs
	c.ConnConfig.Tracer = t
	p := c.ConnConfig.RuntimeParams
	if p["application_name"] == "" {
		p["application_name"] = "nexusfs"
	}
	p["search_path"] = schemaName
	p["timezone"] = "UTC"
	p["jit"] = "off"
	p["default_transaction_isolation"] = "read committed"
	p["synchronous_commit"] = "on" // commit_batch turns it off for itself where it may
	if kind == poolCommit {
		c.AfterConnect = prepareCommit
	}
	if kind != poolLong {
		// Every statement of these pools finds a few rows by their keys. Plans are
		// made once; without these a plan made while a table was small would read
		// all of it when it is large.
		p["statement_timeout"] = strconv.FormatInt(o.Statement.Milliseconds(), 10)
		p["plan_cache_mode"] = "force_generic_plan"
		p["enable_hashjoin"], p["enable_mergejoin"], p["enable_seqscan"] = "off", "off", "off"
	}
	return c, nil
}

// parseError says what is wrong with an address. The driver's text may quote
// parts of it, so it is not passed on.
func parseError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return errors.New("the store's address is no valid postgres:// URL: percent-encode special characters of user, password and names")
	}
	return fmt.Errorf("the store's address cannot be used: it must look like postgres://user@host:port/database?sslmode=verify-full (%w)", errRedacted)
}

var errRedacted = errors.New("details are not shown, for they may quote the password")
