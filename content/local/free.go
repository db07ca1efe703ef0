package local

import (
	"context"

	"nexusfs/meta"
)

// Free gives back the space of blobs that nothing refers to any more, now or
// after a power loss: the caller frees what is unreferenced below its durable
// barrier. Only the given places go, other places of the same bytes stay, and a
// place that is gone already or holds something else is passed over. It tries
// all and returns the first error: KindIO, KindReadOnly, KindInterrupted,
// KindShutdown.
func (s *Store) Free(ctx context.Context, blobs []meta.Blob) error {
	if err := s.enterWrite(ctx, "free content"); err != nil {
		return err
	}
	defer s.life.leave()
	var first error
	for _, b := range blobs {
		if ctx.Err() != nil && first == nil {
			return meta.E("free content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		if b.Place == meta.PlaceInline {
			continue
		}
		if err := s.free(b); err != nil && first == nil {
			first = diskError("free content", err)
		}
	}
	return first
}

// free gives back one place. The record is marked before the file goes, so
// that a reader who misses the file can tell why.
func (s *Store) free(b meta.Blob) error {
	h := header{Kind: kindData, State: stateLive, Size: b.Size, ID: b.ID}
	if b.Place == meta.PlaceFile {
		h.Kind = kindLeaves
	}
	empty, err := s.packs.markDead(b.Segment, b.Offset, h)
	if err != nil {
		return err
	}
	s.tables.Drop(b.ID)
	// gofail: var contentBeforeUnlink struct{}
	if b.Place == meta.PlaceFile {
		if _, err := s.files.remove(b, s.fds); err != nil {
			return err
		}
	}
	if empty {
		return s.removeSegment(b.Segment)
	}
	return nil
}

// removeSegment deletes a segment in which nothing is alive.
func (s *Store) removeSegment(n int64) error {
	if !s.packs.retire(n) {
		return nil
	}
	// gofail: var contentBeforeSegmentRemove struct{}
	err := s.packs.remove(n)
	s.files.forgetDir(n)
	return err
}
