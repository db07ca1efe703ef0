package state

import (
	"cmp"
	"math"
	"slices"

	"nexusfs/meta"
)

// FileKey names a file that is locked.
type FileKey struct {
	Zone string
	Ino  meta.Ino
}

func (k *FileKey) code(c *codec) {
	c.string(&k.Zone)
	unsigned(c, &k.Ino)
}

// LockKind tells the three families of file locks apart: POSIX and OFD locks
// see each other, flock sees neither.
type LockKind uint8

// The kinds.
const (
	Flock LockKind = iota // flock(2): the whole file, owned by an open file description
	POSIX                 // fcntl(2): ranges, owned by a process
	OFD                   // fcntl(2), F_OFD_*: ranges, owned by an open file description
)

// LockEnd is the last byte of a lock that reaches to the end of the file,
// however far it grows.
const LockEnd = math.MaxInt64

// LockOwner is who holds a lock. Two locks of one owner never conflict.
type LockOwner struct {
	Session int64
	Kind    LockKind
	ID      uint64 // as the kernel names the owner
}

func (o *LockOwner) code(c *codec) {
	signed(c, &o.Session)
	unsigned(c, &o.Kind)
	unsigned(c, &o.ID)
}

// FileLock is a lock that is held or waited for. Start and End are bytes, both
// inside the lock; a flock has all of them.
type FileLock struct {
	LockOwner
	Handle     uint64 // the open file through which it was taken
	Exclusive  bool
	Start, End uint64
	PID        uint32
	Since      int64
	Request    RequestID // that asked for it
	Token      uint64    // fencing token, of one that is held
}

func (l *FileLock) code(c *codec) {
	l.LockOwner.code(c)
	unsigned(c, &l.Handle)
	c.bool(&l.Exclusive)
	unsigned(c, &l.Start)
	unsigned(c, &l.End)
	unsigned(c, &l.PID)
	signed(c, &l.Since)
	l.Request.code(c)
	unsigned(c, &l.Token)
}

// conflicts reports whether two locks cannot be held at the same time.
func (l *FileLock) conflicts(o *FileLock) bool {
	return (l.Kind == Flock) == (o.Kind == Flock) && l.LockOwner != o.LockOwner &&
		(l.Exclusive || o.Exclusive) && l.Start <= o.End && o.Start <= l.End
}

// FileLocks is what is held and waited for on one file.
type FileLocks struct {
	FileKey
	Held    []FileLock // by start
	Waiting []FileLock // in the order in which they came
}

func (f *FileLocks) code(c *codec) {
	f.FileKey.code(c)
	list(c, &f.Held, func(c *codec, l *FileLock) { l.code(c) })
	list(c, &f.Waiting, func(c *codec, l *FileLock) { l.code(c) })
}

// maxLocks is how many locks one file may have, held and waiting.
const maxLocks = 1 << 16

// blocker returns the first held lock in l's way.
func (f *FileLocks) blocker(l *FileLock) *FileLock {
	for i := range f.Held {
		if f.Held[i].conflicts(l) {
			return &f.Held[i]
		}
	}
	return nil
}

// Blocker returns a copy of a lock that would be in l's way, nil when none is:
// F_GETLK.
func (s *State) Blocker(k FileKey, l FileLock) *FileLock {
	f := s.Files[k]
	if f == nil {
		return nil
	}
	if b := f.blocker(&l); b != nil {
		found := *b
		return &found
	}
	return nil
}

// remove takes [start, end] from what owner holds and reports whether there was
// anything.
func (f *FileLocks) remove(owner LockOwner, start, end uint64) bool {
	var kept []FileLock
	found := false
	for _, h := range f.Held {
		if h.LockOwner != owner || h.End < start || end < h.Start {
			kept = append(kept, h)
			continue
		}
		found = true
		if h.Start < start {
			left := h
			left.End = start - 1
			kept = append(kept, left)
		}
		if h.End > end {
			right := h
			right.Start = end + 1
			kept = append(kept, right)
		}
	}
	f.Held = kept
	f.sort()
	return found
}

// sort orders the held locks: the same locks are always in the same order.
func (f *FileLocks) sort() {
	slices.SortFunc(f.Held, func(a, b FileLock) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End), cmp.Compare(a.Session, b.Session),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
}

// install makes l held, in place of what its owner held there. Neighbours of
// one owner, handle and strength become one.
func (f *FileLocks) install(l FileLock) {
	f.remove(l.LockOwner, l.Start, l.End)
	f.Held = slices.DeleteFunc(f.Held, func(h FileLock) bool {
		joins := h.LockOwner == l.LockOwner && h.Exclusive == l.Exclusive && h.Handle == l.Handle &&
			(h.End+1 == l.Start || l.End+1 == h.Start)
		if joins {
			l.Start, l.End = min(l.Start, h.Start), max(l.End, h.End)
		}
		return joins
	})
	f.Held = append(f.Held, l)
	f.sort()
}

