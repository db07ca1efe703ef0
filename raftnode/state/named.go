package state

import "slices"

// NameKey names a lock for scripts.
type NameKey struct{ Zone, Name string }

func (k *NameKey) code(c *codec) {
	c.string(&k.Zone)
	c.string(&k.Name)
}

// Named is a mutex (Limit 1) or a semaphore. It exists while somebody holds it
// or waits for it.
type Named struct {
	NameKey
	Limit   uint32
	Holders []Holder
	Waiting []Holder // in the order in which they came
}

// Holder has a place in a named lock, or waits for one.
type Holder struct {
	Session  int64
	Request  RequestID
	Token    uint64 // fencing token
	TTL      int64  // nanoseconds since the last renewal, by the leader's measure; 0: as long as the session
	Renewals uint64
	Since    int64
	Note     string // what people are shown: node, process
}

func (n *Named) code(c *codec) {
	n.NameKey.code(c)
	unsigned(c, &n.Limit)
	list(c, &n.Holders, func(c *codec, h *Holder) { h.code(c) })
	list(c, &n.Waiting, func(c *codec, h *Holder) { h.code(c) })
}

func (h *Holder) code(c *codec) {
	signed(c, &h.Session)
	h.Request.code(c)
	unsigned(c, &h.Token)
	signed(c, &h.TTL)
	unsigned(c, &h.Renewals)
	signed(c, &h.Since)
	c.string(&h.Note)
}

// maxNamed is how many may hold or wait for one named lock.
const maxNamed = 1 << 14

// Acquire asks for a place in a named lock. The result is OK with a token,
// WouldBlock or, with Wait, Waiting; Conflict if it exists with another limit.
type Acquire struct {
	NameKey
	Limit uint32
	Holder
	Wait bool
}

func (*Acquire) kind() kind { return kindAcquire }

func (q *Acquire) code(c *codec) {
	q.NameKey.code(c)
	unsigned(c, &q.Limit)
	q.Holder.code(c)
	c.bool(&q.Wait)
}

func (q *Acquire) apply(a *applier) Result {
	se := a.live(SessionKey{q.Zone, q.Session})
	n := a.Names[q.NameKey]
	switch {
	case se == nil || se.Node != a.entry.Client:
		return Result{Code: NoSession}
	case !validName(q.Name) || q.Limit == 0 || q.TTL < 0:
		return Result{Code: Conflict}
	case n == nil:
		n = &Named{NameKey: q.NameKey, Limit: q.Limit}
		a.Names[q.NameKey] = n
	case n.Limit != q.Limit:
		return Result{Code: Conflict}
	case len(n.Holders)+len(n.Waiting) >= maxNamed:
		return Result{Code: Full}
	case !q.Wait && len(n.Holders) >= int(n.Limit):
		return Result{Code: WouldBlock}
	}
	q.Renewals, q.Since = 0, a.entry.Time
	n.Waiting = append(n.Waiting, q.Holder)
	a.wakeNamed(n)
	if i := n.holder(q.Request); i >= 0 {
		a.out.Granted = slices.DeleteFunc(a.out.Granted, func(g Grant) bool { return g.Request == q.Request })
		return Result{Token: n.Holders[i].Token}
	}
	return Result{Code: Waiting}
}

func (n *Named) holder(r RequestID) int {
	return slices.IndexFunc(n.Holders, func(h Holder) bool { return h.Request == r })
}

func (n *Named) token(t uint64) int {
	return slices.IndexFunc(n.Holders, func(h Holder) bool { return h.Token == t })
}

// wakeNamed gives free places to those who wait longest.
func (a *applier) wakeNamed(n *Named) {
	for len(n.Waiting) > 0 && len(n.Holders) < int(n.Limit) {
		h := n.Waiting[0]
		n.Waiting = slices.Delete(n.Waiting, 0, 1)
		h.Token, h.Since = a.nextToken(), a.entry.Time
		n.Holders = append(n.Holders, h)
		a.out.Granted = append(a.out.Granted, Grant{h.Request, Result{Token: h.Token}})
	}
	if len(n.Holders)+len(n.Waiting) == 0 {
		delete(a.Names, n.NameKey)
	}
	a.touch(rowNamed(n.NameKey))
}

