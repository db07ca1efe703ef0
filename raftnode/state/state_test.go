package state

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"nexusfs/meta"
)

// group is a state with members 1, 2 and 3, zone z in epoch 1 at revision 10,
// and a session 1 and 2 of nodes 1 and 2.
type group struct {
	*State
	t     failer
	seq   map[NodeID]uint64
	index uint64
	log   [][]byte
}

// failer is what a test and rapid's tests have in common.
type failer interface {
	Helper()
	Errorf(format string, v ...any)
	Fatal(v ...any)
}

func newGroup(t failer) *group {
	g := &group{State: Found(Version, Member{ID: 1, Role: Voter, Supports: Version}, 100), t: t, seq: map[NodeID]uint64{}, index: 1}
	for id := NodeID(2); id <= 3; id++ {
		g.do(1, &SetMember{Member{ID: id, Role: Voter, Supports: Version}})
	}
	g.do(1, &Advance{Zone: "z", Epoch: 1, Rev: 10})
	for id := int64(1); id <= 2; id++ {
		g.do(NodeID(id), &BeginSession{SessionKey: SessionKey{"z", id}, Epoch: 1, Lease: 1e9})
	}
	return g
}

// do applies one entry of a node and returns what it did.
func (g *group) do(node NodeID, cmds ...Command) Effects {
	g.t.Helper()
	g.seq[node]++
	return g.entry(&Entry{Version: g.Version, Client: node, Incarnation: 1, Seq: g.seq[node], Low: g.seq[node] - 1, Time: int64(g.index), Commands: cmds})
}

func (g *group) entry(e *Entry) Effects {
	g.t.Helper()
	b, err := e.Encode()
	if err != nil {
		g.t.Fatal(err)
	}
	g.index++
	g.log = append(g.log, b)
	eff, err := g.Apply(g.index, b)
	if err != nil {
		g.t.Fatal(err)
	}
	return eff
}

// code returns the result of a single command.
func (g *group) code(node NodeID, cmd Command) Code {
	g.t.Helper()
	return g.do(node, cmd).Results[0].Code
}

func (g *group) want(node NodeID, cmd Command, want Code) {
	g.t.Helper()
	if got := g.code(node, cmd); got != want {
		g.t.Errorf("%T: %v, want %v", cmd, got, want)
	}
}

func span(first, last meta.Rev) *Announce {
	a := &Announce{Zone: "z", Epoch: 1, Span: Span{First: first, Last: last, Durable: last}}
	for r := first; r <= last; r++ {
		a.Ops = append(a.Ops, meta.Committed{Rev: r, Change: &meta.Change{Record: meta.Record{Kind: meta.OpCreate, Ino: meta.Ino(r)}}})
	}
	a.Hash[0] = byte(last)
	return a
}

// TestP9Prefix: the prefix moves over what joins it, whatever the order, each
// revision once.
func TestP9Prefix(t *testing.T) {
	for _, tc := range []struct {
		name   string
		spans  [][2]meta.Rev
		prefix meta.Rev
		gap    [2]meta.Rev
	}{
		{"in order", [][2]meta.Rev{{11, 12}, {13, 13}}, 13, [2]meta.Rev{}},
		{"a gap", [][2]meta.Rev{{12, 13}}, 10, [2]meta.Rev{11, 11}},
		{"closed", [][2]meta.Rev{{12, 13}, {11, 11}}, 13, [2]meta.Rev{}},
		{"twice", [][2]meta.Rev{{11, 12}, {11, 12}}, 12, [2]meta.Rev{}},
		{"overlapping", [][2]meta.Rev{{13, 15}, {14, 17}, {11, 16}}, 17, [2]meta.Rev{}},
		{"known already", [][2]meta.Rev{{5, 10}}, 10, [2]meta.Rev{}},
		{"half known", [][2]meta.Rev{{8, 12}}, 12, [2]meta.Rev{}},
		{"two gaps", [][2]meta.Rev{{12, 12}, {15, 15}}, 10, [2]meta.Rev{11, 11}},
		{"inside of a gap", [][2]meta.Rev{{20, 20}, {14, 15}, {11, 12}}, 12, [2]meta.Rev{13, 13}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGroup(t)
			var seen []meta.Rev
			for _, s := range tc.spans {
				for _, a := range g.do(2, span(s[0], s[1])).Advanced {
					for _, op := range a.Ops {
						seen = append(seen, op.Rev)
					}
				}
			}
			z := g.Zones["z"]
			first, last, _ := z.Gap()
			if z.Prefix != tc.prefix || [2]meta.Rev{first, last} != tc.gap {
				t.Errorf("prefix %d with gap %d..%d, want %d with %v", z.Prefix, first, last, tc.prefix, tc.gap)
			}
			for i, r := range seen {
				if r != 11+meta.Rev(i) {
					t.Errorf("handed on: %v", seen)
					break
				}
			}
			if meta.Rev(10+len(seen)) != tc.prefix {
				t.Errorf("%d operations were handed on, the prefix is %d", len(seen), tc.prefix)
			}
		})
	}
}

