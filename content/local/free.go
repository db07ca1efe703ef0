package local

import (
	"context"
	"errors"

	"nexusfs/meta"
)

// Free gives back the space of blobs that nothing refers to any more, now or
// after a power loss: the caller frees what is unreferenced below its durable
// barrier. Only the given places go, other places of the same bytes stay, and a
// place that is gone already or holds something else is passed over. What another
// running process has put is noted for it, durably. It tries all and returns the first error: KindIO, KindReadOnly, KindInterrupted,
// KindShutdown.
func (s *Store) Free(ctx context.Context, blobs []meta.Blob) error {
	if err := s.enterWrite(ctx, "free content"); err != nil {
		return err
	}
	defer s.life.leave()
	var first error
	failed := func(err error) {
		if err != nil && first == nil {
			first = diskError("free content", err)
		}
	}
	others := make(map[int64][]meta.Blob) // by writer
	for _, b := range blobs {
		if ctx.Err() != nil && first == nil {
			return meta.E("free content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		switch {
		case b.Place == meta.PlaceInline:
		case s.foreign(b.Segment):
			others[writerOf(b.Segment)] = append(others[writerOf(b.Segment)], b)
		default:
			failed(s.freeIn(s.folder, b))
		}
	}
	for w, list := range others {
		failed(s.freeForeign(w, list))
	}
	failed(s.workOff(s.folder))
	return first
}

// freeForeign gives back places in another writer's folder: as he would if
// nobody holds it, by a note for the holder otherwise.
func (s *Store) freeForeign(writer int64, blobs []meta.Blob) error {
	f, err := s.adopt(writer)
	switch {
	case errors.Is(err, errNoFolder):
		return nil
	case errors.Is(err, errLocked):
		return s.leaveNote(writer, blobs)
	case err != nil:
		return err
	}
	defer s.letGo(f)
	err = s.workOff(f)
	for _, b := range blobs {
		if ferr := s.freeIn(f, b); err == nil {
			err = ferr
		}
	}
	return err
}

// freeIn gives back one place in a folder that this process holds. The record
// is marked before the file goes, so that a reader who misses the file can tell
// why.
func (s *Store) freeIn(f *folder, b meta.Blob) error {
	h := header{Kind: kindData, State: stateLive, Size: b.Size, ID: b.ID}
	if b.Place == meta.PlaceFile {
		h.Kind = kindLeaves
	}
	empty, err := f.packs.markDead(b.Segment, b.Offset, h)
	if err != nil {
		return err
	}
	s.tables.Drop(b.ID)
	// gofail: var contentBeforeUnlink struct{}
	if b.Place == meta.PlaceFile {
		if _, err := f.files.remove(b, f.fds); err != nil {
			return err
		}
	}
	if f != s.folder {
		s.forgetOpen(b)
	}
	if empty {
		return s.removeSegment(f, b.Segment)
	}
	return nil
}

// removeSegment deletes a segment in which nothing is alive.
func (s *Store) removeSegment(f *folder, n int64) error {
	ok, rolled := f.packs.retire(n)
	if !ok {
		return nil
	}
	if rolled {
		if err := s.syncer.SyncDir(f.packs.dir); err != nil {
			return err
		}
	}
	// gofail: var contentBeforeSegmentRemove struct{}
	err := f.packs.remove(n)
	f.files.forgetDir(n)
	return err
}
