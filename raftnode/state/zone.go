package state

import (
	"math"
	"slices"

	"nexusfs/meta"
)

// Zone is how far a zone's revisions are announced (P9).
type Zone struct {
	Name    string
	Epoch   int64    // P15
	Prefix  meta.Rev // everything up to here was announced
	High    meta.Rev // the highest that was announced
	Head    Head     // the newest known within the prefix
	Durable meta.Rev // everything up to here survives a loss of power of the database
	Pending []*Span  // announced above the prefix: in order, disjoint
	heads   []Head   // within the prefix, above Durable
}

// Limits of what a zone keeps while a gap is open. What does not fit is only
// counted (High): whoever closes the gap reads it from SQL.
const (
	maxPending = 4096 // spans
	maxHeads   = 64
)

// Head is the audit chain's head at a revision (P4).
type Head struct {
	Zone  string
	Epoch int64
	Rev   meta.Rev
	Hash  [32]byte
}

func (h *Head) code(c *codec) {
	c.string(&h.Zone)
	signed(c, &h.Epoch)
	signed(c, &h.Rev)
	c.hash(&h.Hash)
}

func (z *Zone) code(c *codec) {
	c.string(&z.Name)
	signed(c, &z.Epoch)
	signed(c, &z.Prefix)
	signed(c, &z.High)
	z.Head.code(c)
	signed(c, &z.Durable)
	list(c, &z.heads, func(c *codec, h *Head) { h.code(c) })
}

// Nobody stands for the announcer of operations that were read back from SQL:
// no node has them in its cache already.
const Nobody NodeID = math.MaxUint64

// Span is a run of announced revisions.
type Span struct {
	First, Last meta.Rev
	Node        NodeID           // whose operations they are; 0: of who proposes the entry
	Ops         []meta.Committed // one for each revision, or none: what they did is not told
	Hash        [32]byte         // the chain's head after Last; zeros: not known
	Durable     meta.Rev
}

func (s *Span) code(c *codec) {
	signed(c, &s.First)
	signed(c, &s.Last)
	unsigned(c, &s.Node)
	list(c, &s.Ops, codeOp)
	c.hash(&s.Hash)
	signed(c, &s.Durable)
}

// valid reports whether the span is a run of revisions, told wholly or not.
func (s *Span) valid() bool {
	return s.First > 0 && s.First <= s.Last && (len(s.Ops) == 0 || int64(len(s.Ops)) == int64(s.Last-s.First)+1)
}

// Gap returns the first run of revisions that is missing below what was
// announced; ok is false when none is.
func (z *Zone) Gap() (first, last meta.Rev, ok bool) {
	if z.High <= z.Prefix {
		return 0, 0, false
	}
	last = z.High
	if len(z.Pending) > 0 {
		last = z.Pending[0].First - 1
	}
	return z.Prefix + 1, last, true
}

// Announce says that revisions of a zone are committed.
type Announce struct {
	Zone  string
	Epoch int64
	Span
}

func (*Announce) kind() kind { return kindAnnounce }

func (n *Announce) code(c *codec) {
	c.string(&n.Zone)
	signed(c, &n.Epoch)
	n.Span.code(c)
}

func (n *Announce) apply(a *applier) Result {
	z := a.Zones[n.Zone]
	switch {
	case z == nil:
		return Result{Code: NotFound}
	case n.Epoch != z.Epoch:
		return Result{Code: WrongEpoch}
	case !n.valid():
		return Result{Code: Conflict}
	}
	if n.Node == 0 {
		n.Node = a.entry.Client
	}
	z.High = max(z.High, n.Last)
	for _, piece := range z.uncovered(&n.Span) {
		if len(z.Pending) >= maxPending && piece.First != z.Prefix+1 {
			continue
		}
		i, _ := slices.BinarySearchFunc(z.Pending, piece.First, func(s *Span, r meta.Rev) int { return int(s.First - r) })
		z.Pending = slices.Insert(z.Pending, i, piece)
		a.touch(rowPending(z.Name, piece.First))
	}
	a.close(z)
	return Result{}
}

// AnnounceAlone is Announce without an entry, for the only member of a group: no
// other applies what it applies, and one that joins begins with a snapshot. It
// reports false, and changes nothing, unless the span joins the prefix.
func (s *State) AnnounceAlone(node NodeID, n *Announce) (Effects, bool) {
	z := s.Zones[n.Zone]
	if z == nil || n.Epoch != z.Epoch || n.First != z.Prefix+1 || len(z.Pending) > 0 {
		return Effects{}, false
	}
	var out Effects
	a := applier{State: s, entry: &Entry{Client: node}, out: &out}
	n.Node = node
	z.High = max(z.High, n.Last)
	a.pass(z, &n.Span)
	a.close(z)
	return out, true
}

