package postgres

import (
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
)

// The row types of a batch, in the order of the fields of type batch.
const (
	rowMade = iota
	rowFile
	rowDir
	rowDelta
	rowNamed
	rowEnded
	rowHint
	rowXattr
	rowCut
	rowExtent
	rowBlob
	rowVersion
	rowNameless
	rowUsage
	rowActor
	rowRecord
	rowSets // so many are in a batch
	rowWave = rowSets
)

// rowTypeNames are their names in the schema.
var rowTypeNames = [rowSets + 1]string{"made_row", "file_row", "dir_row", "delta_row", "name_row", "name_row", "hint_row", "xattr_row",
	"cut_row", "extent_row", "blob_row", "version_row", "nameless_row", "usage_row", "actor_row", "record_row", "wave"}

// historyUID stands for history in rows of usage.
const historyUID = -1

// encoder turns a batch into the arguments of commit_batch. It keeps its
// buffers from batch to batch.
type encoder struct {
	s     *Store
	sets  [rowSets + 1]rowSet
	out   []meta.Outcome
	index []int   // of the batch's changes: which were encoded
	made  []int64 // per encoded change: bytes of a new inode
	fresh []meta.Actor
	ids   []int64 // numbers of the actors that get a row with this batch (fresh)

	digests []byte
	wave    wave
}

// wave gathers what a run of changes has once.
type wave struct {
	keys   waveKeys
	lo     int64
	begin  [rowSets]uint32 // rows of each kind before it
	deltas map[meta.Ino]dirSum
	dirs   []meta.Ino // keys of deltas in order
	usage  map[int64]usageDelta
	uids   []int64 // keys of usage in order
	reused map[meta.BlobID]bool
	moved  int64
}

// dirSum is what the names of a wave do to a directory.
type dirSum struct {
	meta.DirDelta
	last int64 // change that touched it last
}

// usageDelta is what a wave changes in one user's counters.
type usageDelta struct{ inodes, bytes int64 }

// encode fills the encoder; with careful each change is a wave of its own.
// Changes that contradict themselves get their outcome here and are left out.
func (e *encoder) encode(b *meta.Batch, careful bool) error {
	for i := range e.sets {
		e.sets[i].reset()
	}
	e.out = make([]meta.Outcome, len(b.Changes))
	e.index, e.made, e.digests, e.fresh, e.ids = e.index[:0], e.made[:0], e.digests[:0], e.fresh[:0], e.ids[:0]
	e.beginWave(0)
	for i, c := range b.Changes {
		if !consistent(c) {
			e.out[i].Err = meta.E("commit", c.Record.Ino, c.Record.Name, meta.KindInvalid, nil)
			continue
		}
		n := int64(len(e.index))
		if len(b.Changes) > 1 && (!e.wave.keys.fits(c) || careful && n > 0) {
			e.endWave(n - 1)
			e.beginWave(n)
		}
		if err := e.change(n, c, b.Session); err != nil {
			return err
		}
		e.index = append(e.index, i)
	}
	if len(e.index) > 0 {
		e.endWave(int64(len(e.index)) - 1)
	}
	return nil
}

// beginWave begins a wave with change lo, whose keys may be there already.
func (e *encoder) beginWave(lo int64) {
	w := &e.wave
	if lo == 0 {
		w.keys.reset()
	}
	if w.deltas == nil {
		w.deltas, w.usage, w.reused = make(map[meta.Ino]dirSum), make(map[int64]usageDelta), make(map[meta.BlobID]bool)
	}
	clear(w.deltas)
	clear(w.usage)
	clear(w.reused)
	w.lo, w.moved, w.dirs, w.uids = lo, 0, w.dirs[:0], w.uids[:0]
	for i := range w.begin {
		w.begin[i] = e.sets[i].n
	}
}

