package meta

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// fakeStore is a zone in memory that keeps every past state of extents whole.
type fakeStore struct {
	mu       sync.Mutex
	rev      Rev
	inodes   map[Ino]Attr
	names    map[nameKey]Ino
	extents  map[Ino][]Extent
	past     map[Ino]map[Rev][]Extent // after each content operation
	images   map[Ino]map[Rev]Attr
	blobs    map[BlobID]*fakeBlob
	versions map[Ino][]Version
	records  []Record
	batches  [][]*Change
	barrier  Rev
	reserved Rev
	ino      Ino

	prev     *PrevSession
	began    []SessionInfo
	ended    bool
	rewound  Rev
	orphaned []Ino
	dropped  []Ino

	commitErr atomic.Pointer[Error] // every Commit fails with it
	epoch     int64
	lossy     atomic.Bool // everything is refused by KindLost until a session begins
	onSync    func() error
	syncs     atomic.Int64
	reads     atomic.Int64 // of extents
}

type fakeBlob struct {
	Blob
	data      []byte
	first     Rev
	condemned int64
	claimed   bool
}

func newFakeStore() *fakeStore {
	s := &fakeStore{
		inodes: map[Ino]Attr{}, names: map[nameKey]Ino{}, extents: map[Ino][]Extent{},
		past: map[Ino]map[Rev][]Extent{}, images: map[Ino]map[Rev]Attr{}, blobs: map[BlobID]*fakeBlob{},
		versions: map[Ino][]Version{}, ino: 1,
	}
	s.inodes[RootIno] = Attr{Ino: RootIno, Mode: ModeDir | 0o755, Nlink: 2, Parent: RootIno, Rev: 1}
	s.rev = 1
	return s
}

func (s *fakeStore) Inode(_ context.Context, ino Ino) (Attr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.inodes[ino]
	if !ok {
		return Attr{}, E("inode", ino, "", KindNotExist, nil)
	}
	return a, nil
}

func (s *fakeStore) Lookup(_ context.Context, parent Ino, name string) (Attr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ino, ok := s.names[nameKey{parent, name}]
	if !ok {
		return Attr{}, E("lookup", parent, name, KindNotExist, nil)
	}
	return s.inodes[ino], nil
}

func (s *fakeStore) Target(context.Context, Ino) (string, error) { return "", nil }

func (s *fakeStore) List(_ context.Context, dir Ino, after uint64, limit int, _ bool, buf []Entry) ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, ino := range s.names {
		if c := NameCookie(k.name); k.parent == dir && c > after {
			buf = append(buf, Entry{Name: k.name, Cookie: c, Attr: s.inodes[ino]})
		}
	}
	sort.Slice(buf, func(i, j int) bool { return buf[i].Cookie < buf[j].Cookie })
	return buf, nil
}

func (s *fakeStore) Xattr(_ context.Context, ino Ino, name string) ([]byte, error) {
	return nil, E("getxattr", ino, name, KindNoData, nil)
}
func (s *fakeStore) Xattrs(context.Context, Ino) ([]string, error) { return nil, nil }

func (s *fakeStore) Extents(_ context.Context, ino Ino, off, end int64, limit int, inline bool) ([]Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads.Add(1)
	return s.pick(s.extents[ino], off, end, limit, inline), nil
}

// pick returns extents with their blobs' present places; s.mu is held.
func (s *fakeStore) pick(list []Extent, off, end int64, limit int, inline bool) []Extent {
	var out []Extent
	for _, e := range overlapping(list, off, end) {
		b := s.blobs[e.Blob.ID]
		if b != nil {
			e.Blob = b.Blob
			if inline && b.Place == PlaceInline {
				e.Data = bytes.Clone(b.data)
			}
		}
		if out = append(out, e); len(out) == limit {
			break
		}
	}
	return out
}

func (s *fakeStore) Blob(_ context.Context, id BlobID) (Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[id]
	if b == nil || b.condemned != 0 {
		return Blob{}, E("blob", 0, "", KindNotExist, nil)
	}
	return b.Blob, nil
}

