package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"nexusfs/meta"
)

// The SQLSTATEs that are decided here, beside their classes.
const (
	codeGuard     = "NX001" // a guard failed; the message is the reason's number
	codeFenced    = "NX003"
	codeAbandoned = "NX004"
	codeLost      = "NX005" // the server lost commits

	codeUnique        = "23505"
	codeReadOnly      = "25006"
	codeStandby       = "0A000" // a standby has no unlogged tables
	codeSerialization = "40001"
	codeDeadlock      = "40P01"
	codePrivilege     = "42501"
	codeDiskFull      = "53100"
	codeTooManyConns  = "53300"
	codeCanceled      = "57014" // statement time-out, or cancelled by an administrator
	codeNoDatabase    = "3D000"
	codeLockTimeout   = "55P03"
	codeBadPassword   = "28P01"
	codeBadAuth       = "28000"
)

// classify turns an error of the driver or the server into a *meta.Error. nil
// stays nil and a *meta.Error stays what it is.
func classify(op string, ino meta.Ino, name string, err error) error {
	if err == nil {
		return nil
	}
	var e *meta.Error
	if errors.As(err, &e) {
		return err
	}
	kind, text := explain(err)
	if text != "" {
		err = fmt.Errorf("%s: %w", text, err)
	}
	return meta.E(op, ino, name, kind, err)
}

// explain says what kind of error it is and, where the server's own words do
// not, what to do about it.
func explain(err error) (meta.Kind, string) {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return explainServer(pg)
	}
	var connect *pgconn.ConnectError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, errPoolBusy):
		return meta.KindBusy, ""
	case errors.As(err, &certificate):
		return meta.KindAccess, "the PostgreSQL server's certificate is not trusted: check sslrootcert, and that it names the host of the address"
	case errors.As(err, &connect):
		return meta.KindIO, "PostgreSQL cannot be reached: see whether the server runs and the address is right"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return meta.KindInterrupted, ""
	case cut(err):
		return meta.KindIO, "the connection to PostgreSQL broke: see whether the server runs and the network is up"
	}
	return meta.KindIO, ""
}

// cut reports whether the connection to the server broke, or could not be made.
func cut(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || pgconn.Timeout(err) || pgconn.SafeToRetry(err)
}

// gone reports whether the server was not there, or left: another attempt may
// find it back.
func gone(err error) bool {
	if code := codeOf(err); code != "" {
		return code[:2] == "57" && code != codeCanceled || code[:2] == "08"
	}
	return cut(err)
}

// unreachable reports whether another attempt may find the server, or find it
// less busy.
func unreachable(err error) bool {
	switch codeOf(err) {
	case codeCanceled, codeTooManyConns, codeSerialization, codeDeadlock:
		return true
	}
	return gone(err) || errors.Is(err, errPoolBusy)
}

func explainServer(pg *pgconn.PgError) (meta.Kind, string) {
	switch pg.Code {
	case codeGuard, codeUnique, codeSerialization, codeDeadlock:
		return meta.KindConflict, ""
	case codeFenced:
		return meta.KindFenced, ""
	case codeLost:
		return meta.KindLost, lostText
	case codeAbandoned:
		return meta.KindIO, "another attempt of this batch was given up"
	case codeDiskFull:
		return meta.KindNoSpace, "the disk of the PostgreSQL server is full"
	case codePrivilege:
		return meta.KindAccess, "the database role lacks a right: grant it as sqlssot/postgres/roles.sql does"
	case codeBadAuth:
		return meta.KindAccess, "PostgreSQL refuses the login: check user and pg_hba.conf, and whether the server demands TLS (sslmode=verify-full)"
	case codeBadPassword:
		return meta.KindAccess, "PostgreSQL refuses the login: check user, password (passfile) and pg_hba.conf"
	case codeReadOnly, codeStandby:
		return meta.KindReadOnly, "the PostgreSQL server only reads now (a standby, or default_transaction_read_only)"
	case codeTooManyConns:
		return meta.KindBusy, "the PostgreSQL server has no connection left: raise max_connections or lower the pool's size"
	case codeNoDatabase:
		return meta.KindNotExist, "make the database first (createdb)"
	case codeCanceled:
		return meta.KindIO, "PostgreSQL did not finish the statement in time"
	}
	switch pg.Code[:2] {
	case "57": // shut down, crashed, starting
		return meta.KindIO, "the PostgreSQL server is stopping or starting"
	case "XX":
		return meta.KindDamaged, "the PostgreSQL server found damage"
	}
	return meta.KindIO, ""
}

// lostText explains that what was acknowledged is gone (P15).
const lostText = "the server has lost commits: it was stopped before they were on its disk, or another server took its place"

// errPoolBusy says that no connection became free in time.
var errPoolBusy = errors.New("all connections of the pool are in use: raise the pool's size, or see what holds them up (pg_stat_activity)")

// codeOf returns the SQLSTATE of an error, "" when it is not the server's.
func codeOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// conflict says that a change's belief was wrong.
func conflict(ino meta.Ino, name, what string) error {
	return meta.E("commit", ino, name, meta.KindConflict, errors.New(what))
}

// interrupted reports a context that ended before anything was done.
func interrupted(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return meta.E(op, 0, "", meta.KindInterrupted, err)
	}
	return nil
}
