package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"nexusfs/internal/pgtest"
	"nexusfs/meta"
)

const lease = 10 * time.Minute

// fleet opens one zone as several daemons do.
func fleet(tb testing.TB, n int) []*world {
	tb.Helper()
	s := server(tb)
	return fleetOn(tb, s, s.Database(tb), n)
}

func fleetOn(tb testing.TB, s *pgtest.Server, name string, n int) []*world {
	tb.Helper()
	var out []*world
	for range n {
		out = append(out, newWorld(tb, Options{URL: s.SocketURL(name), Conns: 2, Mode: 0o755}, lease))
	}
	return out
}

// dir reads a directory that must be there.
func (w *world) inode(ino meta.Ino) meta.Attr {
	w.tb.Helper()
	a, err := w.Inode(ctx, ino)
	if err != nil {
		w.tb.Fatal(err)
	}
	return a
}

// remove builds unlink or rmdir of a name as it is now; nil when there is none.
func (w *world) remove(parent meta.Ino, name string) *meta.Change {
	a, err := w.Lookup(ctx, parent, name)
	if err != nil {
		return nil
	}
	w.seq++
	after, d := a, meta.DirDelta{Ino: parent, Entries: -1, Time: time.Now().UnixNano()}
	after.Nlink--
	c := &meta.Change{Record: meta.Record{Kind: meta.OpUnlink, Ino: a.Ino, Parent: parent, Name: name, Time: d.Time, Seq: w.seq}}
	if a.IsDir() {
		c.Record.Kind, after.Nlink, d.Nlink = meta.OpRmdir, 0, -1
	}
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	c.Dirs = []meta.DirDelta{d}
	c.Names = []meta.NameChange{{Parent: parent, Name: name, Before: a.Ino, BeforeType: a.Mode & meta.ModeType}}
	return c
}

// link builds another name for a file as it is now.
func (w *world) link(from meta.Ino, name string, to meta.Ino, newName string) *meta.Change {
	a, err := w.Lookup(ctx, from, name)
	if err != nil || a.IsDir() {
		return nil
	}
	w.seq++
	after := a
	after.Nlink++
	return &meta.Change{Record: meta.Record{Kind: meta.OpLink, Ino: a.Ino, Parent: to, Name: newName, Time: time.Now().UnixNano(), Seq: w.seq},
		Inodes: []meta.InodeChange{{Before: &a, After: after}}, Dirs: []meta.DirDelta{{Ino: to, Entries: 1, Time: 1}},
		Names: []meta.NameChange{{Parent: to, Name: newName, After: a.Ino, AfterType: a.Mode & meta.ModeType}}}
}

// rename builds a rename to a name that is free, as things are now. A directory
// does not move below itself: above says which directories lie above to.
func (w *world) rename(from meta.Ino, name string, to meta.Ino, newName string) *meta.Change {
	a, err := w.Lookup(ctx, from, name)
	if err != nil || a.IsDir() && w.below(to, a.Ino) {
		return nil
	}
	w.seq++
	now := time.Now().UnixNano()
	src, dst := meta.DirDelta{Ino: from, Entries: -1, Time: now}, meta.DirDelta{Ino: to, Entries: 1, Time: now}
	after := a
	kind := a.Mode & meta.ModeType
	c := &meta.Change{Record: meta.Record{Kind: meta.OpRename, Ino: a.Ino, Parent: from, Name: name, NewParent: to, NewName: newName, Time: now, Seq: w.seq}}
	if a.IsDir() {
		after.Parent, src.Nlink, dst.Nlink, c.Topology = to, -1, 1, from != to
	}
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	c.Names = []meta.NameChange{{Parent: from, Name: name, Before: a.Ino, BeforeType: kind}, {Parent: to, Name: newName, After: a.Ino, AfterType: kind}}
	if c.Dirs = []meta.DirDelta{src, dst}; from == to {
		c.Dirs = []meta.DirDelta{{Ino: from, Time: now}}
	}
	return c
}

// below reports whether a directory is another one or lies below it.
func (w *world) below(dir, top meta.Ino) bool {
	for depth := 0; depth < 64; depth++ {
		if dir == top {
			return true
		}
		if dir == meta.RootIno {
			return false
		}
		a, err := w.Inode(ctx, dir)
		if err != nil {
			return true // gone: leave it alone
		}
		dir = a.Parent
	}
	return true
}

