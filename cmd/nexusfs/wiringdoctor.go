package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/content/s3"
	"nexusfs/meta"
	"nexusfs/sqlssot/postgres"
)

// This file looks at a zone in a database, for nexusfs doctor.

// serverPatience bounds one attempt to reach a server: less than one check may take.
const serverPatience = 3 * time.Second

// databasePatient is a zone in a database. Its first check learns what most of
// the others judge.
type databasePatient struct {
	*patient
	x       postgres.Examination
	reached bool
	usable  bool // the schema is there, and of this version
}

// databaseChecks are made in this order; later ones use what earlier ones found.
func (p *patient) databaseChecks() []examination {
	d := &databasePatient{patient: p}
	judged := func(fn func() diagnosis) func(context.Context) diagnosis {
		return func(context.Context) diagnosis {
			if !d.reached {
				return diagnosis{}
			}
			return fn()
		}
	}
	whole := func(fn func(context.Context) diagnosis) func(context.Context) diagnosis {
		return func(ctx context.Context) diagnosis {
			if !d.x.ZoneThere || d.x.Moving != "" {
				return diagnosis{}
			}
			return fn(ctx)
		}
	}
	list := []examination{
		{"server", d.reach},
		{"schema", judged(d.schema)},
		{"rights", judged(d.rights)},
		{"server-clock", judged(func() diagnosis { return serverClockCheck(d.x.Ahead, d.x.Unsure) })},
		{"durability", judged(func() diagnosis { return durabilityCheck(&d.x) })},
		{"standbys", judged(func() diagnosis { return standbyCheck(&d.x) })},
		{"connections", judged(func() diagnosis { return connectionCheck(&d.x) })},
		{"zone", judged(d.zone)},
		{"sessions", whole(d.sessions)},
		{"content", whole(d.content)},
	}
	if p.target.mount != nil {
		list = append(list, examination{"mount", p.mount})
	}
	return append(list, examination{"daemon", d.node}, examination{"database", whole(p.database)})
}

func (d *databasePatient) options() postgres.Options {
	o := databaseOptions(d.target.remote, true, nil)
	o.Connect = serverPatience
	return o
}

func (d *databasePatient) reach(ctx context.Context) diagnosis {
	const slow = 10 * time.Millisecond // then a shell waits for each name that it makes
	x, err := postgres.Examine(ctx, d.options())
	if err != nil {
		return errorDiagnosis("", remoteOpenError(d.target.remote, err))
	}
	d.x, d.reached = x, true
	found := fmt.Sprintf("PostgreSQL %s at %s answers in %s", x.Server, d.target.display(), x.RoundTrip.Round(10*time.Microsecond))
	if x.RoundTrip > slow {
		return warn("mount on a machine closer to the database: each name that is made, changed or removed waits for one round trip", "%s", found)
	}
	return fine("%s", found)
}

func (d *databasePatient) schema() diagnosis {
	const ask = "mount once as a member of nexusfs_owner (GRANT nexusfs_owner TO %s)"
	switch {
	case d.x.Refused != nil && meta.KindOf(d.x.Refused) == meta.KindAccess:
		return diagnosis{} // the check of the rights says more
	case d.x.Refused != nil:
		return errorDiagnosis("", d.x.Refused)
	case d.x.Schema == d.x.SchemaNeeded:
		d.usable = true
		return fine("version %d", d.x.Schema)
	case !d.x.MayMigrate:
		return bad(fmt.Sprintf(ask, d.x.User), "version %d, and %d is needed: %s may not bring it there", d.x.Schema, d.x.SchemaNeeded, d.x.User)
	case d.x.Schema == 0:
		return warn("the first mount makes it: -o content=/DIRECTORY, or content=s3://BUCKET/PREFIX", "there is no store in this database yet")
	}
	return warn("the next mount that may write brings it there; older daemons do not start then", "version %d, this nexusfs has %d", d.x.Schema, d.x.SchemaNeeded)
}

