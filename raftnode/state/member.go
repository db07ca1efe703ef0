package state

// Role is what a member does in its group.
type Role uint8

// The roles.
const (
	Learner Role = iota // it follows, and does not vote
	Voter
	Witness // it votes and keeps the log, without mount, SQL or file data (P17)
)

var roleText = [...]string{"learner", "voter", "witness"}

func (r Role) String() string {
	if int(r) < len(roleText) {
		return roleText[r]
	}
	return "unknown role"
}

// Votes reports whether the role has a vote.
func (r Role) Votes() bool { return r == Voter || r == Witness }

// Member is a node of the group.
type Member struct {
	ID       NodeID
	Name     string // for people: the host's name
	Address  string // host:port where it listens
	Role     Role
	Witness  bool   // promoted, it becomes a Witness
	Supports uint16 // the newest version of entries and snapshots that it knows (P19)
}

func (m *Member) code(c *codec) {
	unsigned(c, &m.ID)
	c.string(&m.Name)
	c.string(&m.Address)
	unsigned(c, &m.Role)
	c.bool(&m.Witness)
	unsigned(c, &m.Supports)
}

// maxMembers bounds a group.
const maxMembers = 256

// SetMember adds a member or changes what is known of one. It rides in Raft's
// change of configuration where the role changes.
type SetMember struct{ Member }

func (*SetMember) kind() kind { return kindSetMember }

func (m *SetMember) apply(a *applier) Result {
	switch {
	case m.ID == 0 || a.Former(m.ID):
		return Result{Code: NotFound}
	case m.Supports < a.Version:
		return Result{Code: Conflict} // it would not know what the group writes
	case a.Members[m.ID] == nil && len(a.Members) >= maxMembers:
		return Result{Code: Full}
	}
	member := m.Member
	a.Members[m.ID] = &member
	a.out.Members = true
	a.touch(rowMember(m.ID))
	return Result{}
}

// DescribeMember is what a member says of itself: after it was upgraded, or
// moved. Its role stays.
type DescribeMember struct {
	Name, Address string
	Supports      uint16
}

func (*DescribeMember) kind() kind { return kindDescribeMember }

func (d *DescribeMember) code(c *codec) {
	c.string(&d.Name)
	c.string(&d.Address)
	unsigned(c, &d.Supports)
}

func (d *DescribeMember) apply(a *applier) Result {
	if d.Supports < a.Version {
		return Result{Code: Conflict}
	}
	m := *a.Members[a.entry.Client]
	m.Name, m.Address, m.Supports = d.Name, d.Address, d.Supports
	a.Members[m.ID] = &m
	a.out.Members = true
	a.touch(rowMember(m.ID))
	return Result{}
}

// RemoveMembers ends memberships for good, all of them or, if one is no member,
// none. The nodes' sessions end by their leases, as those of a node that died
// (P20).
type RemoveMembers struct{ IDs []NodeID }

func (*RemoveMembers) kind() kind { return kindRemoveMembers }

func (r *RemoveMembers) code(c *codec) {
	list(c, &r.IDs, func(c *codec, id *NodeID) { unsigned(c, id) })
}

func (r *RemoveMembers) apply(a *applier) Result {
	for _, id := range r.IDs {
		if a.Members[id] == nil {
			return Result{Code: NotFound}
		}
	}
	for _, id := range r.IDs {
		if m := a.Members[id]; m != nil {
			a.Removed[id] = m.Address
		}
		delete(a.Members, id)
		delete(a.clients, id)
		a.touch(rowMember(id))
		a.touch(rowClient(id))
	}
	a.out.Members = true
	a.touch(rowMeta())
	return Result{}
}

// Former reports whether a node was a member and was removed.
func (s *State) Former(id NodeID) bool {
	_, ok := s.Removed[id]
	return ok
}

// JoinToken lets one node join, once.
type JoinToken struct {
	Hash    [32]byte // SHA-256 of the secret
	Role    Role     // that the node may take
	Expires int64    // nanoseconds since 1970, compared with the time of the entry that uses it
}

func (t *JoinToken) code(c *codec) {
	c.hash(&t.Hash)
	unsigned(c, &t.Role)
	signed(c, &t.Expires)
}

// maxTokens is how many tokens may be waiting for their use.
const maxTokens = 1024

// AddToken makes a token known.
type AddToken struct{ JoinToken }

func (*AddToken) kind() kind { return kindAddToken }

func (t *AddToken) apply(a *applier) Result {
	for _, h := range sortedJoins(a.Joins) {
		if a.Joins[h].Expires < a.Time {
			delete(a.Joins, h)
			a.touch(rowJoin(h))
		}
	}
	if len(a.Joins) >= maxTokens {
		return Result{Code: Full}
	}
	token := t.JoinToken
	a.Joins[t.Hash] = &token
	a.touch(rowJoin(t.Hash))
	return Result{}
}

// UseToken takes a token: whoever gets OK, and nobody else, may join with it.
type UseToken struct {
	Hash [32]byte
	Role Role
}

func (*UseToken) kind() kind { return kindUseToken }

func (u *UseToken) code(c *codec) {
	c.hash(&u.Hash)
	unsigned(c, &u.Role)
}

func (u *UseToken) apply(a *applier) Result {
	t := a.Joins[u.Hash]
	switch {
	case t == nil || t.Expires < a.Time:
		return Result{Code: NotFound}
	case t.Role != u.Role:
		return Result{Code: Conflict}
	}
	delete(a.Joins, u.Hash)
	a.touch(rowJoin(u.Hash))
	return Result{}
}

// Activate switches the features of a version on. Conflict while a member does
// not know it.
type Activate struct{ To uint16 }

func (*Activate) kind() kind { return kindActivate }

func (v *Activate) code(c *codec) { unsigned(c, &v.To) }

func (v *Activate) apply(a *applier) Result {
	if a.Supported() < v.To {
		return Result{Code: Conflict}
	}
	a.Version = max(a.Version, v.To)
	return Result{}
}

// Supported returns the newest version that every member knows.
func (s *State) Supported() uint16 {
	lowest := ^uint16(0)
	for _, m := range s.Members {
		lowest = min(lowest, m.Supports)
	}
	return lowest
}
