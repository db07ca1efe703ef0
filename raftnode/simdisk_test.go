package raftnode

import (
	"maps"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"nexusfs/raftnode/state"
)

// simDisk is a disk in memory. A crash keeps what was synced and, if the
// machine stopped, loses what came after the last sync.
type simDisk struct {
	synced, now simImage
	unsynced    []*write
	also        func(*write) // is told of each write
}

type simImage struct {
	hard    *pb.HardState
	conf    *pb.ConfState
	before  entryID
	entries []*pb.Entry
	rows    map[string][]byte
	heads   []state.Head
}

func newSimDisk() *simDisk {
	d := &simDisk{}
	for _, im := range []*simImage{&d.synced, &d.now} {
		im.conf, im.rows = &pb.ConfState{}, map[string][]byte{}
	}
	return d
}

func (im *simImage) apply(w *write) {
	if w.reset {
		im.entries, im.rows = nil, map[string][]byte{}
	}
	if len(w.entries) > 0 {
		first := w.entries[0].GetIndex()
		im.entries = slices.DeleteFunc(slices.Clone(im.entries), func(e *pb.Entry) bool { return e.GetIndex() >= first })
		im.entries = append(im.entries, w.entries...)
	}
	if w.before != (entryID{}) {
		im.before = w.before
		im.entries = slices.DeleteFunc(slices.Clone(im.entries), func(e *pb.Entry) bool { return e.GetIndex() <= w.before.index })
	}
	if w.hard != nil {
		im.hard = w.hard
	}
	if w.conf != nil {
		im.conf = w.conf
	}
	for _, r := range w.rows {
		if r.Value == nil {
			delete(im.rows, string(r.Key))
		} else {
			im.rows[string(r.Key)] = r.Value
		}
	}
	im.heads = append(im.heads, w.heads...)
}

func (d *simDisk) save(w *write) error {
	if d.also != nil {
		d.also(w)
	}
	d.now.apply(w)
	d.unsynced = append(d.unsynced, w)
	if w.sync {
		for _, u := range d.unsynced {
			d.synced.apply(u)
		}
		d.unsynced = nil
	}
	return nil
}

func (d *simDisk) load() (*image, error) {
	im := &image{hard: d.now.hard, conf: d.now.conf, before: d.now.before, entries: slices.Clone(d.now.entries)}
	for _, k := range slices.Sorted(maps.Keys(d.now.rows)) {
		im.rows = append(im.rows, state.Row{Key: []byte(k), Value: d.now.rows[k]})
	}
	return im, nil
}

// powerLoss loses a random suffix of what was not synced.
func (d *simDisk) powerLoss(keep int) {
	for _, w := range d.unsynced[:min(keep, len(d.unsynced))] {
		d.synced.apply(w)
	}
	d.unsynced = nil
	d.now = d.synced
	d.now.rows = maps.Clone(d.synced.rows)
}
