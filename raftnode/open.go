package raftnode

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"nexusfs/raftnode/kv"
	"nexusfs/raftnode/state"
	"nexusfs/raftnode/transport"
)

// Options make a node.
type Options struct {
	Dir   string // the node's own folder; one daemon at a time
	Truth Truth  // nil: a witness
	// Network connects the node with others. nil: it is alone, and listens
	// nowhere.
	Network *transport.Config
	// Late bounds how long an answer of the group is waited for; DefaultLate if 0.
	Late time.Duration
	Log  *slog.Logger // nil: none

	timing      timing // of tests; zero: defaultTiming
	known       uint16 // of tests of upgrades; 0: state.Version
	shortLeases bool   // tests do not wait for long ones
}

// DefaultLate is how long an answer of the group is waited for. It is longer
// than a leader's replacement and shorter than a session's lease.
const DefaultLate = 8 * time.Second

func (o *Options) defaults() {
	if o.Late == 0 {
		o.Late = DefaultLate
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.timing == (timing{}) {
		o.timing = defaultTiming
	}
	if o.known == 0 {
		o.known = state.Version
	}
}

// Found makes the folder of a new group's first node: a voter, and the only
// one. An existing identity is fs.ErrExist. Nothing else is touched: the state
// comes with Open, and again whenever it is lost while the node is alone.
func Found(dir string, id *Identity) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	switch _, err := ReadIdentity(dir); {
	case err == nil:
		return fmt.Errorf("found a group in %s: %w: a node lives there", dir, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return id.write(dir)
}

// Open opens the node whose folder is o.Dir. A node that is alone begins anew
// where its state is lost, damaged, or was left by a machine that stopped; for a
// member of a group that is ErrRejoin (P16). Other errors are those of kv.Open
// and of the system. The node does nothing before Run.
func Open(o Options) (*Node, error) {
	o.defaults()
	id, err := ReadIdentity(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the node in %s: %w", o.Dir, err)
	}
	if o.Truth == nil && !id.Witness {
		return nil, fmt.Errorf("open the node in %s: it is no witness and has no SQL store", o.Dir)
	}
	store, err := openStore(o, id)
	if err != nil {
		return nil, err
	}
	n, err := open(o, id, store)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return n, nil
}

func openStore(o Options, id *Identity) (*kv.Store, error) {
	path := filepath.Join(o.Dir, storeFile)
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && !id.Alone && len(id.Peers) == 0 {
		return nil, fmt.Errorf("%s is missing: %w", path, ErrRejoin)
	}
	store, err := kv.Open(path)
	var damaged *kv.DamagedError
	if errors.As(err, &damaged) {
		if !id.Alone {
			return nil, fmt.Errorf("%w: %w", err, ErrRejoin)
		}
		o.Log.Warn("the state of Raft is made anew", "err", err)
		store, err = kv.Open(path)
	}
	if err != nil {
		return nil, err
	}
	if id.Alone && !store.Clean() && id.Boot != bootID() {
		// Nothing of it was synced, and the machine stopped.
		if err := errors.Join(store.Abandon(), os.Remove(path)); err != nil {
			return nil, err
		}
		return kv.Open(path)
	}
	return store, nil
}

func open(o Options, id *Identity, store *kv.Store) (*Node, error) {
	d := boltDisk{store}
	im, err := d.load()
	if err != nil {
		return nil, err
	}
	if id.Alone && im.hard == nil {
		if im, err = foundImage(o.known, d, id); err != nil {
			return nil, err
		}
	}
	if id.Alone {
		if id.Boot = bootID(); id.Boot != "" {
			if err := id.write(o.Dir); err != nil {
				return nil, err
			}
		}
	} else if len(id.Peers) > 0 && im.hard != nil { // it has heard from its group: its store may not be lost any more
		id.Peers = nil
		if err := id.write(o.Dir); err != nil {
			return nil, err
		}
	}
	incarnation, err := store.IncrementRevision("incarnation")
	if err != nil {
		return nil, err
	}
	n := newNode(o, id, store)
	n.core, err = newCore(coreConfig{
		id: id.ID, incarnation: uint64(incarnation), witness: id.Witness, known: o.known, timing: o.timing,
		rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), wall: func() int64 { return time.Now().UnixNano() },
		logger: raftLogger{o.Log},
	}, im)
	if err == nil && id.Alone {
		n.core.st.RaiseToken(firstToken())
	}
	return n, err
}

// firstToken is where fencing tokens begin, 65,536 to the millisecond: so those
// of a group that is made again, and of a node that is alone and did not write
// its newest, are above all before.
func firstToken() uint64 { return uint64(time.Now().UnixMilli()) << 16 }

// foundImage is what the first node of a group has stored before it did
// anything.
func foundImage(known uint16, d disk, id *Identity) (*image, error) {
	self := state.Member{ID: id.ID, Name: id.Name, Address: id.Address, Role: state.Voter, Supports: known}
	st := state.Found(known, self, firstToken())
	w := &write{
		hard: &pb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(1))},
		conf: &pb.ConfState{Voters: []uint64{uint64(id.ID)}}, rows: st.All(), before: entryID{1, 1}, reset: true, sync: true,
	}
	if err := d.save(w); err != nil {
		return nil, err
	}
	return d.load()
}

// sinceBoot is the machine's clock that nobody sets, and that goes on while the
// machine sleeps.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("raftnode: CLOCK_BOOTTIME: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(t.Nano())
}