// TestP15Epoch: after the database lost its tail, announcements of the old epoch
// count no more, and the counter must be above everything announced.
func TestP15Epoch(t *testing.T) {
	g := newGroup(t)
	g.do(1, span(11, 14))
	g.do(1, span(17, 18))
	g.want(1, &Advance{Zone: "z", Epoch: 2, Rev: 12}, Conflict)
	g.want(1, &Advance{Zone: "z", Epoch: 2, Rev: 19}, OK)
	g.want(2, span(20, 20), WrongEpoch)
	g.want(2, &Advance{Zone: "z", Epoch: 1, Rev: 30}, WrongEpoch)
	z := g.Zones["z"]
	if z.Prefix != 19 || z.Epoch != 2 || len(z.Pending) != 0 {
		t.Errorf("zone %+v", z)
	}
	next := span(20, 20)
	next.Epoch = 2
	g.want(2, next, OK)
	if z := g.Zones["z"]; z.Prefix != 20 {
		t.Errorf("prefix %d in the new epoch", z.Prefix)
	}
}

// TestP20Reaping: the locks of a silent session go when SQL refuses it and the
// prefix has reached its last operation; a renewal on its way wins.
func TestP20Reaping(t *testing.T) {
	g := newGroup(t)
	k := SessionKey{"z", 2}
	g.want(2, &Lock{FileKey: FileKey{"z", 5}, FileLock: posix(2, 1, 0, 9)}, OK)
	g.want(1, &Lock{FileKey: FileKey{"z", 5}, FileLock: posix(1, 1, 0, 9), Wait: true}, Waiting)
	g.want(2, &RenewSession{k}, OK)
	g.want(1, &Fence{SessionKey: k, Renewals: 0}, Conflict)
	g.want(1, &Fence{SessionKey: k, Renewals: 1}, OK)
	g.want(2, &RenewSession{k}, NoSession)
	g.want(2, &Lock{FileKey: FileKey{"z", 6}, FileLock: posix(2, 1, 0, 9)}, NoSession)
	if eff := g.do(1, &Fenced{SessionKey: k, Rev: 12}); len(eff.Granted) != 0 {
		t.Errorf("granted before the prefix reached the fence: %+v", eff.Granted)
	}
	if first, last, ok := g.Zones["z"].Gap(); !ok || first != 11 || last != 12 {
		t.Errorf("what the session committed last is no gap: %d..%d, %v", first, last, ok)
	}
	if eff := g.do(1, span(11, 11)); len(eff.Granted) != 0 {
		t.Errorf("granted at 11: %+v", eff.Granted)
	}
	eff := g.do(1, span(12, 12))
	if len(eff.Granted) != 1 || eff.Granted[0].Code != OK || len(eff.Ended) != 1 {
		t.Errorf("at 12: %+v", eff)
	}
}

