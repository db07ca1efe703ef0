package fusefs

import (
	"bytes"
	"container/list"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// What stands for a program in a record when there is none to name.
const (
	// ExeOutside is the executable of a caller that this daemon cannot see: it
	// lives outside of the daemon's pid namespace, or it is the kernel itself.
	ExeOutside = "[outside of the daemon's pid namespace]"
	// ExeGone is the executable of a caller that had none any more when it was
	// looked at: it was ending. Threads of the kernel have none either.
	ExeGone = "[ended]"
	// ExeBusy is the executable of a caller that could not be looked at in
	// time: it was in the middle of execve(2).
	ExeBusy = "[starting a program]"
)

// Limits of looking at callers.
const (
	maxAttested = 256                   // threads remembered, each with an open directory of /proc
	maxLooking  = 256                   // requests looking at their callers at a time
	maxLook     = 20 * time.Millisecond // for looking at one
)

// attester finds out who a caller is. The kernel says a thread id; that thread's
// process, executable and control group come from /proc. A thread is remembered
// by an open descriptor of its directory there: such a descriptor never stands
// for another thread that got the same number later, so one readlink(2) tells
// whether the thread lives and still runs the same program.
//
// Looking may not take for ever. The kernel lets readers of /proc/PID/exe and
// /proc/PID/stat wait while the process is in execve(2) (exec_update_lock), and
// execve waits for us when it closes a file of ours that is marked
// close-on-exec. So it is done aside, within a bound.
type attester struct {
	proc    string // "/proc"
	looking atomic.Int64

	mu    sync.Mutex
	byTid map[uint32]*attested // guarded by mu
	used  list.List            // guarded by mu; of *attested, the oldest last
}

// attested is a thread that is remembered.
type attested struct {
	tid  uint32
	dir  int    // its directory in /proc
	link []byte // its executable as readlink(2) gave it
	who  meta.Actor
	at   *list.Element
	refs int // guarded by attester.mu; 1 for being remembered
}

func newAttester() *attester {
	return &attester{proc: "/proc", byTid: make(map[uint32]*attested)}
}

// Resolve says which process sent a request. It costs one system call for a
// thread that was seen before and about ten otherwise, and takes at most
// maxLook; who cannot be looked at in that time is what was last known of it.
func (t *attester) Resolve(c meta.Caller) meta.Actor {
	if c.PID == 0 {
		return meta.Actor{UID: c.UID, GID: c.GID, Exe: ExeOutside}
	}
	var who meta.Actor
	if c.Calling { // no execve(2) is behind this request: looking cannot wait for us
		who = t.see(c.PID)
	} else if t.looking.Add(1) > maxLooking {
		t.looking.Add(-1)
		who = t.lastKnown(c.PID)
	} else {
		seen := make(chan meta.Actor, 1)
		go func() {
			defer t.looking.Add(-1)
			seen <- t.see(c.PID)
		}()
		late := time.NewTimer(maxLook)
		defer late.Stop()
		select {
		case who = <-seen:
		case <-late.C:
			who = t.lastKnown(c.PID)
		}
	}
	who.UID, who.GID = c.UID, c.GID
	return who
}

// lastKnown says what is remembered of a thread.
func (t *attester) lastKnown(tid uint32) meta.Actor {
	e := t.get(tid)
	if e == nil {
		return meta.Actor{PID: tid, Exe: ExeBusy}
	}
	defer t.put(e)
	return e.who
}

// see looks at a thread. It may block while the thread is in execve(2).
func (t *attester) see(tid uint32) meta.Actor {
	e := t.get(tid)
	if e == nil {
		e = t.look(tid, nil)
	} else if link, lives := e.program(); !lives || !bytes.Equal(link, e.link) {
		before := e
		t.forget(before)
		if lives {
			e = t.look(tid, before)
		} else {
			e = t.look(tid, nil) // the number is another thread's now
		}
		t.put(before)
	}
	if e == nil {
		return meta.Actor{PID: tid, Exe: ExeGone}
	}
	defer t.put(e)
	return e.who
}

// get returns a remembered thread, to be given back with put.
func (t *attester) get(tid uint32) *attested {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byTid[tid]
	if e != nil {
		e.refs++
		t.used.MoveToFront(e.at)
	}
	return e
}

func (t *attester) put(e *attested) {
	t.mu.Lock()
	e.refs--
	last := e.refs == 0
	t.mu.Unlock()
	if last {
		unix.Close(e.dir)
	}
}

// remember keeps a thread that the caller holds, in place of the one that was
// not asked for longest.
func (t *attester) remember(e *attested) {
	t.mu.Lock()
	var drop []*attested
	if old := t.byTid[e.tid]; old != nil {
		drop = append(drop, t.unlink(old))
	}
	if t.used.Len() >= maxAttested {
		drop = append(drop, t.unlink(t.used.Back().Value.(*attested)))
	}
	e.refs++
	e.at = t.used.PushFront(e)
	t.byTid[e.tid] = e
	t.mu.Unlock()
	for _, d := range drop {
		t.put(d)
	}
}

// unlink takes a thread out of the tables; the caller holds mu and puts it.
func (t *attester) unlink(e *attested) *attested {
	t.used.Remove(e.at)
	delete(t.byTid, e.tid)
	return e
}

// forget takes a thread out of the tables if it is there still.
func (t *attester) forget(e *attested) {
	t.mu.Lock()
	known := t.byTid[e.tid] == e
	if known {
		t.unlink(e)
	}
	t.mu.Unlock()
	if known {
		t.put(e)
	}
}

// close gives back all descriptors.
func (t *attester) close() {
	for {
		t.mu.Lock()
		back := t.used.Back()
		t.mu.Unlock()
		if back == nil {
			return
		}
		t.forget(back.Value.(*attested))
	}
}

// program returns the link to the thread's executable as it is now, nil where
// we may not see it, and whether the thread is there at all.
func (e *attested) program() (link []byte, lives bool) {
	var buf [unix.PathMax]byte
	n, err := readlinkat(e.dir, "exe", buf[:])
	switch {
	case err == nil:
		if bytes.Equal(buf[:n], e.link) {
			return e.link, true
		}
		return bytes.Clone(buf[:n]), true
	case isUnreadable(err):
		return nil, true
	case isNotExist(err) && e.alive():
		// A process that exits gives up its program before its files, whose
		// last commits come then: what was seen before still holds.
		return e.link, true
	}
	return nil, false
}

// alive reports whether the thread is there at all.
func (e *attested) alive() bool {
	var st unix.Stat_t
	return unix.Fstatat(e.dir, "stat", &st, 0) == nil
}

// look reads a thread's entry in /proc and remembers it; nil when it is gone.
// before is the same thread with the program that it ran before, or nil. The
// caller gives the result back with put.
func (t *attester) look(tid uint32, before *attested) *attested {
	dir, err := unix.Open(t.proc+"/"+strconv.FormatUint(uint64(tid), 10), unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0)
	if err != nil {
		return nil
	}
	e := &attested{tid: tid, dir: dir, refs: 1}
	if !t.read(e, before) {
		unix.Close(dir)
		return nil
	}
	t.remember(e)
	return e
}

func (t *attester) read(e, before *attested) bool {
	var buf [4096]byte
	if before != nil {
		e.who.PID, e.who.StartTime = before.who.PID, before.who.StartTime
	} else {
		tgid, found := statusField(readAt(e.dir, "status", buf[:]), "Tgid:")
		if !found {
			return false
		}
		e.who.PID = uint32(tgid)
		if e.who.PID == e.tid {
			e.who.StartTime = startField(readAt(e.dir, "stat", buf[:]))
		} else {
			stat := t.proc + "/" + strconv.FormatUint(tgid, 10) + "/stat"
			e.who.StartTime = startField(readAt(unix.AT_FDCWD, stat, buf[:]))
		}
	}
	e.who.Cgroup = cgroupOf(string(readAt(e.dir, "cgroup", buf[:])))
	// The program comes last: an exec from here on is seen the next time.
	link, lives := e.program()
	if e.link, e.who.Exe = link, string(link); link == nil && e.hasNoProgram() {
		e.who.Exe = ExeGone
	}
	return lives
}

// hasNoProgram tells 'there is none' from 'we may not see it'.
func (e *attested) hasNoProgram() bool {
	var buf [1]byte
	_, err := readlinkat(e.dir, "exe", buf[:])
	return isNotExist(err)
}

func readlinkat(dir int, name string, buf []byte) (int, error) {
	for {
		n, err := unix.Readlinkat(dir, name, buf)
		if !isInterrupted(err) {
			return n, err
		}
	}
}

// readAt reads a small file of /proc, which comes whole in one read, into buf.
// What cannot be read is empty.
func readAt(dir int, name string, buf []byte) []byte {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if !isInterrupted(err) {
			return buf[:max(n, 0)]
		}
	}
}

// statusField reads a number from /proc/PID/status.
func statusField(status []byte, field string) (uint64, bool) {
	_, rest, found := bytes.Cut(status, []byte("\n"+field))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	v, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 32)
	return v, found && err == nil
}

// startField reads field 22 of /proc/PID/stat: clock ticks from boot to the
// start of the process. The name in field 2 may hold blanks and parentheses.
func startField(stat []byte) uint64 {
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	const field, first = 22, 3 // first: of the fields behind the name
	for range field - first {
		_, rest, _ = bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
	}
	value, _, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
	v, _ := strconv.ParseUint(string(value), 10, 64)
	return v
}

// cgroupOf reads the path from /proc/PID/cgroup: of the unified hierarchy, or
// of the first other one in which the process is not at the root.
func cgroupOf(text string) string {
	found := ""
	for line := range strings.Lines(text) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, isLine := strings.Cut(rest, ":")
		switch {
		case !isLine:
		case id == "0" && path != "/":
			return path
		case found == "" || found == "/":
			found = path
		}
	}
	return found
}