func (d *databasePatient) rights() diagnosis {
	const grant = "GRANT nexusfs_daemon TO %s (sqlssot/postgres/roles.sql makes the roles)"
	x := &d.x
	switch {
	case x.ReadOnly:
		return warn("to write, connect to the primary server (target_session_attrs=read-write in the URL finds it), or unset default_transaction_read_only", "this server only reads now")
	case x.Schema == 0 && x.Refused == nil && x.MayMigrate:
		return fine("%s may make the schema", x.User)
	case x.Schema == 0 && x.Refused == nil:
		return diagnosis{} // the check of the schema has said it
	case x.MayWrite && x.MayMigrate:
		return fine("%s may write, and bring the schema up to date", x.User)
	case x.MayWrite:
		return fine("%s may write; after an upgrade of nexusfs a member of nexusfs_owner has to mount first", x.User)
	case x.MayRead:
		return warn(fmt.Sprintf(grant, x.User)+", if it is to mount", "%s may only read", x.User)
	case x.MayAsk:
		return bad(fmt.Sprintf(grant, x.User), "%s may read the views and nothing else: enough for psql, not for nexusfs", x.User)
	}
	return bad(fmt.Sprintf(grant, x.User), "%s has no rights on the schema nexusfs", x.User)
}

// serverClockCheck judges how far two clocks are apart. Records carry the time of
// the machine that made them; leases are judged by the server's clock alone.
func serverClockCheck(ahead, unsure time.Duration) diagnosis {
	const do = "run chrony or another NTP client on both machines: the log and retention go by the clocks of the machines that mount"
	found := fmt.Sprintf("the server's clock is %s from this machine's, give or take %s", ahead.Round(time.Millisecond), unsure.Round(10*time.Microsecond))
	switch off := max(ahead.Abs()-unsure, 0); {
	case off > time.Minute:
		return bad(do, "%s", found)
	case off > time.Second:
		return warn(do, "%s", found)
	}
	return fine("%s", found)
}

// durabilityCheck says what level strict is worth on a server. A daemon asks for
// synchronous_commit itself: on, or for each commit of level relaxed off.
func durabilityCheck(x *postgres.Examination) diagnosis {
	switch {
	case !x.Fsync:
		return bad("set fsync = on", "fsync is off: a loss of power loses commits and may damage the database, at level strict too")
	case !x.FullPages:
		return bad("set full_page_writes = on, unless the disk never tears a page", "full_page_writes is off: a loss of power may damage the database")
	case x.SyncStandbys != "":
		return fine("fsync is on: at level strict a commit is on the disks of this server and of its synchronous standbys (%s) before it is acknowledged", x.SyncStandbys)
	}
	return fine("fsync is on: at level strict a commit is on this server's disk before it is acknowledged")
}

// standbyCheck judges what a failover would lose.
func standbyCheck(x *postgres.Examination) diagnosis {
	var names []string
	synchronous, hidden := 0, false
	for _, s := range x.Standbys {
		names = append(names, strings.TrimSpace(s.Name+" "+s.Sync))
		hidden = hidden || s.State == ""
		if s.Sync == "sync" || s.Sync == "quorum" {
			synchronous++
		}
	}
	list := strings.Join(names, ", ")
	switch {
	case x.SyncStandbys != "" && synchronous == 0 && !hidden && !x.ReadOnly:
		return bad("start them, or take them out of synchronous_standby_names", "commits wait for standbys that are not connected (%s)", x.SyncStandbys)
	case len(names) == 0:
		return fine("none: this server has the only copy")
	case x.SyncStandbys == "":
		return warn("set synchronous_standby_names, if level strict is to hold for a failover too",
			"%s: asynchronous, so a failover loses what was acknowledged last; daemons notice that and mount anew", list)
	}
	return fine("%s", list)
}

// connectionCheck asks whether another daemon finds room.
func connectionCheck(x *postgres.Examination) diagnosis {
	free := x.MaxConns - x.ReservedConns - x.UsedConns
	found := fmt.Sprintf("%d of %d in use, %d reserved; a daemon uses up to %d", x.UsedConns, x.MaxConns, x.ReservedConns, postgres.DaemonConns)
	switch {
	case x.LimitConns >= 0 && x.LimitConns < postgres.DaemonConns:
		return warn(fmt.Sprintf("raise CONNECTION LIMIT of the role or the database to %d for each daemon", postgres.DaemonConns), "%s may have %d at once; a daemon uses up to %d", x.User, x.LimitConns, postgres.DaemonConns)
	case free < postgres.DaemonConns:
		return warn(fmt.Sprintf("raise max_connections by %d for each daemon", postgres.DaemonConns), "%s", found)
	}
	return fine("%s", found)
}