// endWave writes the rows that the wave has once, and the wave itself.
func (e *encoder) endWave(hi int64) {
	w := &e.wave
	for _, ino := range w.dirs {
		d, r := w.deltas[ino], &e.sets[rowDelta]
		r.row(5)
		r.ints(d.last, e.s.k(int64(ino)), d.Entries, d.Nlink, d.Time)
		r.end()
	}
	for _, uid := range w.uids {
		u, r := w.usage[uid], &e.sets[rowUsage]
		r.row(4)
		r.ints(hi, uid, u.inodes, u.bytes)
		r.end()
	}
	rows := func(kind int) int64 { return int64(e.sets[kind].n - w.begin[kind]) }
	r := &e.sets[rowWave]
	r.row(9)
	r.ints(w.lo, hi, rows(rowFile), rows(rowDir), rows(rowDelta), rows(rowEnded), rows(rowExtent), int64(len(w.reused)), w.moved)
	r.end()
}

// consistent looks at what of a change can be judged without the store.
func consistent(c *meta.Change) bool {
	for _, text := range [...]string{c.Record.Before, c.Record.After} { // JSON; the server's text holds nothing else
		if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
			return false
		}
	}
	cc := c.Content
	if cc == nil {
		return true
	}
	if !slices.ContainsFunc(c.Inodes, func(ic meta.InodeChange) bool { return ic.After.Ino == cc.Ino }) {
		return false
	}
	for i := range cc.Blobs {
		if b := &cc.Blobs[i]; b.Place == meta.PlaceInline && int64(len(b.Data)) != b.Size {
			return false
		}
	}
	for i := range cc.Ranges {
		r := &cc.Ranges[i]
		for j := range r.Extents {
			if x := &r.Extents[j]; x.Off < r.Off || x.Len <= 0 || x.Off > rangeEnd(r)-x.Len || x.BlobOff < 0 || x.BlobOff > math.MaxInt64-x.Len {
				return false
			}
		}
	}
	return true
}

// rangeEnd is where a range ends.
func rangeEnd(r *meta.RangeChange) int64 {
	if r.Len <= math.MaxInt64-r.Off {
		return r.Off + r.Len
	}
	return math.MaxInt64
}

// change encodes the n-th change.
func (e *encoder) change(n int64, c *meta.Change, session int64) error {
	actor, err := e.actor(&c.Record.Actor)
	if err != nil {
		return err
	}
	e.version(n, c, actor)
	grow := e.content(n, c.Content)
	e.made = append(e.made, 0)
	for i := range c.Inodes {
		ic := &c.Inodes[i]
		mine := c.Content != nil && c.Content.Ino == ic.After.Ino
		g := int64(0)
		if mine {
			g = grow
		}
		switch {
		case ic.Before == nil:
			e.makeInode(n, c, ic, g)
			if mine {
				e.made[n] = g
			}
		case ic.After.IsDir():
			e.setDir(n, c, ic)
		default:
			e.setFile(n, c, ic, g, mine)
		}
		e.nameless(n, ic)
	}
	e.names(n, c)
	for _, d := range c.Dirs {
		e.delta(n, d)
	}
	for i := range c.Xattrs {
		x, r := &c.Xattrs[i], &e.sets[rowXattr]
		r.row(4)
		r.ints(n, e.s.k(int64(x.Ino)))
		r.bytes([]byte(x.Name))
		r.bytes(x.Value)
		r.end()
	}
	e.record(n, c, actor, session)
	return nil
}

// nameFor finds the name that the change gives to an inode.
func nameFor(c *meta.Change, ino meta.Ino) *meta.NameChange {
	for i := range c.Names {
		if c.Names[i].After == ino {
			return &c.Names[i]
		}
	}
	return nil
}

func (e *encoder) makeInode(n int64, c *meta.Change, ic *meta.InodeChange, bytes int64) {
	a, k := &ic.After, e.s.k
	parent, cookie := k(int64(a.Parent)), int64(0)
	if name := nameFor(c, a.Ino); name != nil {
		parent, cookie = k(int64(name.Parent)), int64(meta.NameCookie(name.Name))
	}
	r := &e.sets[rowMade]
	r.row(21)
	r.ints(n, k(int64(a.Ino)), int64(a.Mode), int64(a.UID), int64(a.GID), int64(a.Nlink), int64(a.Rdev), int64(a.Flags), a.Size, bytes,
		a.Entries, a.Atime, a.Mtime, a.Ctime, a.Btime, parent, cookie, a.Creator, e.contentRev(a, a.IsDir()), a.Version)
	r.name(ic.Target)
	r.end()
	e.book(a, 1, bytes)
}

