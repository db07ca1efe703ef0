package state

import (
	"cmp"
	"slices"

	"nexusfs/meta"
)

// SessionKey names a session: its number in its zone, as SQL gave it.
type SessionKey struct {
	Zone string
	ID   int64
}

func (k *SessionKey) code(c *codec) {
	c.string(&k.Zone)
	signed(c, &k.ID)
}

// Session is a node's session with a zone. Its lease is measured by the leader,
// from the newest renewal that it applied; no node's clock says that it ended.
type Session struct {
	SessionKey
	Epoch    int64 // the session's, as SQL knows it
	Node     NodeID
	Lease    int64 // nanoseconds
	Since    int64
	Renewals uint64
	Fencing  bool     // it is being ended: nothing that it asks for is granted
	Fenced   bool     // SQL refuses it; its locks go when the prefix reaches FenceRev
	FenceRev meta.Rev // the zone's newest revision when SQL began to refuse it
}

func (s *Session) code(c *codec) {
	s.SessionKey.code(c)
	signed(c, &s.Epoch)
	unsigned(c, &s.Node)
	signed(c, &s.Lease)
	signed(c, &s.Since)
	unsigned(c, &s.Renewals)
	c.bool(&s.Fencing)
	c.bool(&s.Fenced)
	signed(c, &s.FenceRev)
}

// live returns a session that may still ask for something.
func (s *State) live(k SessionKey) *Session {
	if se := s.Sessions[k]; se != nil && !se.Fencing {
		return se
	}
	return nil
}

// BeginSession makes a session known to the group.
type BeginSession struct {
	SessionKey
	Epoch int64
	Lease int64 // nanoseconds
}

func (*BeginSession) kind() kind { return kindBeginSession }

func (b *BeginSession) code(c *codec) {
	b.SessionKey.code(c)
	signed(c, &b.Epoch)
	signed(c, &b.Lease)
}

func (b *BeginSession) apply(a *applier) Result {
	switch {
	case a.Zones[b.Zone] == nil:
		return Result{Code: NotFound}
	case a.Sessions[b.SessionKey] != nil:
		return Result{Code: Conflict}
	}
	a.Sessions[b.SessionKey] = &Session{SessionKey: b.SessionKey, Epoch: b.Epoch, Node: a.entry.Client, Lease: b.Lease, Since: a.entry.Time}
	a.touch(rowSession(b.SessionKey))
	return Result{}
}

// RenewSession begins a session's lease anew.
type RenewSession struct{ SessionKey }

func (*RenewSession) kind() kind { return kindRenewSession }

func (r *RenewSession) apply(a *applier) Result {
	s := a.live(r.SessionKey)
	if s == nil || s.Node != a.entry.Client {
		return Result{Code: NoSession}
	}
	s.Renewals++
	a.touch(rowSession(r.SessionKey))
	return Result{}
}

// EndSession ends a session in order: its node has announced and stored
// everything. Its locks go at once.
type EndSession struct{ SessionKey }

func (*EndSession) kind() kind { return kindEndSession }

func (e *EndSession) apply(a *applier) Result {
	s := a.live(e.SessionKey)
	if s == nil || s.Node != a.entry.Client {
		return Result{Code: NoSession}
	}
	a.endSession(s)
	return Result{}
}

// Fence is the leader's first step of ending a session that was silent for
// longer than its lease (P20): from now on it is granted nothing. A renewal
// that the leader had not seen wins.
type Fence struct {
	SessionKey
	Renewals uint64 // that the leader has seen
}

func (*Fence) kind() kind { return kindFence }

func (f *Fence) code(c *codec) {
	f.SessionKey.code(c)
	unsigned(c, &f.Renewals)
}

func (f *Fence) apply(a *applier) Result {
	s := a.Sessions[f.SessionKey]
	switch {
	case s == nil:
		return Result{Code: NotFound}
	case s.Renewals != f.Renewals:
		return Result{Code: Conflict}
	}
	s.Fencing = true
	a.touch(rowSession(f.SessionKey))
	return Result{}
}

// Fenced is the second step: SQL refuses the session, and Rev was the zone's
// newest revision then. The session's locks go when the prefix reaches it.
type Fenced struct {
	SessionKey
	Rev meta.Rev
}

func (*Fenced) kind() kind { return kindFenced }

func (f *Fenced) code(c *codec) {
	f.SessionKey.code(c)
	signed(c, &f.Rev)
}

func (f *Fenced) apply(a *applier) Result {
	s := a.Sessions[f.SessionKey]
	if s == nil {
		return Result{Code: NotFound}
	}
	if !s.Fenced {
		s.Fencing, s.Fenced, s.FenceRev = true, true, f.Rev
		a.touch(rowSession(f.SessionKey))
	}
	z := a.Zones[f.Zone]
	z.High = max(z.High, f.Rev) // what it committed and did not announce is a gap to close
	a.close(z)
	return Result{}
}

// reap ends the fenced sessions of a zone whose last operation was announced.
func (a *applier) reap(z *Zone) {
	var ends []*Session
	for k, s := range a.Sessions {
		if k.Zone == z.Name && s.Fenced && s.FenceRev <= z.Prefix {
			ends = append(ends, s)
		}
	}
	slices.SortFunc(ends, func(a, b *Session) int { return cmp.Compare(a.ID, b.ID) })
	for _, s := range ends {
		a.endSession(s)
	}
}

// endSession removes a session with everything that it holds and waits for.
func (a *applier) endSession(s *Session) {
	delete(a.Sessions, s.SessionKey)
	a.touch(rowSession(s.SessionKey))
	a.out.Ended = append(a.out.Ended, s.SessionKey)
	for _, k := range sortedFiles(a.Files) {
		if k.Zone == s.Zone {
			a.drop(k, NoSession, func(l *FileLock) bool { return l.Session == s.ID })
		}
	}
	for _, k := range sortedNames(a.Names) {
		if k.Zone == s.Zone {
			a.dropNamed(k, func(session int64) bool { return session == s.ID })
		}
	}
}