func (s *fakeStore) Commit(_ context.Context, b *Batch) ([]Outcome, error) {
	if e := s.commitErr.Load(); e != nil {
		return nil, e
	}
	if s.lossy.Load() {
		return nil, E("commit", 0, "", KindLost, nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.barrier = b.Barrier
	s.batches = append(s.batches, b.Changes)
	out := make([]Outcome, len(b.Changes))
	for i, ch := range b.Changes {
		if err := s.guard(ch); err != nil {
			out[i].Err = err
			continue
		}
		s.rev++
		out[i].Rev = s.rev
		s.write(ch)
		if ch.Content != nil {
			out[i].Bytes = s.inodes[ch.Content.Ino].Bytes
		}
	}
	return out, nil
}

func (s *fakeStore) guard(ch *Change) error {
	conflict := E("commit", ch.Record.Ino, "", KindConflict, nil)
	for _, c := range ch.Inodes {
		old, ok := s.inodes[c.After.Ino]
		if c.Before == nil && ok || c.Before != nil && (!ok || !old.IsDir() && old.Rev != c.Before.Rev) {
			return conflict
		}
		if old.IsDir() && c.After.Nlink == 0 && old.Entries != 0 {
			return conflict
		}
	}
	for _, n := range ch.Names {
		if s.names[nameKey{n.Parent, n.Name}] != n.Before {
			return conflict
		}
	}
	if ch.Content == nil {
		return nil
	}
	brought := map[BlobID]bool{}
	for _, b := range ch.Content.Blobs {
		if old := s.blobs[b.ID]; old != nil && old.claimed {
			return conflict
		}
		brought[b.ID] = true
	}
	for _, r := range ch.Content.Ranges {
		for _, e := range r.Extents {
			if b := s.blobs[e.Blob.ID]; !brought[e.Blob.ID] && (b == nil || b.condemned != 0) {
				return conflict
			}
		}
	}
	return nil
}

func (s *fakeStore) write(ch *Change) {
	for _, c := range ch.Inodes {
		a := c.After
		a.Rev = s.rev
		if a.ContentRev == RevPending {
			a.ContentRev = s.rev
		}
		a.Bytes = s.inodes[a.Ino].Bytes
		s.inodes[a.Ino] = a
	}
	for _, d := range ch.Dirs {
		a := s.inodes[d.Ino]
		s.inodes[d.Ino] = *d.applied(&a, s.rev)
	}
	for _, n := range ch.Names {
		if n.After == 0 {
			delete(s.names, nameKey{n.Parent, n.Name})
		} else {
			s.names[nameKey{n.Parent, n.Name}] = n.After
		}
	}
	if ch.Content != nil {
		s.content(ch.Content)
	}
	if v := ch.Version; v != nil {
		list := s.versions[v.Ino]
		if v.New {
			list = append(list, Version{N: v.N, First: s.rev})
		}
		last := &list[len(list)-1]
		if last.N != v.N {
			panic(fmt.Sprintf("version %d moved, newest is %d", v.N, last.N))
		}
		last.Rev, last.Size, last.Time = s.rev, v.Size, ch.Record.Time
		s.versions[v.Ino] = list
	}
	for _, c := range ch.Inodes {
		if s.images[c.After.Ino] == nil {
			s.images[c.After.Ino] = map[Rev]Attr{}
		}
		s.images[c.After.Ino][s.rev] = s.inodes[c.After.Ino]
	}
	r := ch.Record
	r.Rev = s.rev
	s.records = append(s.records, r)
}

func (s *fakeStore) content(c *ContentChange) {
	for _, b := range c.Blobs {
		old := s.blobs[b.ID]
		if old == nil || old.condemned != 0 {
			if b.Place == PlaceInline && int64(len(b.Data)) != b.Size {
				panic("inline blob without its bytes")
			}
			s.blobs[b.ID] = &fakeBlob{Blob: b.Blob, data: bytes.Clone(b.Data), first: s.rev}
		}
	}
	list := s.extents[c.Ino]
	if c.Fresh && len(list) > 0 {
		panic("fresh content over extents")
	}
	last := int64(-1)
	for _, r := range c.Ranges {
		if r.Off < last {
			panic("ranges out of order")
		}
		last = r.Off + r.Len
		var next []Extent
		for _, e := range list {
			next = append(next, shiftExtents([]Extent{e}, 0, r.Off, 0)...)
		}
		at := r.Off
		for _, e := range r.Extents {
			if e.Off < at || e.Off+e.Len > last || e.Len <= 0 || e.BlobOff+e.Len > e.Blob.Size {
				panic(fmt.Sprintf("bad extent %+v in %+v", e, r))
			}
			at = e.Off + e.Len
			next = append(next, e)
		}
		for _, e := range list {
			next = append(next, shiftExtents([]Extent{e}, last, SizeMax-last, 0)...)
		}
		list = next
	}
	s.extents[c.Ino] = list
	a := s.inodes[c.Ino]
	a.Bytes = 0
	for _, e := range list {
		a.Bytes += e.Len
	}
	s.inodes[c.Ino] = a
	if s.past[c.Ino] == nil {
		s.past[c.Ino] = map[Rev][]Extent{}
	}
	s.past[c.Ino][s.rev] = slices.Clone(list)
}

func (s *fakeStore) Sync(context.Context) error {
	s.syncs.Add(1)
	if s.onSync != nil {
		return s.onSync()
	}
	return nil
}

func (s *fakeStore) Head(context.Context) (Head, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Head{Rev: s.rev, Barrier: s.barrier, Reserved: s.reserved, Epoch: s.epoch}, nil
}

func (s *fakeStore) Usage(context.Context) (Usage, error) { return Usage{}, nil }

func (s *fakeStore) Begin(_ context.Context, i SessionInfo) (int64, int64, *PrevSession, error) {
	s.began = append(s.began, i)
	if s.lossy.Swap(false) {
		s.mu.Lock()
		defer s.mu.Unlock()
		first := s.rev + 1
		s.epoch++
		s.rev = max(s.rev, i.Known) + 1000
		s.records = append(s.records, Record{Rev: s.rev, Kind: OpRecovery, After: fmt.Sprintf(`{"first":%d,"cause":"test"}`, first)})
	}
	return int64(len(s.began)), 1, s.prev, nil
}
func (s *fakeStore) End(context.Context, int64) error { s.ended = true; return nil }

func (s *fakeStore) Recovered(context.Context, int64, string) error { return nil }
func (s *fakeStore) Inos(_ context.Context, n int) (Ino, error) {
	first := s.ino + 1
	s.ino += Ino(n)
	return first, nil
}
func (s *fakeStore) Reserve(_ context.Context, rev Rev) error { s.reserved = rev; return nil }

func (s *fakeStore) Records(_ context.Context, f RecordFilter, fn func(*Record) bool) error {
	s.mu.Lock()
	list := slices.Clone(s.records)
	s.mu.Unlock()
	if f.Reverse {
		slices.Reverse(list)
	}
	for i := range list {
		if r := &list[i]; r.Rev > f.Since && (f.Until == 0 || r.Rev <= f.Until) && !fn(r) {
			break
		}
	}
	return nil
}

func (s *fakeStore) Versions(_ context.Context, ino Ino) ([]Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.versions[ino]), nil
}

func (s *fakeStore) ExtentsAt(_ context.Context, ino Ino, at Rev, off, end int64, limit int, inline bool) ([]Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Extent
	newest := Rev(0)
	for r, l := range s.past[ino] {
		if r <= at && r > newest {
			newest, list = r, l
		}
	}
	return s.pick(list, off, end, limit, inline), nil
}

func (s *fakeStore) InodeAt(_ context.Context, ino Ino, at Rev) (Attr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var a Attr
	newest := Rev(0)
	for r, i := range s.images[ino] {
		if r <= at && r > newest {
			newest, a = r, i
		}
	}
	if newest == 0 {
		return Attr{}, E("inode", ino, "", KindNotExist, nil)
	}
	return a, nil
}
func (s *fakeStore) Deleted(context.Context, Ino, int) ([]DeletedName, error) { return nil, nil }
func (s *fakeStore) LateAnswer(context.Context, Rev, string) error            { return nil }
func (s *fakeStore) Query(context.Context, string, []any, func([]string) error, func([]any) error) error {
	return nil
}
func (s *fakeStore) PathOf(context.Context, Ino) (string, error) { return "/", nil }

func (s *fakeStore) Rewind(_ context.Context, first Rev, _ int64) (Rev, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rewound = first
	s.rev++
	return s.rev, nil
}

func (s *fakeStore) BlobsSince(_ context.Context, rev Rev, fn func(Blob, Rev) error) error {
	s.mu.Lock()
	var list []*fakeBlob
	for _, b := range s.blobs {
		if b.first > rev {
			list = append(list, b)
		}
	}
	s.mu.Unlock()
	for _, b := range list {
		if err := fn(b.Blob, b.first); err != nil {
			return err
		}
	}
	return nil
}

// Prune drops every past state when the policy keeps none.
func (s *fakeStore) Prune(_ context.Context, p Retention, _ int) (int, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.Off {
		return 0, true, nil
	}
	n := 0
	for ino, m := range s.past {
		for r := range m {
			if r <= p.Barrier && r != s.inodes[ino].ContentRev {
				delete(m, r)
				n++
			}
		}
	}
	return n, true, nil
}

func (s *fakeStore) PruneRecent(ctx context.Context, p Retention, limit int) (int, bool, error) {
	return s.Prune(ctx, p, limit)
}

func (s *fakeStore) used() map[BlobID]bool {
	used := map[BlobID]bool{}
	for _, l := range s.extents {
		for _, e := range l {
			used[e.Blob.ID] = true
		}
	}
	for _, m := range s.past {
		for _, l := range m {
			for _, e := range l {
				used[e.Blob.ID] = true
			}
		}
	}
	return used
}

func (s *fakeStore) Condemn(_ context.Context, now int64, _ int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used, n := s.used(), 0
	for id, b := range s.blobs {
		if !used[id] && b.condemned == 0 {
			b.condemned = now
			n++
		}
	}
	return n, nil
}

func (s *fakeStore) Condemned(_ context.Context, before int64, limit int) ([]Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Blob
	for _, b := range s.blobs {
		if b.condemned != 0 && b.condemned < before && len(out) < limit {
			out = append(out, b.Blob)
		}
	}
	return out, nil
}

func (s *fakeStore) Claim(_ context.Context, ids []BlobID) ([]Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Blob
	for _, id := range ids {
		if b := s.blobs[id]; b != nil && b.condemned != 0 {
			b.claimed = true
			out = append(out, b.Blob)
		}
	}
	return out, nil
}

func (s *fakeStore) Forget(_ context.Context, ids []BlobID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if b := s.blobs[id]; b != nil && b.claimed {
			delete(s.blobs, id)
		}
	}
	return nil
}