// contentRev is a content revision as the schema has it: -1 for the change's own.
func (e *encoder) contentRev(a *meta.Attr, own bool) int64 {
	if own || a.ContentRev == meta.RevPending {
		return -1
	}
	return e.s.k(int64(a.ContentRev))
}

// delta adds to what the wave does to a directory.
func (e *encoder) delta(n int64, d meta.DirDelta) {
	w := &e.wave
	sum, ok := w.deltas[d.Ino]
	if !ok {
		w.dirs = append(w.dirs, d.Ino)
	}
	w.deltas[d.Ino] = dirSum{meta.DirDelta{Entries: sum.Entries + d.Entries, Nlink: sum.Nlink + d.Nlink, Time: d.Time}, n}
}

// book counts an image for its owner while it has a name, for history else.
func (e *encoder) book(a *meta.Attr, sign, bytes int64) {
	uid, inodes := int64(a.UID), sign
	if a.Nlink == 0 {
		uid, inodes = historyUID, 0
	}
	w := &e.wave
	u, ok := w.usage[uid]
	if !ok {
		w.uids = append(w.uids, uid)
	}
	w.usage[uid] = usageDelta{u.inodes + inodes, u.bytes + bytes}
}

// bit is a boolean as the schema has it.
func bit(v bool) int64 {
	if v {
		return 1
	}
	return 0
}

func (e *encoder) setFile(n int64, c *meta.Change, ic *meta.InodeChange, grow int64, mine bool) {
	a, b, k := &ic.After, ic.Before, e.s.k
	r := &e.sets[rowFile]
	r.row(21)
	r.ints(n, k(int64(a.Ino)), k(int64(b.Rev)), int64(a.Mode), int64(a.UID), int64(a.GID), int64(a.Nlink), int64(a.Rdev), int64(a.Flags), a.Size,
		a.Atime, a.Mtime, a.Ctime, e.contentRev(a, false), a.Version)
	if name := nameFor(c, a.Ino); name != nil {
		r.ints(k(int64(name.Parent)), int64(meta.NameCookie(name.Name)))
	} else {
		r.null(2)
	}
	// Only then somebody's counters change, or the caller must know the row's bytes.
	counts := mine || a.UID != b.UID || (a.Nlink > 0) != (b.Nlink > 0)
	r.ints(grow, bit(counts), int64(b.UID), bit(b.Nlink > 0))
	r.end()
}

func (e *encoder) setDir(n int64, c *meta.Change, ic *meta.InodeChange) {
	a, b, k := &ic.After, ic.Before, e.s.k
	r := &e.sets[rowDir]
	r.row(20)
	r.ints(n, k(int64(a.Ino)), int64(b.Mode), int64(b.UID), int64(b.GID), int64(b.Flags), k(int64(b.Parent)), bit(b.Nlink > 0), bit(a.Nlink == 0),
		int64(a.Mode), int64(a.UID), int64(a.GID), int64(a.Flags), int64(a.Nlink)-int64(b.Nlink), a.Entries-b.Entries)
	r.changed(b.Atime, a.Atime)
	r.changed(b.Mtime, a.Mtime)
	r.changed(b.Ctime, a.Ctime)
	r.ints(k(int64(a.Parent)))
	if name := nameFor(c, a.Ino); name != nil {
		r.ints(int64(meta.NameCookie(name.Name)))
	} else {
		r.null(1)
	}
	r.end()
	if a.UID != b.UID || (a.Nlink > 0) != (b.Nlink > 0) {
		e.book(b, -1, 0)
		e.book(a, 1, 0)
	}
}