// draw builds a random operation on a few names in a few directories.
func (w *world) draw(r *rand.Rand, dirs []meta.Ino) *meta.Change {
	pick := func() (meta.Ino, string) { return dirs[r.IntN(len(dirs))], fmt.Sprint("n", r.IntN(4)) }
	from, name := pick()
	to, newName := pick()
	switch r.IntN(6) {
	case 0, 1:
		return w.make(from, name, r.IntN(3) == 0)
	case 2:
		return w.link(from, name, to, newName)
	case 3:
		return w.rename(from, name, to, newName)
	}
	return w.remove(from, name)
}

// TestDaemonsHammerOneZone: several daemons create, link, rename, unlink, mkdir
// and rmdir the same few names at the same time; whatever is refused, what is
// left is whole.
func TestDaemonsHammerOneZone(t *testing.T) {
	fleet := fleet(t, 4)
	var dirs []meta.Ino
	for i := range 4 {
		c := fleet[0].make(meta.RootIno, fmt.Sprint("d", i), true)
		fleet[0].commit(c)
		dirs = append(dirs, c.Record.Ino)
	}
	rounds := 150
	if raceDetector {
		rounds = 40
	}
	var wg sync.WaitGroup
	for i, w := range fleet {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range rounds {
				var batch []*meta.Change
				for range 1 + r.IntN(6) {
					if c := w.draw(r, append(dirs, meta.RootIno)); c != nil {
						batch = append(batch, c)
					}
				}
				if _, err := w.send(batch...); err != nil {
					t.Errorf("daemon %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	fleet[0].clean()
}

// TestOneWinnerPerName: all daemons make the same names exclusively, in batches
// of which every second operation must fail (P2): each name has one winner.
func TestOneWinnerPerName(t *testing.T) {
	fleet := fleet(t, 4)
	const names = 40
	wins := make([][]int, len(fleet))
	var wg sync.WaitGroup
	for i, w := range fleet {
		wins[i] = make([]int, names)
		wg.Go(func() {
			for n := 0; n < names; n += 4 {
				var batch []*meta.Change
				for j := range 4 {
					name := fmt.Sprint("name", n+j)
					batch = append(batch, w.make(meta.RootIno, name, j%2 == 0), w.make(meta.RootIno, name, false))
				}
				out, err := w.send(batch...)
				if err != nil {
					t.Error(err)
					return
				}
				for j, o := range out {
					if o.Err == nil {
						wins[i][n+j/2]++
					}
				}
			}
		})
	}
	wg.Wait()
	for n := range names {
		sum := 0
		for i := range fleet {
			sum += wins[i][n]
		}
		if sum != 1 {
			t.Errorf("name%d has %d winners", n, sum)
		}
	}
	fleet[0].clean()
}

// TestDirectoriesNeverMoveIntoEachOther: 'mv a b/a' and 'mv b a/b' at the same
// time must not both succeed (P3).
func TestDirectoriesNeverMoveIntoEachOther(t *testing.T) {
	fleet := fleet(t, 2)
	for round := range 20 {
		a, b := fmt.Sprint("a", round), fmt.Sprint("b", round)
		x, y := fleet[0].make(meta.RootIno, a, true), fleet[0].make(meta.RootIno, b, true)
		fleet[0].commit(x, y)
		moves := []*meta.Change{fleet[0].rename(meta.RootIno, a, y.Record.Ino, a), fleet[1].rename(meta.RootIno, b, x.Record.Ino, b)}
		won := make([]bool, 2)
		var wg sync.WaitGroup
		for i, w := range fleet {
			wg.Go(func() {
				out, err := w.send(moves[i])
				won[i] = err == nil && out[0].Err == nil
			})
		}
		wg.Wait()
		if won[0] && won[1] {
			t.Fatal("both directories moved into each other")
		}
	}
	fleet[0].clean()
}

// TestLastAttributes: two daemons each remove another of a directory's last two
// attributes, neither of which saw the other; the flag stays right.
func TestLastAttributes(t *testing.T) {
	fleet := fleet(t, 2)
	w := fleet[0]
	dir := w.make(meta.RootIno, "d", true)
	w.commit(dir)
	set := func(w *world, a meta.Attr, flags uint32, name string, value []byte) *meta.Change {
		w.seq++
		after := a
		after.Flags = flags
		return &meta.Change{Record: meta.Record{Kind: meta.OpSetxattr, Ino: a.Ino, Time: 1, Seq: w.seq},
			Inodes: []meta.InodeChange{{Before: &a, After: after}}, Xattrs: []meta.XattrChange{{Ino: a.Ino, Name: name, Value: value}}}
	}
	w.commit(set(w, w.inode(dir.Record.Ino), meta.FlagXattrs, "user.a", []byte("1")))
	w.commit(set(w, w.inode(dir.Record.Ino), meta.FlagXattrs, "user.b", []byte("2")))
	seen := w.inode(dir.Record.Ino)
	w.commit(set(w, seen, meta.FlagXattrs, "user.a", nil)) // user.b stays
	out, err := fleet[1].send(set(fleet[1], seen, meta.FlagXattrs, "user.b", nil))
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, out[0].Err, meta.KindConflict)
	fleet[1].commit(set(fleet[1], fleet[1].inode(dir.Record.Ino), 0, "user.b", nil)) // it looked again
	w.clean()
}

// TestLostUpdate: two daemons change one file from the same image; one of them
// has to look again.
func TestLostUpdate(t *testing.T) {
	fleet := fleet(t, 2)
	file := fleet[0].make(meta.RootIno, "f", false)
	fleet[0].commit(file)
	seen := fleet[0].inode(file.Record.Ino)
	conflicts := 0
	for _, w := range fleet {
		w.seq++
		after := seen
		after.Mode ^= 0o111
		out, err := w.send(&meta.Change{Record: meta.Record{Kind: meta.OpSetattr, Ino: seen.Ino, Time: 1, Seq: w.seq},
			Inodes: []meta.InodeChange{{Before: &seen, After: after}}})
		if err != nil {
			t.Fatal(err)
		}
		if out[0].Err != nil {
			wantKind(t, out[0].Err, meta.KindConflict)
			conflicts++
		}
	}
	if conflicts != 1 {
		t.Errorf("%d conflicts, want 1", conflicts)
	}
	fleet[0].clean()
}

// TestLeases: a session lives by its heartbeat; one whose lease ended is fenced
// by another's and commits nothing more. A session that came second waits until
// the first shares, and nobody is alone while another lives.
func TestLeases(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	a := newWorld(t, Options{URL: s.SocketURL(name)}, lease)
	pa := peersOf(t, a)
	beat := func(w *world, p *Peers, mode meta.PeerMode, want meta.PeerState) {
		t.Helper()
		if got, err := p.Heartbeat(ctx, w.session, w.epoch, mode); err != nil || got != want {
			t.Errorf("session %d: %+v, %v, want %+v", w.session, got, err, want)
		}
	}
	beat(a, pa, meta.PeerAlone, meta.PeerState{Alone: true})
	b := newWorld(t, Options{URL: s.SocketURL(name)}, lease)
	pb := peersOf(t, b)
	beat(b, pb, meta.PeerAlone, meta.PeerState{Others: 1, Unready: 1})
	beat(a, pa, meta.PeerAlone, meta.PeerState{Others: 1}) // it has not changed its mode by asking
	beat(b, pb, meta.PeerShares, meta.PeerState{Others: 1, Unready: 1})
	beat(a, pa, meta.PeerShares, meta.PeerState{Others: 1})
	beat(b, pb, meta.PeerAlone, meta.PeerState{Others: 1})
	a.commit(a.mkdir())
	b.commit(b.mkdir())
	list, err := a.LiveSessions(ctx)
	if err != nil || len(list) != 2 || !list[0].Shared || !list[1].Shared || list[1].Left <= 0 {
		t.Fatalf("live are %+v, %v", list, err)
	}
	s.MustSQL(t, name, fmt.Sprintf("UPDATE nexusfs.session_rows SET until=1 WHERE session=%d", a.session)) // its lease ended
	beat(b, pb, meta.PeerAlone, meta.PeerState{Alone: true})
	_, err = a.send(a.mkdir())
	wantKind(t, err, meta.KindFenced)
	_, err = pa.Heartbeat(ctx, a.session, a.epoch, meta.PeerShares)
	wantKind(t, err, meta.KindFenced)
	b.commit(b.mkdir())
	b.clean()
}

func peersOf(t *testing.T, w *world) *Peers {
	p := w.Peers()
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestWatchSessions: who waits is told when a session comes or goes, and when
// something may have been missed.
func TestWatchSessions(t *testing.T) {
	fleet := fleet(t, 2)
	p := peersOf(t, fleet[0])
	if err := p.WatchSessions(ctx); err != nil { // it listens from now on
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := p.WatchSessions(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing has changed: %v", err)
	}
	fleet[1].commit(fleet[1].mkdir())
	if err := fleet[1].End(ctx, fleet[1].session); err != nil {
		t.Fatal(err)
	}
	if err := p.WatchSessions(ctx); err != nil {
		t.Errorf("a session has ended: %v", err)
	}
}
