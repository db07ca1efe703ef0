package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// Bounds of the log.
const (
	logKeep    = 512       // entries kept behind what was applied, for members that are a little late
	logMost    = 4 * 1024  // entries at which those before logKeep go
	logBytes   = 16 << 20  // bytes at which they go earlier
	entryCost  = 64        // bytes that an entry takes besides its data
	messageMax = 256 << 10 // bytes of entries in one message
)

// raftLog is the uncompacted log, all of it in memory, and what Raft asks of a
// storage. What of it is on disk is written by core.save.
type raftLog struct {
	hard   *pb.HardState
	conf   *pb.ConfState // as of the applied index
	before entryID       // the newest entry that was compacted away
	ents   []*pb.Entry   // those behind it
	bytes  int64
	saved  uint64                       // everything up to here is written
	keep   uint64                       // logKeep; less in tests
	most   uint64                       // logMost
	snap   func() (*pb.Snapshot, error) // of the applied state
}

type entryID struct{ index, term uint64 }

func (l *raftLog) last() uint64 { return l.before.index + uint64(len(l.ents)) }

// InitialState implements raft.Storage.
func (l *raftLog) InitialState() (*pb.HardState, *pb.ConfState, error) { return l.hard, l.conf, nil }

// FirstIndex implements raft.Storage.
func (l *raftLog) FirstIndex() (uint64, error) { return l.before.index + 1, nil }

// LastIndex implements raft.Storage.
func (l *raftLog) LastIndex() (uint64, error) { return l.last(), nil }

// Snapshot implements raft.Storage.
func (l *raftLog) Snapshot() (*pb.Snapshot, error) { return l.snap() }

// Term implements raft.Storage.
func (l *raftLog) Term(i uint64) (uint64, error) {
	switch {
	case i < l.before.index:
		return 0, raft.ErrCompacted
	case i == l.before.index:
		return l.before.term, nil
	case i > l.last():
		return 0, raft.ErrUnavailable
	}
	return l.ents[i-l.before.index-1].GetTerm(), nil
}

// Entries implements raft.Storage.
func (l *raftLog) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	switch {
	case lo <= l.before.index:
		return nil, raft.ErrCompacted
	case hi > l.last()+1:
		return nil, raft.ErrUnavailable
	}
	from := l.ents[lo-l.before.index-1 : hi-l.before.index-1]
	n, size := 0, uint64(0)
	for n < len(from) {
		if size += uint64(len(from[n].GetData()) + entryCost); n > 0 && size > maxSize {
			break
		}
		n++
	}
	return from[:n:n], nil
}

// append adds entries; a tail that conflicts with them is cut off.
func (l *raftLog) append(ents []*pb.Entry) {
	if len(ents) == 0 {
		return
	}
	first := ents[0].GetIndex()
	if first <= l.before.index || first > l.last()+1 {
		panic(fmt.Sprintf("raftnode: entry %d does not join a log of %d to %d", first, l.before.index+1, l.last()))
	}
	keep := first - l.before.index - 1
	for _, e := range l.ents[keep:] {
		l.bytes -= int64(len(e.GetData()) + entryCost)
	}
	if keep < uint64(len(l.ents)) {
		l.ents = l.ents[:keep:keep] // Raft may still read what is cut off
	}
	l.ents = append(l.ents, ents...)
	for _, e := range ents {
		l.bytes += int64(len(e.GetData()) + entryCost)
	}
	l.saved = min(l.saved, first-1)
}

// unsaved returns what is not written yet.
func (l *raftLog) unsaved() []*pb.Entry {
	from := max(l.saved, l.before.index) - l.before.index
	return l.ents[from:len(l.ents):len(l.ents)]
}

// compactTo returns up to where the log may go when everything up to applied is
// on disk as state, 0 if it is not worth it.
func (l *raftLog) compactTo(applied uint64) uint64 {
	keep := l.keep
	switch {
	case l.bytes > logBytes:
		keep /= 8
	case applied < l.before.index+l.most:
		return 0
	}
	if applied <= l.before.index+keep {
		return 0
	}
	return applied - keep
}

// compact forgets the entries up to index.
func (l *raftLog) compact(index uint64) {
	term, err := l.Term(index)
	if err != nil {
		panic(fmt.Sprintf("raftnode: compaction at %d of a log of %d to %d", index, l.before.index+1, l.last()))
	}
	gone := index - l.before.index
	for _, e := range l.ents[:gone] {
		l.bytes -= int64(len(e.GetData()) + entryCost)
	}
	l.ents = append([]*pb.Entry(nil), l.ents[gone:]...)
	l.before = entryID{index, term}
	l.saved = max(l.saved, index)
}

// reset empties the log behind a snapshot.
func (l *raftLog) reset(at entryID, conf *pb.ConfState) {
	l.before, l.ents, l.bytes, l.saved, l.conf = at, nil, 0, at.index, conf
}