// nameless keeps the list of inodes without names.
func (e *encoder) nameless(n int64, ic *meta.InodeChange) {
	a := &ic.After
	if a.Nlink > 0 && (ic.Before == nil || ic.Before.Nlink > 0) {
		return
	}
	r := &e.sets[rowNameless]
	r.row(3)
	r.ints(n, e.s.k(int64(a.Ino)), bit(a.Nlink == 0))
	r.end()
}

func (e *encoder) names(n int64, c *meta.Change) {
	k := e.s.k
	for i := range c.Names {
		name := &c.Names[i]
		parent, cookie := k(int64(name.Parent)), int64(meta.NameCookie(name.Name))
		r := &e.sets[rowNamed]
		if name.Before != 0 {
			r = &e.sets[rowEnded]
		}
		r.row(7)
		r.ints(n, parent, cookie)
		r.bytes([]byte(name.Name))
		r.ints(k(int64(name.Before)), k(int64(name.After)), int64(name.AfterType>>12))
		r.end()
		if name.After != 0 && !slices.ContainsFunc(c.Inodes, func(ic meta.InodeChange) bool { return ic.After.Ino == name.After }) {
			r := &e.sets[rowHint]
			r.row(4)
			r.ints(n, k(int64(name.After)), parent, cookie)
			r.end()
		}
	}
}