func (s *fakeStore) Move(_ context.Context, from, to Blob) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[from.ID]
	if b == nil || !samePlace(b.Blob, from) {
		return E("move", 0, "", KindConflict, nil)
	}
	b.Blob = to
	return nil
}

func (s *fakeStore) Placed(_ context.Context, b Blob) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	row := s.blobs[b.ID]
	return row != nil && samePlace(row.Blob, b), nil
}

func (s *fakeStore) Orphans(_ context.Context, p Retention, _ int) ([]Ino, error) {
	var out []Ino
	for _, ino := range s.orphaned {
		if !slices.Contains(p.Open, ino) && !slices.Contains(s.dropped, ino) {
			out = append(out, ino)
		}
	}
	return out, nil
}

func (s *fakeStore) DropInode(_ context.Context, ino Ino) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped = append(s.dropped, ino)
	delete(s.inodes, ino)
	delete(s.extents, ino)
	delete(s.past, ino)
	return nil
}

func (s *fakeStore) Fragmented(_ context.Context, pieces, limit int) ([]Ino, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Ino
	for ino, l := range s.extents {
		if int64(len(l)) > int64(pieces)*max(s.inodes[ino].Size>>20, 1) && len(out) < limit {
			out = append(out, ino)
		}
	}
	return out, nil
}
func (s *fakeStore) Verify(context.Context, func(Finding)) error { return nil }
func (s *fakeStore) VerifyChain(context.Context, Rev, func(Finding)) (int64, error) {
	return 0, nil
}
func (s *fakeStore) Checkpoint(context.Context, bool) error    { return nil }
func (s *fakeStore) Stats(context.Context) (StoreStats, error) { return StoreStats{}, nil }
func (s *fakeStore) Close() error                              { return nil }
