package local

import (
	"context"

	"nexusfs/meta"
)

// Walk lists every blob that is stored, in no order: whole records of the
// segments that were not given back, and files. Whether the bytes are sound is
// not looked at. What is put or freed meanwhile may be listed or not. An error
// of fn ends it and is returned.
func (s *Store) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	if err := s.enter(ctx, "walk content"); err != nil {
		return err
	}
	defer s.life.leave()
	for _, n := range s.packs.all() {
		_, err := s.packs.scan(ctx, n, func(off int64, h header) error {
			if h.Kind != kindData || h.State != stateLive {
				return nil
			}
			return callback{fn(blobOf(n, off, h))}.wrap()
		})
		if err != nil {
			return unwrapCallback("walk content", err)
		}
	}
	err := s.files.walk(func(b meta.Blob) error {
		if ctx.Err() != nil {
			return meta.E("walk content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		return callback{fn(b)}.wrap()
	})
	return unwrapCallback("walk content", err)
}
