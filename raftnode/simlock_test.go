package raftnode

import (
	"math"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"nexusfs/raftnode/state"
)

// simLock is what a node's user does with one named mutex, and with its session.
type simLock struct {
	session int64 // of this process; 0: none yet
	begin   *call
	core    *core // of this process
	renewed uint64
	held    uint64 // token
	under   *lockOp
}

// lockOp is one operation on the mutex on its way.
type lockOp struct {
	in    lockIn
	since int64
	call  *call
	core  *core
}

// lockIn is an operation of porcupine's history.
type lockIn struct {
	kind    lockKind
	file    bool // a lock on a file: its release says nothing
	session int64
	token   uint64 // of a release
}

type lockKind uint8

const (
	acquireOp lockKind = iota
	releaseOp
	endOp // the session ends at some time, or never
)

// lockOut is what came of it; known is false when its caller died before.
type lockOut struct {
	known bool
	code  state.Code
	token uint64
}

// lockState is the mutex: who has it, and the highest token given.
type lockState struct {
	session     int64
	token, last uint64
}

// lockModel is a mutex with rising tokens, whose holders may die.
var lockModel = porcupine.NondeterministicModel{
	Init:  func() []any { return []any{lockState{}} },
	Equal: func(a, b any) bool { return a.(lockState) == b.(lockState) },
	Step: func(s, in, out any) []any {
		was, op, got := s.(lockState), in.(lockIn), out.(lockOut)
		free := was.session == 0
		switch {
		case op.kind == endOp && was.session == op.session:
			return []any{lockState{last: was.last}, was}
		case op.kind == endOp:
			return []any{was}
		case op.kind == acquireOp && !got.known && free:
			return []any{was, lockState{session: op.session, last: was.last}}
		case op.kind == releaseOp && !got.known && was.session == op.session:
			return []any{was, lockState{last: was.last}}
		case !got.known, got.code == state.NoSession:
			return []any{was}
		case op.kind == acquireOp && got.code == state.OK && free && got.token > was.last:
			return []any{lockState{op.session, got.token, got.token}}
		case op.kind == acquireOp && got.code == state.WouldBlock && !free:
			return []any{was}
		case op.kind == releaseOp && op.file && got.code == state.OK && was.session != op.session:
			return []any{was}
		case op.kind == releaseOp && got.code == state.OK && was.session == op.session && was.token == op.token:
			return []any{lockState{last: was.last}}
		case op.kind == releaseOp && got.code == state.NotFound && was.token != op.token:
			return []any{was}
		}
		return nil
	},
}

// locking plays the users of every data node for one tick.
func (s *sim) locking(users map[state.NodeID]*simLock, history *[]porcupine.Operation) {
	record := func(op *lockOp, out lockOut, until int64) {
		*history = append(*history, porcupine.Operation{ClientId: int(op.in.session), Input: op.in, Call: op.since, Output: out, Return: until})
	}
	for _, n := range s.each() {
		u := users[n.id]
		if u.under != nil && u.under.core != n.core { // the process has ended
			record(u.under, lockOut{}, math.MaxInt64)
			u.under = nil
		}
		if u.session != 0 && (n.core == nil || u.core != n.core) {
			record(&lockOp{in: lockIn{kind: endOp, session: u.session}, since: s.moment()}, lockOut{known: true}, math.MaxInt64)
			*u = simLock{}
		}
		if n.core == nil || n.witness || n.core.st.Zones[simZone] == nil {
			continue
		}
		s.session(n, u)
		if n.core == nil || u.session == 0 || !u.begin.finished() {
			continue
		}
		s.useLock(n, u, record)
	}
}

// moment is a point of time that is never the same.
func (s *sim) moment() int64 {
	s.moments++
	return int64(s.now)<<20 + s.moments
}

const simLease = 60 // ticks

// session begins a session, and renews it most of the time.
func (s *sim) session(n *simNode, u *simLock) {
	k := state.SessionKey{Zone: simZone, ID: u.session}
	switch {
	case u.session == 0:
		s.sessions++
		u.session, u.renewed = s.sessions, s.now
		k.ID = u.session
		u.begin = newCall(&state.BeginSession{SessionKey: k, Epoch: 1, Lease: int64(simLease * simTiming.tick)})
		u.core = n.core
		n.core.propose(u.begin)
	case s.now-u.renewed > simLease/4 && s.rand.IntN(20) > 0:
		u.renewed = s.now
		n.core.propose(newCall(&state.RenewSession{SessionKey: k}))
	}
	n.drive()
}

