package s3

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"

	"nexusfs/meta"
)

// freeBatch is how many objects one request removes, and lists: S3's limit.
const freeBatch = 1000

// Free removes the objects of blobs that nothing refers to any more, a thousand
// with each request. Who reads one meanwhile gets all of it or KindStale. One
// that is gone already is no error, and one error does not keep the others
// from being removed. Errors: KindReadOnly, KindIO, KindInterrupted.
func (s *Store) Free(ctx context.Context, blobs []meta.Blob) error {
	const op = "free content"
	if s.o.ReadOnly {
		return meta.E(op, 0, "", meta.KindReadOnly, nil)
	}
	var first error
	for batch := range slices.Chunk(blobs, freeBatch) {
		if ctx.Err() != nil {
			return meta.E(op, 0, "", meta.KindInterrupted, ctx.Err())
		}
		fresh := s.freed.add(batch)
		if err := s.remove(ctx, batch); err != nil {
			s.freed.drop(fresh)
			if first == nil {
				first = s.fail(ctx, op, "", err)
			}
			continue
		}
		for _, b := range fresh {
			if b.Segment == s.session {
				s.files.Add(-1)
				s.fileBytes.Add(-b.Size)
			}
		}
	}
	return first
}

// remove removes up to freeBatch objects with one request.
func (s *Store) remove(ctx context.Context, batch []meta.Blob) error {
	objects := func(yield func(minio.ObjectInfo) bool) {
		for _, b := range batch {
			if b.Place == meta.PlaceFile && !yield(minio.ObjectInfo{Key: s.key(objectKey(b))}) {
				return
			}
		}
	}
	bounded, done, err := s.request(ctx)
	if err != nil {
		return err
	}
	defer done()
	results, err := s.core.RemoveObjectsWithIter(bounded, s.o.Location.Bucket, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		return err
	}
	for r := range results {
		if err == nil && r.Err != nil && codeOf(r.Err) != "NoSuchKey" {
			err = fmt.Errorf("remove %q: %w", r.ObjectName, r.Err)
		}
	}
	return errors.Join(err, bounded.Err())
}

// Walk lists every blob that is stored, in the order of their names. Whether
// the bytes are sound is not looked at; objects whose keys are no blob's are
// left out. What is put or freed meanwhile may be listed or not. It asks for a
// thousand at a time. An error of fn ends it and is returned as it is. Other
// errors: KindIO, KindInterrupted.
func (s *Store) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	dir, after := s.key(blobDir), ""
	for {
		if ctx.Err() != nil {
			return meta.E("walk content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		objects, err := s.page(ctx, dir, after, freeBatch)
		if err != nil {
			return s.fail(ctx, "walk content", "", err)
		}
		for _, o := range objects {
			b, ok := parseKey(strings.TrimPrefix(o.Key, s.o.Location.Prefix))
			if !ok {
				continue
			}
			if err := fn(b); err != nil {
				return err
			}
		}
		if len(objects) < freeBatch {
			return nil
		}
		after = objects[len(objects)-1].Key
	}
}

// page lists up to n objects below a prefix whose keys come behind after.
func (s *Store) page(ctx context.Context, prefix, after string, n int) ([]minio.ObjectInfo, error) {
	ctx, done, err := s.request(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	objects := make([]minio.ObjectInfo, 0, n)
	o := minio.ListObjectsOptions{Prefix: prefix, Recursive: true, StartAfter: after, MaxKeys: n}
	for info := range s.core.ListObjectsIter(ctx, s.o.Location.Bucket, o) {
		if info.Err != nil {
			return nil, info.Err
		}
		if objects = append(objects, info); len(objects) == n {
			break
		}
	}
	return objects, ctx.Err()
}