func (d *databasePatient) zone() diagnosis {
	name := d.target.remote.Zone
	switch {
	case !d.usable || !d.x.MayRead:
		return diagnosis{} // the checks above have said why
	case d.x.Moving != "":
		return bad("run that again until it has come to its end: nexusfs migrate URL --content "+shellQuote(d.x.Moving), "the content of zone %s is on its way to %s: it cannot be mounted", name, d.x.Moving)
	case d.x.ZoneThere:
		return fine("%s", name)
	case d.x.ZoneBegun:
		return bad("run it again with the same source", "a migration into zone %s has not come to its end", name)
	}
	return warn("the first mount makes it: -o content=/DIRECTORY, or content=s3://BUCKET/PREFIX", "there is no zone %s in this database", name)
}

// sessions lists who has the zone mounted, and for how long their leases hold.
func (d *databasePatient) sessions(ctx context.Context) diagnosis {
	db, err := postgres.Open(ctx, d.options())
	if err != nil {
		return errorDiagnosis("", remoteOpenError(d.target.remote, err))
	}
	list, err := db.LiveSessions(ctx)
	if err = errors.Join(err, db.Close()); err != nil {
		return errorDiagnosis("", err)
	}
	var who []string
	silent := 0
	for _, s := range list {
		text := sessionText(s)
		switch {
		case s.Lease == 0:
			text += ", without a lease"
		case s.Left <= 0:
			text += ", silent: its lease ended " + (-time.Duration(s.Left)).Round(time.Second).String() + " ago"
			silent++
		default:
			text += ", lease for another " + time.Duration(s.Left).Round(time.Second).String()
		}
		who = append(who, text)
	}
	switch {
	case len(who) == 0:
		return fine("nobody has the zone")
	case silent > 0:
		return warn("nothing: whoever mounts next ends them; see what became of those machines", "%s", strings.Join(who, "; "))
	}
	return fine("%s", strings.Join(who, "; "))
}

// content looks at the place of the zone's blobs as this machine sees it.
func (d *databasePatient) content(ctx context.Context) diagnosis {
	place := d.x.Content
	far := farContent{place, d.target.remote.Zone, d.x.ContentID}
	switch {
	case place == "":
		return warn("the first mount says it: -o content=/DIRECTORY, or content=s3://BUCKET/PREFIX", "nobody has said yet where the content lies")
	case isS3(place):
		return bucketCheck(ctx, far)
	}
	return sharedDirCheck(ctx, far)
}

// bucketCheck asks for the marker: that takes the bucket, the keys and the store.
func bucketCheck(ctx context.Context, far farContent) diagnosis {
	const do = "see whether the bucket is there, the keys (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or credentials= in the URL) may use it, and the endpoint is right"
	o, err := far.bucket()
	if err != nil {
		return errorDiagnosis("migrate the content to a place that can be used: nexusfs migrate URL --content PLACE", err)
	}
	o.ReadOnly, o.Timeout, o.Tries = true, serverPatience, 2
	began := time.Now()
	store, err := s3.Open(ctx, o)
	switch {
	case ctx.Err() != nil:
		return bad(do, "%s does not answer within %s", o.Location, doctorPatience)
	case err != nil:
		return errorDiagnosis(do, err)
	}
	took := time.Since(began)
	if err := store.Close(); err != nil {
		return errorDiagnosis("", err)
	}
	return fine("%s answers in %s, and is this zone's", o.Location, took.Round(time.Millisecond))
}

// sharedDirCheck opens the directory, which every machine that mounts has to have.
func sharedDirCheck(ctx context.Context, far farContent) diagnosis {
	store, err := far.open(ctx, true, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist), meta.KindOf(err) == meta.KindNotExist && err != nil:
		return bad("mount the disk that has it on this machine, at the same path", "%s is not there: the content of the zone cannot be reached from this machine", far.dir())
	case err != nil:
		return errorDiagnosis("", err)
	}
	if err := store.Close(); err != nil {
		return errorDiagnosis("", err)
	}
	if unix.Access(far.dir(), unix.W_OK|unix.X_OK) != nil {
		return warn("give the user who mounts the directory", "%s may only be read by this user", far.dir())
	}
	d := spaceCheck(far.dir())
	d.Found = far.dir() + ": " + d.Found
	return d
}

// node asks the daemon of this machine that has the zone, if there is one.
func (d *databasePatient) node(ctx context.Context) diagnosis {
	at, err := d.app.nodeOf(d.target)
	switch {
	case err != nil:
		return errorDiagnosis("", err)
	case at == nil:
		return fine("none on this machine")
	}
	d.held, d.busy = at.by, true
	if d.held.Control == "" {
		d.held.Control = at.dir.file("control.sock")
	}
	return d.daemon(ctx)
}