// TestEntryCountsOnce: an entry that was proposed twice, or by a process that
// has ended, or by a former member, changes nothing.
func TestEntryCountsOnce(t *testing.T) {
	g := newGroup(t)
	e := &Entry{Version: 1, Client: 3, Incarnation: 5, Seq: 1, Commands: []Command{&AddToken{JoinToken{Hash: [32]byte{1}, Expires: 1e18}}}}
	if eff := g.entry(e); eff.Results[0].Code != OK {
		t.Fatal(eff)
	}
	g.want(1, &UseToken{Hash: [32]byte{1}}, OK)
	if eff := g.entry(e); eff.Results == nil || len(g.Joins) != 0 {
		t.Errorf("applied again: %+v, tokens %v", eff, g.Joins)
	}
	old := *e
	old.Incarnation = 4
	if eff := g.entry(&old); eff.Results != nil {
		t.Errorf("of a process that has ended: %+v", eff)
	}
	g.want(1, &RemoveMembers{[]NodeID{3, 9}}, NotFound)
	if len(g.Members) != 3 {
		t.Errorf("half of a refused removal: %v", g.Members)
	}
	g.want(1, &RemoveMembers{[]NodeID{3}}, OK)
	again := *e
	again.Seq = 2
	if eff := g.entry(&again); eff.Results != nil || len(g.Joins) != 0 {
		t.Errorf("of a former member: %+v", eff)
	}
	g.want(1, &SetMember{Member{ID: 3, Supports: 9}}, NotFound)
}

// TestP19Versions: what is not known is refused, when it is encoded and when it
// is read.
func TestP19Versions(t *testing.T) {
	g := newGroup(t)
	if _, err := DecodeEntry(encode(nil, &Entry{Version: Version + 1}), Version); !errors.Is(err, ErrNewer) {
		t.Errorf("entry: %v", err)
	}
	g.want(1, &Activate{2}, Conflict)
	for _, m := range g.Members {
		m.Supports = 2
	}
	g.known = 2
	g.want(1, &Activate{2}, OK)
	if _, err := FromSnapshot(1, g.Snapshot()); !errors.Is(err, ErrNewer) {
		t.Errorf("snapshot: %v", err)
	}
	if _, err := Restore(1, g.All()); !errors.Is(err, ErrNewer) {
		t.Errorf("rows: %v", err)
	}
	g.want(1, &SetMember{Member{ID: 9, Supports: 1}}, Conflict)
	if _, err := (&Entry{Version: 0, Commands: []Command{&Activate{2}}}).Encode(); !errors.Is(err, ErrNewer) {
		t.Errorf("a command that the version lacks was encoded: %v", err)
	}
}

func posix(session int64, owner, start, end uint64) FileLock {
	return FileLock{LockOwner: LockOwner{session, POSIX, owner}, Handle: owner, Exclusive: true, Start: start, End: end, Request: RequestID{NodeID(session), owner<<16 | start}}
}

// TestReplayIsSnapshotAndTail: random entries give one state, whether they are
// applied in one go, or from a snapshot in between, or from the rows that were
// written along.
func TestReplayIsSnapshotAndTail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGroup(t)
		g.log = nil
		base, from := g.Snapshot(), g.index
		rows := map[string][]byte{}
		for _, r := range g.All() {
			rows[string(r.Key)] = r.Value
		}
		_ = g.Changed()
		cut := rapid.IntRange(0, 40).Draw(t, "cut")
		var middle []byte
		for i := range rapid.IntRange(1, 60).Draw(t, "n") {
			if i == cut {
				middle = g.Snapshot()
			}
			g.do(NodeID(rapid.IntRange(1, 3).Draw(t, "node")), drawCommand(t, g.State))
			if rapid.Bool().Draw(t, "write") {
				keep(rows, g.Changed())
			}
		}
		keep(rows, g.Changed())
		want := g.Snapshot()
		if middle != nil {
			base, from = middle, from+uint64(cut)
		}
		s, err := FromSnapshot(Version, base)
		if err != nil {
			t.Fatal(err)
		}
		for i := int(from - (g.index - uint64(len(g.log)))); i < len(g.log); i++ {
			if _, err := s.Apply(from+1, g.log[i]); err != nil {
				t.Fatal(err)
			}
			from++
		}
		if !bytes.Equal(s.Snapshot(), want) {
			t.Fatal("snapshot and tail differ from the whole")
		}
		var list []Row
		for k, v := range rows {
			list = append(list, Row{[]byte(k), v})
		}
		sortRows(list)
		r, err := Restore(Version, list)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Snapshot(), want) {
			t.Fatal("the rows differ from the state")
		}
	})
}

