package state

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nexusfs/meta"
)

// held describes what is held on file 5, byte by byte: the owner of an
// exclusive lock, and lower case for a shared one.
func (g *group) held() string {
	out := []byte(strings.Repeat(".", 12))
	f := g.Files[FileKey{"z", 5}]
	if f == nil {
		return string(out)
	}
	for _, h := range f.Held {
		for b := h.Start; b <= min(h.End, 11); b++ {
			if c := byte('A' + h.ID); h.Exclusive {
				out[b] = c
			} else {
				out[b] = c + 'a' - 'A'
			}
		}
	}
	return string(out)
}

func (g *group) lock(owner, start, end uint64, exclusive, wait bool) Code {
	l := posix(1, owner, start, end)
	l.Exclusive = exclusive
	return g.code(1, &Lock{FileKey: FileKey{"z", 5}, FileLock: l, Wait: wait})
}

// TestRanges: POSIX ranges of one owner replace, split and join each other.
func TestRanges(t *testing.T) {
	const x, s, un = 0, 1, 2
	type step struct {
		what            int
		owner, from, to uint64
	}
	for _, tc := range []struct {
		name  string
		steps []step
		want  string
		locks int
	}{
		{"neighbours join", []step{{x, 0, 0, 2}, {x, 0, 3, 5}}, "AAAAAA......", 1},
		{"a hole", []step{{x, 0, 0, 9}, {un, 0, 3, 5}}, "AAA...AAAA..", 2},
		{"weaker in the middle", []step{{x, 0, 0, 9}, {s, 0, 3, 5}}, "AAAaaaAAAA..", 3},
		{"stronger over all", []step{{s, 0, 0, 2}, {s, 0, 5, 6}, {x, 0, 0, 11}}, "AAAAAAAAAAAA", 1},
		{"others stay", []step{{x, 1, 0, 3}, {x, 2, 4, 7}, {un, 1, 0, 11}}, "....CCCC....", 1},
		{"shared by two, refused to a third", []step{{s, 1, 0, 3}, {s, 1, 0, 3}, {x, 2, 2, 4}}, "bbbb........", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGroup(t)
			for _, st := range tc.steps {
				if st.what == un {
					g.want(1, &Unlock{FileKey{"z", 5}, LockOwner{1, POSIX, st.owner}, st.from, st.to}, OK)
				} else {
					g.lock(st.owner, st.from, st.to, st.what == x, false)
				}
			}
			if got := g.held(); got != tc.want {
				t.Errorf("held %s, want %s", got, tc.want)
			}
			if n := len(g.Files[FileKey{"z", 5}].Held); n != tc.locks {
				t.Errorf("%d locks, want %d", n, tc.locks)
			}
		})
	}
}

// TestP21Ends: locks end with their owner's unlock, their handle and their
// session.
func TestP21Ends(t *testing.T) {
	g := newGroup(t)
	take := func(kind LockKind, id, handle, start uint64) {
		l := FileLock{LockOwner: LockOwner{1, kind, id}, Handle: handle, Exclusive: true, Start: start, End: start}
		g.want(1, &Lock{FileKey: FileKey{"z", 5}, FileLock: l}, OK)
	}
	take(POSIX, 1, 7, 0)
	take(OFD, 2, 7, 1)
	take(POSIX, 1, 8, 2)
	take(Flock, 3, 7, 0)
	g.want(1, &ReleaseHandle{FileKey: FileKey{"z", 5}, Session: 1, Handle: 7}, OK)
	if got := g.held(); got != "..B........." {
		t.Errorf("after the handle's release: %s", got)
	}
	take(OFD, 2, 9, 1)
	g.want(2, &EndSession{SessionKey{"z", 1}}, NoSession) // not its node's
	g.want(1, &EndSession{SessionKey{"z", 1}}, OK)
	if len(g.Files) != 0 {
		t.Errorf("after the session's end: %s", g.held())
	}
}

