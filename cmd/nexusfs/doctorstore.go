package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// patient is the store that is looked at.
type patient struct {
	app    *app
	target *target
	write  bool

	gone bool // there is no store: nothing else can be looked at
	held holder
	busy bool // somebody has it exclusively
}

// checks are made in this order; later ones use what earlier ones found.
func (p *patient) checks() []examination {
	if p.target.remote != nil {
		return p.databaseChecks()
	}
	on := func(dir string, fn func(string) diagnosis) func(context.Context) diagnosis {
		return func(context.Context) diagnosis { return fn(dir) }
	}
	list := []examination{
		{"store", p.directory},
		{"filesystem", on(p.dir(), diskCheck)},
		{"space", on(p.dir(), spaceCheck)},
	}
	if content, err := p.target.store.contentAt(); err == nil && content != p.target.store.content(defaultZone) {
		list = append(list, examination{"content-disk", on(content, diskCheck)}, examination{"content-space", on(content, spaceCheck)})
	}
	list = append(list, examination{"permissions", p.permissions}, examination{"lock", p.lock})
	if p.target.mount != nil {
		list = append(list, examination{"mount", p.mount})
	}
	list = append(list, examination{"daemon", p.daemon}, examination{"database", p.database})
	for i, e := range list {
		list[i].run = func(ctx context.Context) diagnosis {
			if p.gone {
				return diagnosis{}
			}
			return e.run(ctx)
		}
	}
	return list
}

func (p *patient) dir() string { return string(p.target.store) }

func (p *patient) directory(context.Context) diagnosis {
	state, err := p.target.store.inspect()
	switch {
	case err != nil:
		return errorDiagnosis("", err)
	case state == storeAbsent:
		p.gone = true
		return bad("nexusfs mount "+shellQuote(p.dir())+" MOUNTPOINT makes it", "there is no store at %s", p.dir())
	case state == storeNew:
		return warn("mount it: that makes it whole", "%s was begun and never mounted", p.dir())
	}
	mark, err := p.target.store.readMark()
	if err != nil {
		return errorDiagnosis("", err)
	}
	return fine("%s, format %d, keeps history %s", p.dir(), mark.Version, mark.History)
}

// disk is a kind of filesystem under a store.
type disk struct {
	name string
	do   string // "": good
}

// Filesystems by the magic numbers of statfs(2).
func diskType(magic int64) disk {
	const network = "keep the store on a local disk (ext4, xfs, btrfs): locks, and what survives a loss of power, depend on it"
	switch uint32(magic) {
	case unix.EXT4_SUPER_MAGIC:
		return disk{name: "ext4"}
	case unix.XFS_SUPER_MAGIC:
		return disk{name: "xfs"}
	case unix.BTRFS_SUPER_MAGIC:
		return disk{name: "btrfs"}
	case unix.F2FS_SUPER_MAGIC:
		return disk{name: "f2fs"}
	case 0x2fc12fc1:
		return disk{name: "zfs"}
	case unix.OVERLAYFS_SUPER_MAGIC:
		return disk{"overlayfs", "keep the store on a volume: what is in a container's own filesystem goes with it"}
	case unix.TMPFS_MAGIC:
		return disk{"tmpfs", "keep the store on a disk: this one is memory, and empty after a restart"}
	case unix.NFS_SUPER_MAGIC:
		return disk{"NFS", network}
	case unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.SMB_SUPER_MAGIC:
		return disk{"SMB", network}
	case unix.CEPH_SUPER_MAGIC:
		return disk{"CephFS", network}
	case unix.V9FS_MAGIC:
		return disk{"9p", network}
	case unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC:
		return disk{"AFS", network}
	case unix.FUSE_SUPER_MAGIC:
		return disk{"FUSE", network}
	}
	return disk{fmt.Sprintf("of type %#x", uint32(magic)), "ext4, xfs and btrfs are known to work; make sure that this one honours fsync"}
}