// useLock begins or ends one operation on the mutex.
func (s *sim) useLock(n *simNode, u *simLock, record func(*lockOp, lockOut, int64)) {
	if op := u.under; op != nil {
		if !op.call.finished() {
			return
		}
		u.under = nil
		out := lockOut{known: op.call.err == nil, code: op.call.result.Code, token: op.call.result.Token}
		record(op, out, s.moment())
		switch {
		case out.known && out.code == state.NoSession:
			record(&lockOp{in: lockIn{kind: endOp, session: u.session}, since: 0}, lockOut{known: true}, math.MaxInt64)
			*u = simLock{}
		case op.in.kind == acquireOp && out.code == state.OK:
			u.held = out.token
		default:
			u.held = 0
		}
		return
	}
	if s.rand.IntN(4) > 0 {
		return
	}
	op := &lockOp{in: lockIn{session: u.session, file: s.files}, since: s.moment(), core: n.core}
	if u.held != 0 {
		op.in.kind, op.in.token = releaseOp, u.held
	}
	op.call = newCall(s.lockCommand(n, op.in))
	u.under = op
	n.core.propose(op.call)
	n.drive()
}

// lockCommand is an operation on the mutex: a named lock, or one on a file.
func (s *sim) lockCommand(n *simNode, in lockIn) state.Command {
	s.requests++
	request := state.RequestID{Node: n.id, Num: s.requests}
	name, file := state.NameKey{Zone: simZone, Name: "m"}, state.FileKey{Zone: simZone, Ino: 5}
	l := lockOf(in.session, 1, 3, 7)
	l.Request = request
	switch {
	case in.file && in.kind == acquireOp:
		return &state.Lock{FileKey: file, FileLock: l}
	case in.file:
		return &state.Unlock{FileKey: file, LockOwner: l.LockOwner, Start: 0, End: state.LockEnd}
	case in.kind == acquireOp:
		return &state.Acquire{NameKey: name, Limit: 1, Holder: state.Holder{Session: in.session, Request: request}}
	}
	return &state.ReleaseNamed{NameKey: name, Token: in.token}
}

// TestLocksAreLinearizable: under random faults the history of a mutex, named or
// on a file, is that of a mutex, with tokens that only rise.
func TestLocksAreLinearizable(t *testing.T) {
	for _, shape := range []struct {
		name    string
		members []state.Member
		keep    int
		files   bool
	}{
		{"named, 3", voters(3), 0, false}, {"named, 2+witness compacting", twoAndWitness(), 4, false},
		{"files, 3", voters(3), 0, true}, {"files, 2+witness compacting", twoAndWitness(), 4, true},
	} {
		t.Run(shape.name, func(t *testing.T) {
			granted := 0
			for _, seed := range seeds(t, 12) {
				s := newSim(seed, shape.members...)
				s.keep, s.files = shape.keep, shape.files
				users := map[state.NodeID]*simLock{}
				for id := range s.nodes {
					users[id] = new(simLock)
				}
				var history []porcupine.Operation
				s.besides = func() { s.locking(users, &history) }
				s.chaos(300)
				if len(s.faults) == 0 {
					s.settle()
				}
				s.report(t)
				for id, u := range users {
					if op := u.under; op != nil {
						if s.now-uint64(op.since>>20) > 300 {
							t.Errorf("seed %d: an operation of node %v was not answered for 300 ticks", seed, id)
						}
						history = append(history, porcupine.Operation{Input: op.in, Call: op.since, Output: lockOut{}, Return: math.MaxInt64})
					}
				}
				for _, op := range history {
					if out := op.Output.(lockOut); out.token != 0 {
						granted++
					}
				}
				if len(history) == 0 {
					t.Fatalf("seed %d: nothing happened", seed)
				}
				if r := porcupine.CheckOperationsTimeout(lockModel.ToModel(), history, time.Minute); r != porcupine.Ok {
					t.Fatalf("seed %d: the history of %d operations is no mutex's: %v", seed, len(history), r)
				}
			}
			if granted < 5*len(seeds(t, 12)) {
				t.Errorf("only %d locks were granted: the histories say little", granted)
			}
		})
	}
}