// uncovered cuts from s what the prefix and the pending spans have already.
func (z *Zone) uncovered(s *Span) (pieces []*Span) {
	next := max(s.First, z.Prefix+1)
	add := func(last meta.Rev) {
		if last < next {
			return
		}
		p := &Span{First: next, Last: last, Node: s.Node, Durable: s.Durable}
		if len(s.Ops) > 0 {
			p.Ops = s.Ops[next-s.First : last-s.First+1]
		}
		if last == s.Last {
			p.Hash = s.Hash
		}
		pieces = append(pieces, p)
	}
	for _, p := range z.Pending {
		if p.First > s.Last {
			break
		}
		add(min(p.First-1, s.Last))
		next = max(next, p.Last+1)
	}
	add(s.Last)
	return pieces
}

// pass moves the prefix over a span that joins it.
func (a *applier) pass(z *Zone, s *Span) {
	a.out.Advanced = append(a.out.Advanced, Advanced{Zone: z.Name, From: z.Prefix, To: s.Last, Node: s.Node, Ops: s.Ops, Reset: len(s.Ops) == 0})
	z.Prefix, z.Durable = s.Last, max(z.Durable, s.Durable)
	if s.Hash != [32]byte{} {
		z.Head = Head{z.Name, z.Epoch, s.Last, s.Hash}
		z.heads = append(z.heads, z.Head)
	}
}

// close passes the pending spans that now join the prefix, and ends what was
// waiting for that.
func (a *applier) close(z *Zone) {
	a.touch(rowZone(z.Name))
	for len(z.Pending) > 0 && z.Pending[0].First <= z.Prefix+1 {
		s := z.Pending[0]
		z.Pending = slices.Delete(z.Pending, 0, 1)
		a.touch(rowPending(z.Name, s.First))
		a.pass(z, s)
	}
	n := 0
	for n < len(z.heads) && z.heads[n].Rev <= z.Durable {
		n++
	}
	a.out.Heads = append(a.out.Heads, z.heads[:n]...)
	z.heads = slices.Delete(z.heads, 0, max(n, len(z.heads)-maxHeads))
	a.reap(z)
}

// Advance moves a zone's prefix to Rev without telling what changed up to it:
// when the zone is first opened, when more is missing than is worth telling,
// and when the database came back without its tail, with a new epoch (P15).
type Advance struct {
	Zone    string
	Epoch   int64
	Rev     meta.Rev
	Hash    [32]byte // the chain's head at Rev; zeros: not known
	Durable meta.Rev
}

func (*Advance) kind() kind { return kindAdvance }

func (v *Advance) code(c *codec) {
	c.string(&v.Zone)
	signed(c, &v.Epoch)
	signed(c, &v.Rev)
	c.hash(&v.Hash)
	signed(c, &v.Durable)
}

func (v *Advance) apply(a *applier) Result {
	if !validName(v.Zone) || v.Rev < 0 {
		return Result{Code: Conflict}
	}
	z := a.Zones[v.Zone]
	if z == nil {
		z = &Zone{Name: v.Zone, Epoch: v.Epoch}
		a.Zones[v.Zone] = z
	}
	from := z.Prefix
	switch {
	case v.Epoch < z.Epoch:
		return Result{Code: WrongEpoch}
	case v.Epoch == z.Epoch && v.Rev <= z.Prefix:
		z.Durable = max(z.Durable, v.Durable)
		a.close(z)
		return Result{}
	case v.Epoch > z.Epoch && v.Rev < max(z.Prefix, z.High):
		return Result{Code: Conflict} // the counter must be above everything announced
	case v.Epoch > z.Epoch:
		for _, s := range z.Pending {
			a.touch(rowPending(z.Name, s.First))
		}
		*z = Zone{Name: z.Name, Epoch: v.Epoch}
	}
	z.Prefix, z.High, z.Durable = v.Rev, max(z.High, v.Rev), max(z.Durable, v.Durable)
	if v.Hash != [32]byte{} {
		z.Head = Head{z.Name, z.Epoch, v.Rev, v.Hash}
		z.heads = append(z.heads, z.Head)
	}
	a.out.Advanced = append(a.out.Advanced, Advanced{Zone: z.Name, From: from, To: v.Rev, Node: a.entry.Client, Reset: true})
	a.dropCovered(z)
	a.close(z)
	return Result{}
}

// dropCovered removes from the pending spans what the prefix has passed.
func (a *applier) dropCovered(z *Zone) {
	for len(z.Pending) > 0 && z.Pending[0].First <= z.Prefix {
		s := z.Pending[0]
		z.Pending = slices.Delete(z.Pending, 0, 1)
		a.touch(rowPending(z.Name, s.First))
		for _, piece := range z.uncovered(s) {
			z.Pending = slices.Insert(z.Pending, 0, piece)
			a.touch(rowPending(z.Name, piece.First))
		}
	}
}

// EncodeHead returns a head's bytes, for DecodeHead.
func EncodeHead(h Head) []byte { return encode(nil, &h) }

// DecodeHead reads what EncodeHead returned.
func DecodeHead(b []byte) (Head, error) {
	var h Head
	err := decode(b, &h)
	return h, err
}
