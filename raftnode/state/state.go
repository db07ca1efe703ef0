package state

import (
	"maps"
	"slices"

	"nexusfs/meta"
)

// State is the replicated state. Its fields may be read between two calls of
// its methods; only Apply and Restore change them.
type State struct {
	Version  uint16 // of the features in use (P19)
	Index    uint64 // of the newest entry applied
	Time     int64  // the highest that an entry has carried
	Token    uint64 // the newest fencing token given
	Zones    map[string]*Zone
	Sessions map[SessionKey]*Session
	Files    map[FileKey]*FileLocks
	Names    map[NameKey]*Named
	Members  map[NodeID]*Member
	Removed  map[NodeID]string // former members, and where they were: an identity is never taken again
	Joins    map[[32]byte]*JoinToken
	clients  map[NodeID]*client

	known uint16              // the newest version that this program knows
	dirty map[string]struct{} // rows that differ from what Rows gave last
}

// New returns the state of a group that does not exist yet. known is the newest
// version that the program knows: Version, but in tests of upgrades.
func New(known uint16) *State {
	return &State{
		Version: 1, known: known,
		Zones: map[string]*Zone{}, Sessions: map[SessionKey]*Session{}, Files: map[FileKey]*FileLocks{},
		Names: map[NameKey]*Named{}, Members: map[NodeID]*Member{}, Removed: map[NodeID]string{},
		Joins: map[[32]byte]*JoinToken{}, clients: map[NodeID]*client{}, dirty: map[string]struct{}{},
	}
}

// Found makes the state of a new group with one member. token is what fencing
// tokens must stay above: higher than any that a group before it gave.
func Found(known uint16, m Member, token uint64) *State {
	s := New(known)
	s.Index, s.Token, s.Version = 1, token, known
	s.Members[m.ID] = &m
	s.touch(rowMeta())
	s.touch(rowMember(m.ID))
	return s
}

// client remembers what became of a node's entries until the node has settled
// them, so that an entry that was proposed twice takes effect once.
type client struct {
	incarnation uint64
	low         uint64
	done        map[uint64][]Result // by sequence number, above low
}

func (cl *client) code(c *codec) {
	unsigned(c, &cl.incarnation)
	unsigned(c, &cl.low)
	type one struct {
		seq     uint64
		results []Result
	}
	var all []one
	for _, seq := range slices.Sorted(maps.Keys(cl.done)) {
		all = append(all, one{seq, cl.done[seq]})
	}
	list(c, &all, func(c *codec, o *one) {
		unsigned(c, &o.seq)
		list(c, &o.results, func(c *codec, r *Result) { r.code(c) })
	})
	if c.read {
		cl.done = map[uint64][]Result{}
		for _, o := range all {
			cl.done[o.seq] = o.results
		}
	}
}

// Effects is what an entry did, for those who wait for it.
type Effects struct {
	Client      NodeID
	Incarnation uint64
	Seq         uint64
	Results     []Result // of the commands, in order; nil if the entry counts for nothing
	Granted     []Grant  // locks that others were waiting for
	Advanced    []Advanced
	Heads       []Head // confirmed: in prefix order, below the durable barrier (P33)
	Ended       []SessionKey
	Members     bool // the members changed
	Ran         bool // the commands ran now; else the entry counts for nothing, or did before
}

// Accepted reports whether the entry's commands ran, and all of them held.
func (e *Effects) Accepted() bool {
	return e.Ran && !slices.ContainsFunc(e.Results, func(r Result) bool { return r.Code != OK })
}

// Grant answers a request that was waiting: it has its lock, or, with another
// code than OK, will never get it.
type Grant struct {
	Request RequestID
	Result
}

// Advanced says that a zone's gap-free prefix moved.
type Advanced struct {
	Zone     string
	From, To meta.Rev // the prefix before and after
	Node     NodeID   // who announced it
	Ops      []meta.Committed
	Reset    bool // Ops does not tell what changed: everything must be dropped
}

// applier is one entry's application.
type applier struct {
	*State
	entry *Entry
	out   *Effects
}

// Apply applies the entry with the given index; empty data is Raft's own entry
// and changes nothing else. On an error, ErrNewer or damage, the state is as
// before and the node must not go on.
func (s *State) Apply(index uint64, data []byte) (Effects, error) {
	if len(data) == 0 {
		s.advanceIndex(index)
		return Effects{}, nil
	}
	e, err := DecodeEntry(data, s.known)
	if err != nil {
		return Effects{}, err
	}
	s.advanceIndex(index)
	return s.run(e), nil
}

func (s *State) advanceIndex(index uint64) {
	s.Index = index
	s.touch(rowMeta())
}

// run applies a decoded entry, once.
func (s *State) run(e *Entry) Effects {
	out := Effects{Client: e.Client, Incarnation: e.Incarnation, Seq: e.Seq}
	if s.Members[e.Client] == nil {
		return out // of a former member
	}
	cl := s.clients[e.Client]
	switch {
	case cl == nil || cl.incarnation < e.Incarnation:
		cl = &client{incarnation: e.Incarnation, done: map[uint64][]Result{}}
		s.clients[e.Client] = cl
	case cl.incarnation > e.Incarnation:
		return out // of a process that has ended
	}
	if results, ok := cl.done[e.Seq]; ok || e.Seq <= cl.low {
		out.Results = results
		return out
	}
	s.Time = max(s.Time, e.Time)
	a := applier{State: s, entry: e, out: &out}
	out.Ran, out.Results = true, make([]Result, len(e.Commands))
	for i, cmd := range e.Commands {
		out.Results[i] = cmd.apply(&a)
	}
	if s.clients[e.Client] != cl { // it removed itself
		return out
	}
	cl.done[e.Seq] = out.Results
	if e.Low > cl.low {
		cl.low = e.Low
		maps.DeleteFunc(cl.done, func(seq uint64, _ []Result) bool { return seq <= cl.low })
	}
	s.touch(rowClient(e.Client))
	return out
}

// Outcome returns what became of an entry of a node, and whether it was
// applied. It is known until the node has settled it.
func (s *State) Outcome(node NodeID, incarnation, seq uint64) ([]Result, bool) {
	cl := s.clients[node]
	if cl == nil || cl.incarnation != incarnation {
		return nil, false
	}
	r, ok := cl.done[seq]
	return r, ok || seq <= cl.low
}

// Incarnation returns the newest incarnation of a node that the group has seen.
func (s *State) Incarnation(node NodeID) uint64 {
	if cl := s.clients[node]; cl != nil {
		return cl.incarnation
	}
	return 0
}

// nextToken gives the next fencing token.
func (s *State) nextToken() uint64 {
	s.Token++
	return s.Token
}

// RaiseToken makes the fencing tokens to come higher than floor. It is no entry:
// only a node that is alone may do it, before it does anything.
func (s *State) RaiseToken(floor uint64) {
	s.Token = max(s.Token, floor)
	s.touch(rowMeta())
}