// dropNamed ends everything that a session has in a named lock.
func (a *applier) dropNamed(k NameKey, match func(session int64) bool) {
	n := a.Names[k]
	n.Holders = slices.DeleteFunc(n.Holders, func(h Holder) bool { return match(h.Session) })
	n.Waiting = slices.DeleteFunc(n.Waiting, func(h Holder) bool {
		m := match(h.Session)
		if m {
			a.out.Granted = append(a.out.Granted, Grant{h.Request, Result{Code: NoSession}})
		}
		return m
	})
	a.wakeNamed(n)
}

func (a *applier) cancelNamed(k NameKey, r RequestID) Result {
	n := a.Names[k]
	if n == nil {
		return Result{Code: NotFound}
	}
	i := slices.IndexFunc(n.Waiting, func(h Holder) bool { return h.Request == r })
	if i < 0 {
		return Result{Code: NotFound}
	}
	n.Waiting = slices.Delete(n.Waiting, i, i+1)
	a.wakeNamed(n)
	return Result{}
}

func (s *State) pendingNamed(k NameKey, r RequestID) (waits bool, token uint64) {
	n := s.Names[k]
	if n == nil {
		return false, 0
	}
	if i := n.holder(r); i >= 0 {
		return false, n.Holders[i].Token
	}
	return slices.ContainsFunc(n.Waiting, func(h Holder) bool { return h.Request == r }), 0
}

// named finds the holder of a token.
func (a *applier) named(k NameKey, token uint64) (*Named, int) {
	n := a.Names[k]
	if n == nil {
		return nil, -1
	}
	return n, n.token(token)
}

// RenewNamed begins a holder's time to live anew. NotFound: it has ended.
type RenewNamed struct {
	NameKey
	Token uint64
}

func (*RenewNamed) kind() kind { return kindRenewNamed }

func (r *RenewNamed) code(c *codec) {
	r.NameKey.code(c)
	unsigned(c, &r.Token)
}

func (r *RenewNamed) apply(a *applier) Result {
	n, i := a.named(r.NameKey, r.Token)
	if i < 0 {
		return Result{Code: NotFound}
	}
	n.Holders[i].Renewals++
	a.touch(rowNamed(r.NameKey))
	return Result{}
}

// ReleaseNamed gives a place back, or, as an administrator's act, takes it away.
type ReleaseNamed struct {
	NameKey
	Token uint64
}

func (*ReleaseNamed) kind() kind { return kindReleaseNamed }

func (r *ReleaseNamed) code(c *codec) {
	r.NameKey.code(c)
	unsigned(c, &r.Token)
}

func (r *ReleaseNamed) apply(a *applier) Result {
	n, i := a.named(r.NameKey, r.Token)
	if i < 0 {
		return Result{Code: NotFound}
	}
	n.Holders = slices.Delete(n.Holders, i, i+1)
	a.wakeNamed(n)
	return Result{}
}

// ExpireNamed is the leader's end of a holder whose time to live has passed. A
// renewal that the leader had not seen wins.
type ExpireNamed struct {
	NameKey
	Token    uint64
	Renewals uint64
}

func (*ExpireNamed) kind() kind { return kindExpireNamed }

func (x *ExpireNamed) code(c *codec) {
	x.NameKey.code(c)
	unsigned(c, &x.Token)
	unsigned(c, &x.Renewals)
}

func (x *ExpireNamed) apply(a *applier) Result {
	n, i := a.named(x.NameKey, x.Token)
	switch {
	case i < 0:
		return Result{Code: NotFound}
	case n.Holders[i].Renewals != x.Renewals:
		return Result{Code: Conflict}
	}
	n.Holders = slices.Delete(n.Holders, i, i+1)
	a.wakeNamed(n)
	return Result{}
}