// wake grants waiting requests whose way is free, in the order in which they
// came.
func (a *applier) wake(f *FileLocks) {
	for again := true; again; {
		again = false
		for i := range f.Waiting {
			if l := f.Waiting[i]; f.blocker(&l) == nil {
				f.Waiting = slices.Delete(f.Waiting, i, i+1)
				l.Token, l.Since = a.nextToken(), a.entry.Time
				f.install(l)
				a.out.Granted = append(a.out.Granted, Grant{l.Request, Result{Token: l.Token}})
				again = true // a grant may turn an exclusive lock into a shared one
				break
			}
		}
	}
	a.settleFile(f)
}

// settleFile notes that a file's locks changed and forgets it with the last.
func (a *applier) settleFile(f *FileLocks) {
	if len(f.Held)+len(f.Waiting) == 0 {
		delete(a.Files, f.FileKey)
	}
	a.touch(rowFile(f.FileKey))
}

// drop removes the locks and the waiting requests that match; the latter are
// answered with the given code.
func (a *applier) drop(k FileKey, code Code, match func(*FileLock) bool) bool {
	f := a.Files[k]
	if f == nil {
		return false
	}
	n := len(f.Held) + len(f.Waiting)
	f.Held = slices.DeleteFunc(f.Held, func(l FileLock) bool { return match(&l) })
	f.Waiting = slices.DeleteFunc(f.Waiting, func(l FileLock) bool {
		m := match(&l)
		if m {
			a.out.Granted = append(a.out.Granted, Grant{l.Request, Result{Code: code}})
		}
		return m
	})
	if len(f.Held)+len(f.Waiting) == n {
		return false
	}
	a.wake(f)
	return true
}

// Lock asks for a lock. The result is OK with a token, WouldBlock, or, with
// Wait, Waiting; Deadlock where waiting would close a circle of processes.
type Lock struct {
	FileKey
	FileLock
	Wait bool
}

func (*Lock) kind() kind { return kindLock }

func (l *Lock) code(c *codec) {
	l.FileKey.code(c)
	l.FileLock.code(c)
	c.bool(&l.Wait)
}

func (l *Lock) apply(a *applier) Result {
	se := a.live(SessionKey{l.Zone, l.Session})
	switch {
	case se == nil || se.Node != a.entry.Client:
		return Result{Code: NoSession}
	case l.Kind > OFD || l.End < l.Start || l.End > LockEnd:
		return Result{Code: Conflict}
	}
	f := a.Files[l.FileKey]
	if f == nil {
		f = &FileLocks{FileKey: l.FileKey}
		a.Files[l.FileKey] = f
	}
	if len(f.Held)+len(f.Waiting) >= maxLocks {
		return Result{Code: Full}
	}
	l.Since = a.entry.Time
	if l.Kind == Flock { // flock(2): the old lock goes before the new one is tried
		l.Start, l.End = 0, LockEnd
		if f.remove(l.LockOwner, 0, LockEnd) {
			a.wake(f)
			a.Files[l.FileKey] = f
		}
	}
	r := a.take(f, l)
	if r.Code == OK {
		a.wake(f) // a lock that became weaker lets others in
	}
	a.settleFile(f)
	return r
}

// take installs a lock or puts it into the queue.
func (a *applier) take(f *FileLocks, l *Lock) Result {
	switch {
	case f.blocker(&l.FileLock) == nil:
		l.Token = a.nextToken()
		f.install(l.FileLock)
		return Result{Token: l.Token}
	case !l.Wait:
		return Result{Code: WouldBlock}
	case l.Kind == POSIX && a.circle(f, &l.FileLock):
		return Result{Code: Deadlock}
	}
	f.Waiting = append(f.Waiting, l.FileLock)
	return Result{Code: Waiting}
}

// zoneOwner is a process that may wait anywhere in its zone.
type zoneOwner struct {
	zone string
	LockOwner
}

// circle reports whether somebody in l's way waits, over any number of steps,
// for l's own process.
func (a *applier) circle(f *FileLocks, l *FileLock) bool {
	waits := map[zoneOwner][]*FileLock{} // what each process waits for
	where := map[*FileLock]*FileLocks{}
	for _, file := range a.Files {
		for i := range file.Waiting {
			if w := &file.Waiting[i]; w.Kind == POSIX {
				o := zoneOwner{file.Zone, w.LockOwner}
				waits[o] = append(waits[o], w)
				where[w] = file
			}
		}
	}
	self := zoneOwner{f.Zone, l.LockOwner}
	seen := map[zoneOwner]bool{}
	var reaches func(f *FileLocks, l *FileLock) bool
	reaches = func(f *FileLocks, l *FileLock) bool {
		for i := range f.Held {
			if !f.Held[i].conflicts(l) {
				continue
			}
			o := zoneOwner{f.Zone, f.Held[i].LockOwner}
			if o == self {
				return true
			}
			if seen[o] {
				continue
			}
			seen[o] = true
			if slices.ContainsFunc(waits[o], func(w *FileLock) bool { return reaches(where[w], w) }) {
				return true
			}
		}
		return false
	}
	return reaches(f, l)
}