func diskCheck(dir string) diagnosis {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return bad("see whether the disk is well, and mounted", "%s: %v", dir, err)
	}
	d := diskType(int64(st.Type))
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		return bad("mount that disk writable", "the disk under %s (%s) is read-only", dir, d.name)
	case d.do != "":
		return warn(d.do, "the disk under %s is %s", dir, d.name)
	}
	return fine("the disk under %s is %s", dir, d.name)
}

// Bounds of the check for room, as shares of the disk. Below the first, history
// goes before its time; below the second, writes are about to be refused.
const (
	spaceLow  = 20
	spaceFull = 100
)

func spaceCheck(dir string) diagnosis {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return bad("see whether the disk is well, and mounted", "%s: %v", dir, err)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	found := fmt.Sprintf("%s free of %s, %d inodes free of %d", humanBytes(free), humanBytes(total), st.Ffree, st.Files)
	switch {
	case free < total/spaceFull || st.Files > 0 && st.Ffree == 0:
		return bad("free some space, or move the store to a larger disk (nexusfs migrate)", "%s", found)
	case free < total/spaceLow:
		return warn("free some space: history goes before its time now", "%s", found)
	case st.Files > 0 && st.Ffree < st.Files/spaceFull:
		return warn("remove files from that disk: it is about to have no inodes left", "%s", found)
	}
	return fine("%s", found)
}

func (p *patient) permissions(context.Context) diagnosis {
	fi, err := os.Stat(p.dir())
	if err != nil {
		return bad("see whether the disk under the store is well", "%v", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fine("owned by somebody")
	}
	me := os.Geteuid()
	found := fmt.Sprintf("owned by uid %d, mode %04o", st.Uid, fi.Mode().Perm())
	switch {
	case me != 0 && int(st.Uid) != me:
		return bad("use its owner's account, or its mount", "%s, and this is uid %d", found, me)
	case unix.Access(p.dir(), unix.R_OK|unix.W_OK|unix.X_OK) != nil:
		return bad("chmod u+rwx "+shellQuote(p.dir()), "%s: not writable for its owner", found)
	case fi.Mode().Perm()&0o077 != 0:
		return warn("chmod 0700 "+shellQuote(p.dir())+": modes inside of the store do not guard its files from who can read them here", "%s", found)
	}
	return fine("%s", found)
}

func (p *patient) lock(context.Context) diagnosis {
	by, held, err := probeLock(p.target.store)
	p.held, p.busy = by, held
	switch {
	case err != nil:
		return errorDiagnosis("", err)
	case !held:
		return fine("nobody has the store")
	case by.Role == "mount":
		return fine("the daemon with pid %d has it, mounted at %s since %s", by.PID, by.Mountpoint, humanTime(by.Started))
	}
	return warn("wait until it is done; the checks below cannot look inside", "`nexusfs %s` (pid %d) has it since %s", by.Role, by.PID, humanTime(by.Started))
}

// mount asks the mount itself, which only a living daemon answers.
func (p *patient) mount(context.Context) diagnosis {
	var st unix.Statfs_t
	point := p.target.mount.Point
	err := unix.Statfs(point, &st)
	switch {
	case isDeadError(err):
		return bad("take it away: nexusfs umount "+shellQuote(point), "%s is the mount of a daemon that died", point)
	case errors.Is(err, unix.EACCES):
		return fine("%s belongs to another user and answers", point)
	case err != nil:
		return bad("see the daemon's log", "%s: %v", point, err)
	}
	return fine("%s answers", point)
}

// daemon asks it what it is.
func (p *patient) daemon(ctx context.Context) diagnosis {
	if !p.busy || p.held.Role != "mount" {
		return fine("none: the store is not mounted")
	}
	const do = "see its log; if it does not come back: kill -9 it, which loses nothing that was acknowledged, and mount again"
	c := dialDaemon(p.controlSocket())
	defer c.Close()
	var s statusReport
	began := time.Now()
	if err := c.get(ctx, "status", nil, &s); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not within %s", doctorPatience)
		}
		return bad(do, "the daemon with pid %d does not answer: %v", p.held.PID, err)
	}
	took := time.Since(began).Round(time.Millisecond)
	switch {
	case s.Failed != "":
		return bad("check the disk, then unmount and mount again", "the daemon refuses changes: %s", s.Failed)
	case s.Content.Damaged > 0:
		return bad("nexusfs fsck names the files", "%d reads met damaged content", s.Content.Damaged)
	case s.Version != versionString():
		return warn("unmount and mount again, so that both are one version", "the daemon runs nexusfs %s, this is %s", s.Version, versionString())
	}
	return fine("nexusfs %s, pid %d, answered in %s, up %s", s.Version, s.PID, took, time.Since(s.Started).Round(time.Second))
}

