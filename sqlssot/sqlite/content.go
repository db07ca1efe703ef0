package sqlite

import (
	"math"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// blobUse is one blob that a change's new extents refer to.
type blobUse struct {
	id   meta.BlobID
	blob int64 // its row
	size int64
	uses int64
}

// piece is one row of extents.
type piece struct{ off, len, blob, blobOff, begin int64 }

func (p *piece) end() int64 { return p.off + p.len }

func scanPiece(st *sqlite.Stmt) piece {
	return piece{st.ColumnInt64(0), st.ColumnInt64(1), st.ColumnInt64(2), st.ColumnInt64(3), st.ColumnInt64(4)}
}

// content replaces ranges of a file's content and returns by how many bytes
// its extents grew.
func (t *tx) content(cc *meta.ContentChange, rev int64) (delta int64, err error) {
	if err := t.useBlobs(cc); err != nil {
		return 0, err
	}
	ino := t.s.k(int64(cc.Ino))
	for i := range cc.Ranges {
		r := &cc.Ranges[i]
		end := int64(math.MaxInt64)
		if r.Len <= math.MaxInt64-r.Off {
			end = r.Off + r.Len
		}
		if !cc.Fresh {
			gone, err := t.cut(ino, r.Off, end, rev)
			if err != nil {
				return 0, err
			}
			delta -= gone
			t.history += gone
		}
		for j := range r.Extents {
			e := &r.Extents[j]
			if e.Off < r.Off || e.Len <= 0 || e.Off > end-e.Len {
				return 0, meta.E("commit", cc.Ino, "", meta.KindInvalid, nil)
			}
			u := t.use(e.Blob.ID)
			if e.BlobOff < 0 || e.BlobOff > u.size-e.Len {
				return 0, meta.E("commit", cc.Ino, "", meta.KindInvalid, nil)
			}
			if _, err := t.c.exec(stExtentInsert, ino, e.Off, e.Len, u.blob, e.BlobOff, rev); err != nil {
				return 0, guard(err, cc.Ino, "", "the content changed meanwhile")
			}
			delta += e.Len
		}
	}
	return delta, nil
}

// use finds a blob of the change being applied.
func (t *tx) use(id meta.BlobID) *blobUse {
	for i := range t.uses {
		if t.uses[i].id == id {
			return &t.uses[i]
		}
	}
	return nil
}

// useBlobs counts how often each blob is used, inserts the new ones and locks
// in the old ones (P28).
func (t *tx) useBlobs(cc *meta.ContentChange) error {
	t.uses = t.uses[:0]
	for i := range cc.Ranges {
		for j := range cc.Ranges[i].Extents {
			id := cc.Ranges[i].Extents[j].Blob.ID
			if u := t.use(id); u != nil {
				u.uses++
			} else {
				t.uses = append(t.uses, blobUse{id: id, uses: 1})
			}
		}
	}
	for i := range cc.Blobs {
		if err := t.newBlob(cc, &cc.Blobs[i]); err != nil {
			return err
		}
	}
	for i := range t.uses {
		u := &t.uses[i]
		if u.blob != 0 {
			continue
		}
		alive, err := t.findBlob(u)
		if err != nil {
			return err
		}
		if !alive {
			return conflict(cc.Ino, "", "a blob is missing or condemned")
		}
		if _, err := t.c.exec(stBlobRefs, u.blob, u.uses); err != nil {
			return err
		}
	}
	return nil
}

// findBlob looks a blob's row up; u.blob stays 0 when there is none.
func (t *tx) findBlob(u *blobUse) (alive bool, err error) {
	st, err := t.c.stmt(stBlobFind)
	if err != nil {
		return false, err
	}
	st.BindInt64(1, t.s.zone)
	st.BindBytes(2, u.id[:])
	err = rows(st, func(st *sqlite.Stmt) bool {
		u.blob, u.size, alive = st.ColumnInt64(0), st.ColumnInt64(1), st.ColumnInt64(2) != 0
		return true
	})
	return alive, err
}

// newBlob inserts a blob that the change brings. One that is there stays as it
// is, unless it is condemned: then it takes the new place.
func (t *tx) newBlob(cc *meta.ContentChange, b *meta.NewBlob) error {
	u := t.use(b.ID)
	if u == nil {
		t.uses = append(t.uses, blobUse{id: b.ID})
		u = &t.uses[len(t.uses)-1]
	}
	if u.blob != 0 {
		return nil // listed twice
	}
	if b.Place == meta.PlaceInline && int64(len(b.Data)) != b.Size {
		return meta.E("commit", cc.Ino, "", meta.KindInvalid, nil)
	}
	st, err := t.c.stmt(stBlobInsert)
	if err != nil {
		return err
	}
	st.BindInt64(1, t.s.zone)
	st.BindBytes(2, b.ID[:])
	for i, v := range [...]int64{b.Size, int64(b.Place), b.Segment, b.Offset, u.uses} {
		st.BindInt64(3+i, v)
	}
	bindData(st, 8, b)
	n, err := t.c.run(st)
	if err != nil {
		return err
	}
	if n == 1 {
		u.blob, u.size = t.c.LastInsertRowID(), b.Size
		return nil
	}
	alive, err := t.findBlob(u)
	if err != nil {
		return err
	}
	if !alive {
		if err := t.replaceBlob(u.blob, b); err != nil {
			return err
		}
	}
	_, err = t.c.exec(stBlobRefs, u.blob, u.uses)
	return err
}

func (t *tx) replaceBlob(row int64, b *meta.NewBlob) error {
	st, err := t.c.stmt(stBlobReplace)
	if err != nil {
		return err
	}
	for i, v := range [...]int64{row, int64(b.Place), b.Segment, b.Offset} {
		st.BindInt64(1+i, v)
	}
	bindData(st, 5, b)
	_, err = t.c.run(st)
	return err
}

func bindData(st *sqlite.Stmt, param int, b *meta.NewBlob) {
	if b.Place == meta.PlaceInline {
		st.BindBytes(param, b.Data)
		return
	}
	st.BindNull(param)
}

// cut ends everything that lies in [off, end) of a file and returns how many
// bytes that were. Extents that reach over an edge are split: what lies
// outside stays current with its begin, what lies inside goes to history.
func (t *tx) cut(ino, off, end, rev int64) (gone int64, err error) {
	last, ok, err := t.lastBefore(ino, end)
	if err != nil || !ok || last.end() <= off {
		return 0, err
	}
	if last.off < off { // one extent spans the whole range, or only its left edge
		return t.cutPiece(ino, last, off, min(end, last.end()), rev)
	}
	if last.end() > end {
		n, err := t.cutPiece(ino, last, last.off, end, rev)
		if err != nil {
			return 0, err
		}
		gone += n
	}
	first, ok, err := t.lastBefore(ino, off)
	if err != nil {
		return 0, err
	}
	if ok && first.end() > off {
		n, err := t.cutPiece(ino, first, off, first.end(), rev)
		if err != nil {
			return 0, err
		}
		gone += n
	}
	n, err := t.cutInside(ino, off, end, rev)
	return gone + n, err
}

// lastBefore finds the last extent that starts before a place.
func (t *tx) lastBefore(ino, before int64) (p piece, ok bool, err error) {
	err = t.c.query(stExtentLast, func(st *sqlite.Stmt) bool {
		p, ok = scanPiece(st), true
		return true
	}, ino, before)
	return p, ok, err
}

// cutInside ends the extents that lie wholly in [off, end).
func (t *tx) cutInside(ino, off, end, rev int64) (gone int64, err error) {
	var count int64
	err = t.c.query(stExtentSum, func(st *sqlite.Stmt) bool {
		count, gone = st.ColumnInt64(0), st.ColumnInt64(1)
		return true
	}, ino, off, end)
	if err != nil || count == 0 {
		return 0, err
	}
	if _, err := t.c.exec(stExtentArchiveRange, ino, off, end, rev); err != nil {
		return 0, err
	}
	_, err = t.c.exec(stExtentDeleteRange, ino, off, end)
	return gone, err
}

// cutPiece ends the part [from, to) of one extent.
func (t *tx) cutPiece(ino int64, p piece, from, to, rev int64) (int64, error) {
	if _, err := t.c.exec(stExtentArchive, ino, from, rev, to-from, p.blob, p.blobOff+from-p.off, p.begin); err != nil {
		return 0, err
	}
	refs := int64(1) // the row in history
	if from > p.off {
		if _, err := t.c.exec(stExtentTrim, ino, p.off, from-p.off); err != nil {
			return 0, err
		}
	} else {
		if _, err := t.c.exec(stExtentDelete, ino, p.off); err != nil {
			return 0, err
		}
		refs--
	}
	if to < p.end() {
		if _, err := t.c.exec(stExtentInsert, ino, to, p.end()-to, p.blob, p.blobOff+to-p.off, p.begin); err != nil {
			return 0, err
		}
		refs++
	}
	if refs == 0 {
		return to - from, nil
	}
	_, err := t.c.exec(stBlobRefs, p.blob, refs)
	return to - from, err
}