// Unlock takes [Start, End] from what an owner holds.
type Unlock struct {
	FileKey
	LockOwner
	Start, End uint64
}

func (*Unlock) kind() kind { return kindUnlock }

func (u *Unlock) code(c *codec) {
	u.FileKey.code(c)
	u.LockOwner.code(c)
	unsigned(c, &u.Start)
	unsigned(c, &u.End)
}

func (u *Unlock) apply(a *applier) Result {
	if !a.ownSession(SessionKey{u.Zone, u.Session}) {
		return Result{Code: NoSession}
	}
	if f := a.Files[u.FileKey]; f != nil && f.remove(u.LockOwner, u.Start, u.End) {
		a.wake(f)
	}
	return Result{}
}

// ownSession reports whether the entry comes from the session's node.
func (a *applier) ownSession(k SessionKey) bool {
	s := a.Sessions[k]
	return s != nil && s.Node == a.entry.Client
}

// ReleaseHandle drops every lock that was taken, and every request that was
// made, through one open file (P21).
type ReleaseHandle struct {
	FileKey
	Session int64
	Handle  uint64
}

func (*ReleaseHandle) kind() kind { return kindReleaseHandle }

func (r *ReleaseHandle) code(c *codec) {
	r.FileKey.code(c)
	signed(c, &r.Session)
	unsigned(c, &r.Handle)
}

func (r *ReleaseHandle) apply(a *applier) Result {
	if !a.ownSession(SessionKey{r.Zone, r.Session}) {
		return Result{Code: NoSession}
	}
	a.drop(r.FileKey, NotFound, func(l *FileLock) bool { return l.Session == r.Session && l.Handle == r.Handle })
	return Result{}
}

// Cancel takes a waiting request back: the caller was interrupted. NotFound
// says that it does not wait: it was granted before.
type Cancel struct {
	FileKey // or, with a name, of a named lock in the zone
	Name    string
	Request RequestID
}

func (*Cancel) kind() kind { return kindCancel }

func (n *Cancel) code(c *codec) {
	n.FileKey.code(c)
	c.string(&n.Name)
	n.Request.code(c)
}

func (n *Cancel) apply(a *applier) Result {
	if n.Request.Node != a.entry.Client {
		return Result{Code: NotFound}
	}
	if n.Name != "" {
		return a.cancelNamed(NameKey{n.Zone, n.Name}, n.Request)
	}
	f := a.Files[n.FileKey]
	if f == nil {
		return Result{Code: NotFound}
	}
	before := len(f.Waiting)
	f.Waiting = slices.DeleteFunc(f.Waiting, func(l FileLock) bool { return l.Request == n.Request })
	if len(f.Waiting) == before {
		return Result{Code: NotFound}
	}
	a.settleFile(f)
	return Result{}
}

// BreakFile takes a file's locks away from whoever holds them: all, or those of
// one session (not 0). It is an administrator's act.
type BreakFile struct {
	FileKey
	Session int64
}

func (*BreakFile) kind() kind { return kindBreakFile }

func (b *BreakFile) code(c *codec) {
	b.FileKey.code(c)
	signed(c, &b.Session)
}

func (b *BreakFile) apply(a *applier) Result {
	f := a.Files[b.FileKey]
	if f == nil {
		return Result{Code: NotFound}
	}
	n := len(f.Held)
	f.Held = slices.DeleteFunc(f.Held, func(l FileLock) bool { return b.Session == 0 || l.Session == b.Session })
	if len(f.Held) == n {
		return Result{Code: NotFound}
	}
	a.wake(f)
	return Result{}
}

// Pending says where a request stands after a snapshot took the place of the
// entries that would have told: whether it waits, and the token if it is held.
func (s *State) Pending(k FileKey, name string, r RequestID) (waits bool, token uint64) {
	if name != "" {
		return s.pendingNamed(NameKey{k.Zone, name}, r)
	}
	f := s.Files[k]
	if f == nil {
		return false, 0
	}
	is := func(l FileLock) bool { return l.Request == r }
	if i := slices.IndexFunc(f.Held, is); i >= 0 {
		return false, f.Held[i].Token
	}
	return slices.ContainsFunc(f.Waiting, is), 0
}