func TestFlockConversion(t *testing.T) {
	g := newGroup(t)
	flock := func(id uint64, exclusive, wait bool) Code {
		l := FileLock{LockOwner: LockOwner{1, Flock, id}, Exclusive: exclusive, Request: RequestID{1, id}}
		return g.code(1, &Lock{FileKey: FileKey{"z", 5}, FileLock: l, Wait: wait})
	}
	if c := flock(1, false, false); c != OK {
		t.Fatal(c)
	}
	if c := flock(2, false, false); c != OK {
		t.Fatal(c)
	}
	if c := flock(1, true, true); c != Waiting {
		t.Errorf("conversion: %v", c)
	}
	// flock(2): a conversion gives the old lock up first, and who waits may get
	// in between.
	if c := flock(2, true, false); c != WouldBlock {
		t.Errorf("the other's conversion: %v", c)
	}
	if held := g.Files[FileKey{"z", 5}].Held; len(held) != 1 || held[0].ID != 1 || !held[0].Exclusive {
		t.Errorf("held: %+v", held)
	}
	if c := g.lock(9, 0, 11, true, false); c != OK {
		t.Errorf("flock stands in the way of fcntl: %v", c)
	}
}

// TestDeadlock: circles over two and three processes are found, over any files;
// a queue is none.
func TestDeadlock(t *testing.T) {
	g := newGroup(t)
	at := func(owner uint64, ino uint64, wait bool) Code {
		l := posix(1, owner, 0, 0)
		l.Request.Num = owner<<8 | ino
		return g.code(1, &Lock{FileKey: FileKey{"z", inoOf(ino)}, FileLock: l, Wait: wait})
	}
	for o := uint64(1); o <= 3; o++ {
		if c := at(o, o, false); c != OK {
			t.Fatal(c)
		}
	}
	for _, tc := range []struct {
		owner, ino uint64
		want       Code
	}{{1, 2, Waiting}, {4, 1, Waiting}, {2, 1, Deadlock}, {2, 3, Waiting}, {3, 1, Deadlock}, {5, 1, Waiting}} {
		if got := at(tc.owner, tc.ino, true); got != tc.want {
			t.Errorf("process %d waits for file %d: %v, want %v", tc.owner, tc.ino, got, tc.want)
		}
	}
}

// TestOrderOfWaiters: who came first is granted first, where both can be.
func TestOrderOfWaiters(t *testing.T) {
	g := newGroup(t)
	g.lock(0, 0, 9, true, false)
	for o := uint64(1); o <= 3; o++ {
		if c := g.lock(o, 0, 9, o == 3, true); c != Waiting {
			t.Fatal(c)
		}
	}
	eff := g.do(1, &Unlock{FileKey{"z", 5}, LockOwner{1, POSIX, 0}, 0, LockEnd})
	if len(eff.Granted) != 2 || eff.Granted[0].Request.Num != 1<<16 || eff.Granted[1].Request.Num != 2<<16 {
		t.Errorf("granted: %+v", eff.Granted)
	}
	if eff.Granted[0].Token >= eff.Granted[1].Token {
		t.Errorf("tokens do not rise: %+v", eff.Granted)
	}
}

// TestLocksExclude: whatever is asked, no two conflicting locks are held, and
// nobody waits whose way is free.
func TestLocksExclude(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGroup(t)
		for range rapid.IntRange(1, 80).Draw(t, "n") {
			g.do(NodeID(rapid.IntRange(1, 2).Draw(t, "node")), drawCommand(t, g.State))
			for _, f := range g.Files {
				for i := range f.Held {
					for j := range f.Held[:i] {
						a, b := &f.Held[i], &f.Held[j]
						own := a.LockOwner == b.LockOwner && a.Start <= b.End && b.Start <= a.End
						if a.conflicts(b) || own {
							t.Fatalf("held at once: %+v and %+v", a, b)
						}
					}
				}
				for i := range f.Waiting {
					if f.blocker(&f.Waiting[i]) == nil {
						t.Fatalf("%+v waits for nothing", f.Waiting[i])
					}
				}
			}
			for _, n := range g.Names {
				if len(n.Holders) > int(n.Limit) || len(n.Holders) < int(n.Limit) && len(n.Waiting) > 0 {
					t.Fatalf("named lock: %+v", n)
				}
			}
		}
	})
}

func TestStrings(t *testing.T) {
	for c := OK; c <= Full; c++ {
		if c.String() == "" {
			t.Errorf("code %d has no text", c)
		}
	}
	id, err := ParseNodeID(NodeID(0xabc).String())
	if err != nil || id != 0xabc {
		t.Errorf("%v, %v", id, err)
	}
	for _, s := range []string{"", "0", "abc", "0000000000000000", "00000000000000zz", fmt.Sprintf("%017x", 1)} {
		if _, err := ParseNodeID(s); err == nil {
			t.Errorf("%q was read as a node", s)
		}
	}
}

func inoOf(n uint64) meta.Ino { return meta.Ino(n) }