// content encodes what a change does to a file's content and returns how many
// bytes its new extents hold.
func (e *encoder) content(n int64, cc *meta.ContentChange) (grow int64) {
	if cc == nil {
		return 0
	}
	ino := e.s.k(int64(cc.Ino))
	uses := map[meta.BlobID]int64{}
	for i := range cc.Blobs {
		uses[cc.Blobs[i].ID] = 0
	}
	for i := range cc.Ranges {
		r := &cc.Ranges[i]
		if !cc.Fresh {
			x := &e.sets[rowCut]
			x.row(4)
			x.ints(n, ino, r.Off, rangeEnd(r))
			x.end()
		}
		for j := range r.Extents {
			ext, x := &r.Extents[j], &e.sets[rowExtent]
			_, known := uses[ext.Blob.ID]
			if known {
				uses[ext.Blob.ID]++
			} else {
				e.wave.reused[ext.Blob.ID] = true
			}
			x.row(7)
			x.ints(n, ino, ext.Off, ext.Len)
			x.bytes(ext.Blob.ID[:])
			x.ints(ext.BlobOff, bit(known))
			x.end()
			grow += ext.Len
		}
	}
	for i := range cc.Blobs {
		b, x := &cc.Blobs[i], &e.sets[rowBlob]
		count, first := uses[b.ID]
		if !first {
			continue // listed twice
		}
		delete(uses, b.ID)
		x.row(8)
		x.ints(n)
		x.bytes(b.ID[:])
		x.ints(b.Size, int64(b.Place), b.Segment, b.Offset, count)
		if b.Place == meta.PlaceInline {
			x.bytes(notNil(b.Data))
		} else {
			x.bytes(nil)
		}
		x.end()
	}
	return grow
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func (e *encoder) version(n int64, c *meta.Change, actor int64) {
	v := c.Version
	if v == nil {
		return
	}
	if v.New && v.N == 1 && v.Size == 0 && slices.ContainsFunc(c.Inodes, func(ic meta.InodeChange) bool { return ic.Before == nil && ic.After.Ino == v.Ino }) {
		return // implied by the inode's row until the file changes
	}
	if !v.New {
		e.wave.moved++
	}
	r := &e.sets[rowVersion]
	r.row(7)
	r.ints(n, e.s.k(int64(v.Ino)), v.N, bit(v.New), v.Size, actor, c.Record.Time)
	r.end()
}

func (e *encoder) record(n int64, c *meta.Change, actor, session int64) {
	rec, k, r := &c.Record, e.s.k, &e.sets[rowRecord]
	r.row(15)
	r.ints(n, int64(rec.Kind), k(int64(rec.Ino)), k(int64(rec.Parent)))
	r.name(rec.Name)
	r.ints(k(int64(rec.NewParent)))
	r.name(rec.NewName)
	r.ints(rec.Time, actor, rec.Version, rec.Size, rec.Seq)
	r.string(rec.Before)
	r.string(rec.After)
	r.ints(bit(c.Topology))
	r.end()
	d := rec.Digest
	if d == (chain.Hash{}) {
		d = meta.RecordDigest(rec, session)
	}
	e.digests = append(e.digests, d[:]...)
}

// actor returns the number of an actor's row, which the batch inserts if need be.
func (e *encoder) actor(a *meta.Actor) (int64, error) {
	if id, ok := e.s.actors.id(a); ok {
		return id, nil
	}
	if i := slices.Index(e.fresh, *a); i >= 0 {
		return e.ids[i], nil
	}
	id, err := e.s.actors.next(e.s)
	if err != nil {
		return 0, err
	}
	e.fresh, e.ids = append(e.fresh, *a), append(e.ids, id)
	r := &e.sets[rowActor]
	r.row(10)
	r.ints(id, int64(a.UID), int64(a.GID), int64(a.PID), int64(a.StartTime))
	for _, text := range [...]string{a.Exe, a.Cgroup, a.Node, a.Agent, a.Task} {
		r.bytes([]byte(text))
	}
	r.end()
	return id, nil
}

// waveKeys knows which rows the changes of a wave touch. A wave is applied
// set by set, so no two of its changes may touch the same row; only what names
// do to their directory adds up.
type waveKeys struct {
	has map[waveKey]bool
	own []waveKey
}

type waveKey struct {
	kind byte
	ino  meta.Ino
	name string
}

const (
	keyInode byte = iota
	keyDelta
	keyName
	keyBrought
	keyUsed
)

func (w *waveKeys) reset() {
	if w.has == nil {
		w.has = make(map[waveKey]bool)
	}
	clear(w.has)
}

// fits adds a change to the wave, or begins a new one with it and returns false.
func (w *waveKeys) fits(c *meta.Change) bool {
	w.collect(c)
	ok := !slices.ContainsFunc(w.own, w.clashes)
	if !ok {
		clear(w.has)
	}
	for _, k := range w.own {
		w.has[k] = true
	}
	return ok
}

// clashes reports whether an earlier change of the wave touches the same row.
func (w *waveKeys) clashes(k waveKey) bool {
	other := k
	switch k.kind {
	case keyInode:
		other.kind = keyDelta
	case keyDelta:
		other.kind = keyInode
		return w.has[other]
	case keyBrought:
		other.kind = keyUsed
		return w.has[other]
	case keyUsed:
		other.kind = keyBrought
		return w.has[other]
	}
	return w.has[k] || w.has[other]
}

func (w *waveKeys) collect(c *meta.Change) {
	w.own = w.own[:0]
	add := func(kind byte, ino meta.Ino, name string) { w.own = append(w.own, waveKey{kind, ino, name}) }
	for i := range c.Inodes {
		add(keyInode, c.Inodes[i].After.Ino, "")
	}
	for _, d := range c.Dirs {
		add(keyDelta, d.Ino, "")
	}
	for i := range c.Names {
		n := &c.Names[i]
		add(keyName, n.Parent, n.Name)
		if n.After != 0 {
			add(keyInode, n.After, "")
		}
	}
	for i := range c.Xattrs {
		add(keyInode, c.Xattrs[i].Ino, "")
	}
	if c.Version != nil {
		add(keyInode, c.Version.Ino, "")
	}
	if c.Content == nil {
		return
	}
	brought := map[meta.BlobID]bool{}
	for i := range c.Content.Blobs {
		id := c.Content.Blobs[i].ID
		brought[id] = true
		add(keyBrought, 0, string(id[:]))
	}
	for i := range c.Content.Ranges {
		for j := range c.Content.Ranges[i].Extents {
			if id := c.Content.Ranges[i].Extents[j].Blob.ID; !brought[id] {
				add(keyUsed, 0, string(id[:]))
			}
		}
	}
}
