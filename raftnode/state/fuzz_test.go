package state

import (
	"bytes"
	"testing"

	"nexusfs/meta"
)

// FuzzDecodeEntry: bytes from the network are refused, or read and written
// alike; they never make apply panic.
func FuzzDecodeEntry(f *testing.F) {
	full := span(11, 12)
	full.Ops[0].Attrs = []meta.Attr{{Ino: 5, Mode: 0o100644, Size: 77, Creator: -1}}
	full.Ops[0].Change.Inodes = []meta.InodeChange{{After: full.Ops[0].Attrs[0]}}
	full.Ops[0].Change.Names = []meta.NameChange{{Parent: 1, Name: "n", After: 5}}
	full.Ops[0].Change.Content = &meta.ContentChange{Ino: 5, Ranges: []meta.RangeChange{{Off: 1, Len: 2}}}
	for _, cmd := range []Command{full, &Lock{FileKey: FileKey{"z", 5}, FileLock: posix(1, 1, 0, 9), Wait: true}, &Acquire{NameKey: NameKey{"z", "n"}, Limit: 1}, &SetMember{Member{ID: 4}}, &Fenced{SessionKey: SessionKey{"z", 1}, Rev: 20}, &Fenced{SessionKey: SessionKey{"y", 1}, Rev: 20}} {
		f.Add(encode(nil, &Entry{Version: 1, Client: 1, Incarnation: 1, Seq: 99, Commands: []Command{cmd}}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b, Version)
		if err != nil {
			return
		}
		again, err := DecodeEntry(encode(nil, e), Version)
		if err != nil || !bytes.Equal(encode(nil, e), encode(nil, again)) {
			t.Fatalf("written and read again: %v", err)
		}
		g := newGroup(t)
		if _, err := g.Apply(100, b); err != nil {
			t.Fatal(err)
		}
		if s, err := FromSnapshot(Version, g.Snapshot()); err != nil || !bytes.Equal(s.Snapshot(), g.Snapshot()) {
			t.Fatalf("snapshot: %v", err)
		}
	})
}

// FuzzFromSnapshot: damaged snapshots are refused.
func FuzzFromSnapshot(f *testing.F) {
	g := newGroup(f)
	g.do(1, span(12, 14))
	g.do(1, &Lock{FileKey: FileKey{"z", 5}, FileLock: posix(1, 1, 0, 9)})
	f.Add(g.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := FromSnapshot(Version, b); err == nil {
			_ = s.Snapshot()
		}
	})
}
