package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"nexusfs/raftnode/kv"
	"nexusfs/raftnode/state"
)

// disk keeps a member's log and state. Its second implementation is the
// simulation's, which loses what was not synced.
type disk interface {
	// save makes one transaction of w; with w.sync it returns when that survives
	// a loss of power.
	save(w *write) error
	// load reads everything back; an image without a HardState is that of a new
	// member.
	load() (*image, error)
}

// write is what one transaction stores.
type write struct {
	entries []*pb.Entry   // what was there from the first one's index on goes
	hard    *pb.HardState // nil: unchanged
	conf    *pb.ConfState // nil: unchanged
	rows    []state.Row   // of the applied state; the applied index is in one of them
	before  entryID       // entries up to here go; zero: none
	reset   bool          // a snapshot: rows are the whole state, the log begins behind before
	heads   []state.Head  // for the witness's log
	sync    bool
}

// image is what a member had stored.
type image struct {
	hard    *pb.HardState
	conf    *pb.ConfState
	rows    []state.Row
	before  entryID
	entries []*pb.Entry
}

// Keys of bucket raft_state besides those of the store itself; rows of the
// state have the prefix rowPrefix, in whichever bucket they are.
var (
	keyHard   = []byte("hard")
	keyConf   = []byte("conf")
	keyBefore = []byte("before")
)

const rowPrefix = "sm/"

// boltDisk is the disk of a daemon.
type boltDisk struct{ store *kv.Store }

func bucketOf(r state.Row) kv.Bucket {
	switch r.Place() {
	case state.PlaceRevisions:
		return kv.Revisions
	case state.PlaceLocks:
		return kv.Locks
	}
	return kv.State
}

func indexKey(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }

func (d boltDisk) save(w *write) error {
	// gofail: var raftBeforeSave struct{}
	err := d.store.Update(w.sync, func(t *kv.Tx) error {
		if w.reset {
			if err := clearState(t); err != nil {
				return err
			}
		}
		if err := saveLog(t, w); err != nil {
			return err
		}
		for _, r := range w.rows {
			op := kv.Op{Bucket: bucketOf(r), Key: append([]byte(rowPrefix), r.Key...), Value: r.Value}
			if err := t.Apply([]kv.Op{op}); err != nil {
				return err
			}
		}
		return saveHeads(t, w.heads)
	})
	// gofail: var raftAfterSave struct{}
	return err
}

// clearState removes the log and the applied state, before a snapshot's takes
// their place in the same transaction.
func clearState(t *kv.Tx) error {
	for _, b := range []kv.Bucket{kv.State, kv.Revisions, kv.Locks} {
		if err := t.DeleteRange(b, []byte(rowPrefix), kv.PrefixEnd([]byte(rowPrefix))); err != nil {
			return err
		}
	}
	return t.DeleteRange(kv.Entries, nil, nil)
}

func saveLog(t *kv.Tx, w *write) error {
	if len(w.entries) > 0 {
		if err := t.DeleteRange(kv.Entries, indexKey(w.entries[0].GetIndex()), nil); err != nil {
			return err
		}
	}
	for _, e := range w.entries {
		b, err := proto.Marshal(e)
		if err != nil {
			return err
		}
		if err := t.Set(kv.Entries, indexKey(e.GetIndex()), b); err != nil {
			return err
		}
	}
	if w.before != (entryID{}) {
		if err := t.DeleteRange(kv.Entries, nil, indexKey(w.before.index+1)); err != nil {
			return err
		}
		b := binary.BigEndian.AppendUint64(indexKey(w.before.index), w.before.term)
		if err := t.Set(kv.State, keyBefore, b); err != nil {
			return err
		}
	}
	if w.hard != nil {
		if err := setProto(t, keyHard, w.hard); err != nil {
			return err
		}
	}
	if w.conf != nil {
		return setProto(t, keyConf, w.conf)
	}
	return nil
}

func setProto(t *kv.Tx, key []byte, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return t.Set(kv.State, key, b)
}

// headsMost is how many chain heads a witness keeps for each zone: the newest.
const headsMost = 1 << 16

func headKey(zone string, rev uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(zone), 0), rev)
}

func saveHeads(t *kv.Tx, heads []state.Head) error {
	for _, h := range heads {
		if err := t.Set(kv.Witness, headKey(h.Zone, uint64(h.Rev)), state.EncodeHead(h)); err != nil {
			return err
		}
		if h.Rev > headsMost {
			if err := t.DeleteRange(kv.Witness, headKey(h.Zone, 0), headKey(h.Zone, uint64(h.Rev-headsMost))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d boltDisk) load() (*image, error) {
	im := &image{conf: &pb.ConfState{}}
	err := d.store.View(func(t *kv.Tx) error {
		hard := new(pb.HardState)
		switch found, err := getProto(t, keyHard, hard); {
		case err != nil:
			return err
		case found:
			im.hard = hard
		}
		if _, err := getProto(t, keyConf, im.conf); err != nil {
			return err
		}
		b, err := t.Get(kv.State, keyBefore)
		switch {
		case errors.Is(err, kv.ErrNotFound):
		case err != nil:
			return err
		case len(b) != 16:
			return kv.ErrDamaged
		default:
			im.before = entryID{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
		}
		if err := im.loadRows(t); err != nil {
			return err
		}
		return im.loadEntries(t)
	})
	if err != nil {
		return nil, fmt.Errorf("read the state of Raft: %w", err)
	}
	return im, nil
}

func getProto(t *kv.Tx, key []byte, m proto.Message) (bool, error) {
	b, err := t.Get(kv.State, key)
	if errors.Is(err, kv.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, proto.Unmarshal(b, m)
}

func (im *image) loadRows(t *kv.Tx) error {
	for _, b := range []kv.Bucket{kv.State, kv.Revisions, kv.Locks} {
		err := t.Scan(b, []byte(rowPrefix), kv.PrefixEnd([]byte(rowPrefix)), func(k, v []byte) error {
			im.rows = append(im.rows, state.Row{Key: append([]byte(nil), k[len(rowPrefix):]...), Value: v})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// loadEntries reads the log, which must be without holes.
func (im *image) loadEntries(t *kv.Tx) error {
	next := im.before.index + 1
	return t.Scan(kv.Entries, nil, nil, func(k, v []byte) error {
		e := new(pb.Entry)
		if err := proto.Unmarshal(v, e); err != nil {
			return err
		}
		if e.GetIndex() != next || len(k) != 8 || binary.BigEndian.Uint64(k) != next {
			return fmt.Errorf("entry %d where %d belongs: %w", e.GetIndex(), next, kv.ErrDamaged)
		}
		im.entries = append(im.entries, e)
		next++
		return nil
	})
}

// heads reads a zone's chain heads in order.
func (d boltDisk) heads(zone string) (out []state.Head, err error) {
	err = d.store.ScanPrefix(kv.Witness, append([]byte(zone), 0), func(_, v []byte) error {
		h, err := state.DecodeHead(v)
		out = append(out, h)
		return err
	})
	return out, err
}