func (p *patient) controlSocket() string {
	if p.held.Control != "" {
		return p.held.Control
	}
	return p.target.store.file("control.sock")
}

// database looks into the store, through the daemon where there is one. It
// answers for the content too.
func (p *patient) database(ctx context.Context) diagnosis {
	const do = "nexusfs fsck names what is wrong; restore that from a backup"
	if p.busy && p.held.Role != "mount" {
		return diagnosis{} // the check of the lock has said it
	}
	c, err := p.connect(ctx)
	if err != nil {
		return errorDiagnosis("", err)
	}
	var r probeReport
	err = c.post(ctx, "probe", url.Values{"write": {strconv.FormatBool(p.write)}}, &r)
	if cerr := c.Close(); err == nil && cerr != nil {
		err = cerr
	}
	switch {
	case ctx.Err() != nil:
		return bad("see the checks above; when the store is busy, try again", "it did not answer within %s", doctorPatience)
	case err != nil:
		return errorDiagnosis(do, err)
	case r.ReadError != "":
		return bad(do, "content cannot be read: %s", r.ReadError)
	case r.WriteError != "":
		return bad("check the disk's space and permissions", "content cannot be stored: %s", r.WriteError)
	case r.Newest > time.Now().Add(time.Minute).UnixNano():
		return bad("set the clock right before anything is written: histories and retention go by it",
			"the newest record is of %s, which is in the future", time.Unix(0, r.Newest).Format(time.RFC3339))
	case r.Unended > 0 && !c.Daemon && p.target.remote == nil:
		return warn("mount it once and unmount it: the next daemon looks through what the last one left", "the last daemon did not end in order")
	}
	return fine("schema %d, revision %d, newest record of %s; %s", r.Schema, r.Revision, time.Unix(0, r.Newest).Format(time.RFC3339), r.content())
}

// connect is app.connect without waiting for a daemon that is just starting.
func (p *patient) connect(ctx context.Context) (*client, error) {
	if p.busy && p.held.Role == "mount" {
		return dialDaemon(p.controlSocket()), nil
	}
	need := accessRead
	if p.write {
		need = accessWrite
	}
	return p.app.connect(ctx, p.target, need, "doctor")
}

// probeReport is what a store says of itself.
type probeReport struct {
	Schema     int      `json:"schema"`
	Revision   meta.Rev `json:"revision"`
	Newest     int64    `json:"newest_record"` // time, ns
	Unended    int64    `json:"unended_sessions"`
	Read       int64    `json:"read_bytes"` // of the blob that was read; 0: there is none
	ReadError  string   `json:"read_error,omitempty"`
	Wrote      int64    `json:"wrote_bytes"`
	WriteError string   `json:"write_error,omitempty"`
}

func (r *probeReport) content() string {
	s := "there is no content outside of SQL"
	if r.Read > 0 {
		s = fmt.Sprintf("a blob of %s was read and verified", humanBytes(r.Read))
	}
	if r.Wrote > 0 {
		s += fmt.Sprintf(", one of %s stored, read and removed", humanBytes(r.Wrote))
	}
	return s
}
