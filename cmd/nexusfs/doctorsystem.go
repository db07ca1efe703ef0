package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// systemChecks look at the machine.
func systemChecks() []examination {
	return []examination{
		{"kernel", func(context.Context) diagnosis { return kernelCheck(kernelRelease()) }},
		{"fuse", func(context.Context) diagnosis { return fuseCheck(fuseDevice) }},
		{"fusermount3", func(context.Context) diagnosis { return fusermountCheck(os.Geteuid()) }},
		{"fuse.conf", func(context.Context) diagnosis { return fuseConfCheck("/etc/fuse.conf", os.Geteuid()) }},
		{"clock", func(context.Context) diagnosis { return clockCheck(time.Now()) }},
		{"clock-sync", func(context.Context) diagnosis { return clockSyncCheck() }},
		{"descriptors", func(context.Context) diagnosis { return descriptorsCheck() }},
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// kernelCheck says what an older kernel costs.
func kernelCheck(release string) diagnosis {
	var major, minor int
	if n, err := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return warn("Linux 5.15 or later is needed", "the kernel's version %q is not understood: %v", release, err)
	}
	before := func(a, b int) bool { return major < a || major == a && minor < b }
	switch {
	case before(5, 15):
		return bad("use Linux 5.15 or later", "Linux %s is too old", release)
	case before(6, 9):
		return warn("use Linux 6.9 or later where large files are read much",
			"Linux %s has no FUSE passthrough (6.9) and no INC_EPOCH (6.16): reads of versions and of read-only mounts go through the daemon", release)
	case before(6, 16):
		return fine("Linux %s; without INC_EPOCH (6.16), which only mounts that share a zone would use: their cached names live shorter", release)
	}
	return fine("Linux %s, with passthrough and INC_EPOCH", release)
}

func fuseCheck(device string) diagnosis {
	if err := checkFuse(device); err != nil {
		return errorDiagnosis("", err)
	}
	if err := unix.Access(device, unix.R_OK|unix.W_OK); err != nil {
		return bad("give users access, as udev does: chmod 0666 "+device, "%s is there, and this user may not open it: %v", device, err)
	}
	return fine("%s can be opened", device)
}

func fusermountCheck(uid int) diagnosis {
	const do = "install it: apt-get install fuse3"
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		if uid == 0 {
			return warn(do, "fusermount3 is missing: root can mount, other users cannot")
		}
		return bad(do, "fusermount3 is missing, and only root can mount without it")
	}
	if fi, err := os.Stat(path); uid != 0 && err == nil && fi.Mode()&fs.ModeSetuid == 0 {
		return bad("chmod u+s "+path+" (as root), or install fuse3 again", "%s is not setuid root, so this user cannot mount", path)
	}
	return fine("%s", path)
}

func fuseConfCheck(path string, uid int) diagnosis {
	const do = "as root, add the line user_allow_other to /etc/fuse.conf, if others are to use this user's mounts"
	f, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return warn("make it readable for all: chmod 0644 "+path, "%v", err)
	}
	allowed := false
	if err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			allowed = allowed || strings.TrimSpace(lines.Text()) == "user_allow_other"
		}
	}
	switch {
	case allowed:
		return fine("user_allow_other is set: every user may mount with allow_other")
	case uid == 0:
		return fine("user_allow_other is not set: only root may mount with allow_other")
	}
	return warn(do, "user_allow_other is not set: this user cannot mount with allow_other")
}

// clockCheck finds a clock that was never set.
func clockCheck(now time.Time) diagnosis {
	if now.Year() < 2025 || now.Year() > 2200 {
		return bad("set the clock, before anything is written: records carry its time", "it is %s", now.Format(time.RFC3339))
	}
	return fine("it is %s", now.Format(time.RFC3339))
}

// clockSyncCheck asks the kernel whether something keeps the clock right.
func clockSyncCheck() diagnosis {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	const timeError = 5
	switch {
	case err != nil:
		return fine("the kernel does not say whether the clock is synchronised (%v)", err)
	case state == timeError || t.Status&unix.STA_UNSYNC != 0:
		return warn("run chrony, systemd-timesyncd or another NTP client, here or on the host", "nothing synchronises the clock")
	}
	return fine("synchronised, within %s", time.Duration(t.Maxerror)*time.Microsecond)
}

// wantDescriptors is what a busy daemon may have open: files of the content
// store for reading and for the next flush, segments, the database, and each
// request's.
const wantDescriptors = 4096

func descriptorsCheck() diagnosis {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return warn("", "the limit of open files is not known: %v", err)
	}
	if r.Max < wantDescriptors {
		return warn(fmt.Sprintf("raise it to %d: ulimit -Hn, /etc/security/limits.conf, or LimitNOFILE= of the unit", wantDescriptors),
			"at most %d files may be open", r.Max)
	}
	return fine("%d files may be open", r.Max)
}