func keep(rows map[string][]byte, changed []Row) {
	for _, r := range changed {
		if r.Value == nil {
			delete(rows, string(r.Key))
		} else {
			rows[string(r.Key)] = r.Value
		}
	}
}

func sortRows(rows []Row) {
	for i := range rows {
		for j := i; j > 0 && bytes.Compare(rows[j].Key, rows[j-1].Key) < 0; j-- {
			rows[j], rows[j-1] = rows[j-1], rows[j]
		}
	}
}

// drawCommand draws a command that may well make sense.
func drawCommand(t *rapid.T, s *State) Command {
	z := s.Zones["z"]
	num := func(lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, "n") }
	session := int64(num(1, 4))
	k := SessionKey{"z", session}
	file := FileKey{"z", meta.Ino(num(1, 3))}
	req := RequestID{NodeID(num(1, 3)), uint64(num(1, 50))}
	owner := LockOwner{session, LockKind(num(0, 2)), uint64(num(1, 3))}
	start := uint64(num(0, 9))
	name := NameKey{"z", fmt.Sprint(num(1, 2))}
	switch num(0, 16) {
	case 0, 1, 2:
		first := z.Prefix + meta.Rev(num(-2, 6))
		a := span(max(1, first), max(1, first)+meta.Rev(num(0, 3)))
		a.Durable = meta.Rev(num(0, 30))
		return a
	case 3:
		return &Advance{Zone: "z", Epoch: z.Epoch + int64(num(0, 1)), Rev: z.Prefix + meta.Rev(num(0, 8)), Hash: [32]byte{2}}
	case 4:
		return &BeginSession{SessionKey: k, Epoch: 1, Lease: 1e9}
	case 5:
		return &EndSession{k}
	case 6:
		return &Fence{SessionKey: k, Renewals: uint64(num(0, 1))}
	case 7:
		return &Fenced{SessionKey: k, Rev: z.Prefix + meta.Rev(num(0, 3))}
	case 8, 9:
		return &Lock{FileKey: file, FileLock: FileLock{LockOwner: owner, Handle: owner.ID, Exclusive: num(0, 1) == 1, Start: start, End: start + uint64(num(0, 5)), Request: req}, Wait: num(0, 1) == 1}
	case 10:
		return &Unlock{FileKey: file, LockOwner: owner, Start: start, End: start + uint64(num(0, 9))}
	case 11:
		return &ReleaseHandle{FileKey: file, Session: session, Handle: owner.ID}
	case 12:
		return &Acquire{NameKey: name, Limit: uint32(num(1, 2)), Holder: Holder{Session: session, Request: req, TTL: 1, Note: "n"}, Wait: num(0, 1) == 1}
	case 13:
		return &Cancel{FileKey: file, Name: []string{"", name.Name}[num(0, 1)], Request: req}
	case 14:
		return &ReleaseNamed{NameKey: name, Token: s.Token - uint64(num(0, 3))}
	case 15:
		return []Command{&AddToken{JoinToken{Hash: [32]byte{byte(num(0, 3))}, Expires: int64(num(0, 100))}}, &UseToken{Hash: [32]byte{byte(num(0, 3))}}}[num(0, 1)]
	default:
		return &BreakFile{FileKey: file, Session: int64(num(0, 2))}
	}
}
