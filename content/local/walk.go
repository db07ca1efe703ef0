package local

import (
	"context"

	"nexusfs/meta"
)

// Walk lists every blob that is stored, by any writer, in no order: whole records of the
// segments that were not given back, and files. Whether the bytes are sound is
// not looked at. What is put or freed meanwhile may be listed or not. An error
// of fn ends it and is returned.
func (s *Store) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	if err := s.enter(ctx, "walk content"); err != nil {
		return err
	}
	defer s.life.leave()
	list, err := writers(s.opts.Dir)
	if err != nil {
		return diskError("walk content", err)
	}
	for _, w := range list {
		f := s.folder
		if w != s.writer {
			f = newFolder(s.opts, w, s.fds)
		}
		if err := s.walkFolder(ctx, f, fn); err != nil {
			return unwrapCallback("walk content", err)
		}
	}
	return nil
}

// walkFolder is Walk in one writer's folder, which need not be held. Between
// the listing and the look everything in it may go.
func (s *Store) walkFolder(ctx context.Context, f *folder, fn func(meta.Blob) error) error {
	segments, err := f.packs.list()
	if err != nil {
		return err
	}
	for _, n := range segments {
		_, err := s.packs.scan(ctx, n, func(off int64, h header) error {
			if h.Kind != kindData || h.State != stateLive {
				return nil
			}
			return callback{fn(blobOf(n, off, h))}.wrap()
		})
		if err != nil {
			return err
		}
	}
	return f.files.walk(func(b meta.Blob) error {
		if ctx.Err() != nil {
			return meta.E("walk content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		return callback{fn(b)}.wrap()
	})
}
