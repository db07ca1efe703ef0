package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/minio/minio-go/v7"

	"nexusfs/content"
	"nexusfs/meta"
)

const (
	// bodyTries is how often a body is asked for that the connection lost.
	bodyTries = 3
	// together is how far into a blob a read may begin whose request takes
	// the leaf table along: that many bytes are quicker than a round trip.
	together = 256 << 10
	// verifyStep is how much is received before it is verified: it stays in
	// the CPU's cache between the two.
	verifyStep = 256 << 10
)

var leafBuffers = sync.Pool{New: func() any { return new([content.LeafSize]byte) }}

// Read fills p with the bytes of b from off on, each verified against b.ID. It
// fetches whole leaves, and the leaf table if it is not in memory, and waits
// while Options.Parallel requests are under way. Errors: KindInvalid (range),
// KindDamaged (counted), KindStale (this process has freed the place: look it
// up again), KindIO, KindInterrupted. p's content is undefined after an error.
func (s *Store) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	const op = "read content"
	switch {
	case ctx.Err() != nil:
		return meta.E(op, 0, "", meta.KindInterrupted, ctx.Err())
	case off < 0 || b.Size <= 0 || b.Size > meta.BlobMax || off > b.Size-int64(len(p)) || b.Place == meta.PlaceInline:
		return meta.E(op, 0, "", meta.KindInvalid, fmt.Errorf("%d bytes at %d of a blob of %d", len(p), off, b.Size))
	case len(p) == 0:
		return nil
	}
	if err := s.read(ctx, b, off, p); err != nil {
		return s.readError(ctx, op, b, err)
	}
	s.reads.Add(1)
	s.readBytes.Add(int64(len(p)))
	return nil
}

func (s *Store) readError(ctx context.Context, op string, b meta.Blob, err error) error {
	err = s.fail(ctx, op, blobName(b), err)
	if meta.KindOf(err) != meta.KindDamaged {
		return err
	}
	if s.freed.has(b) {
		return meta.E(op, 0, blobName(b), meta.KindStale, errors.Unwrap(err))
	}
	s.damaged.Add(1)
	return err
}

// read gets the leaves that hold [off, off+len(p)). The table in front of them
// comes along if it is needed and near, and always when reading begins with the
// first leaf: some servers answer a range that begins with the object three
// times as fast as another one.
func (s *Store) read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	from := off - off%content.LeafSize
	to := min(b.Size, (off+int64(len(p))+content.LeafSize-1)/content.LeafSize*content.LeafSize)
	table := b.ID[:]
	tableLen := content.TableLen(b.Size)
	if tableLen > 0 {
		table = s.tables.Get(b.ID)
	}
	if from == 0 || table == nil && from <= together {
		return s.get(ctx, b, 0, tableLen+to, func(r io.Reader) error {
			table, err := s.readTable(r, b)
			if err == nil {
				_, err = io.CopyN(io.Discard, r, from)
			}
			if err != nil {
				return err
			}
			return readLeaves(r, b, table, off, p)
		})
	}
	if table == nil {
		err := s.get(ctx, b, 0, tableLen, func(r io.Reader) (err error) {
			table, err = s.readTable(r, b)
			return err
		})
		if err != nil {
			return err
		}
	}
	return s.get(ctx, b, tableLen+from, to-from, func(r io.Reader) error { return readLeaves(r, b, table, off, p) })
}

// readTable receives a leaf table, verifies it and keeps it.
func (s *Store) readTable(r io.Reader, b meta.Blob) ([]byte, error) {
	table := make([]byte, content.TableLen(b.Size))
	if _, err := io.ReadFull(r, table); err != nil {
		return nil, err
	}
	if content.TreeID(b.Size, table) != b.ID {
		return nil, fmt.Errorf("the leaf table does not match: %w", errDamaged)
	}
	s.tables.Put(b.ID, table)
	return table, nil
}

// readLeaves receives the leaves from the one with byte off on and fills p.
// Whole leaves go straight to p; where p begins or ends inside a leaf, that leaf
// is received beside it.
func readLeaves(r io.Reader, b meta.Blob, table []byte, off int64, p []byte) error {
	for len(p) > 0 {
		leaf, within := int(off/content.LeafSize), off%content.LeafSize
		leafLen := min(content.LeafSize, b.Size-off+within)
		n := wholeLeaves(off, b.Size, len(p))
		var err error
		if within == 0 && n > 0 {
			err = receive(r, table, leaf, p[:n])
		} else {
			room := leafBuffers.Get().(*[content.LeafSize]byte)
			err = receive(r, table, leaf, room[:leafLen])
			n = copy(p, room[within:leafLen])
			leafBuffers.Put(room)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// wholeLeaves returns how many of the next n bytes are whole leaves, up to
// verifyStep of them.
func wholeLeaves(off, size int64, n int) int {
	n = min(n, verifyStep)
	if off+int64(n) == size {
		return n
	}
	return n - n%content.LeafSize
}

// receive fills p, which begins with the given leaf, and verifies it.
func receive(r io.Reader, table []byte, leaf int, p []byte) error {
	if _, err := io.ReadFull(r, p); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), content.LeafSize)
		got := content.LeafHash(p[:n])
		if string(got[:]) != string(table[leaf*content.HashSize:(leaf+1)*content.HashSize]) {
			return fmt.Errorf("leaf %d does not match its hash: %w", leaf, errDamaged)
		}
		p, leaf = p[n:], leaf+1
	}
	return nil
}

// lostError marks a body that the connection did not deliver whole.
type lostError struct{ error }

func (e lostError) Unwrap() error { return e.error }

// get asks for n bytes of an object and hands them to use, from the first again
// when the connection loses them.
func (s *Store) get(ctx context.Context, b meta.Blob, from, n int64, use func(io.Reader) error) error {
	for try := 1; ; try++ {
		err := s.getOnce(ctx, b, from, n, use)
		var lost lostError
		if try == bodyTries || !errors.As(err, &lost) || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

func (s *Store) getOnce(ctx context.Context, b meta.Blob, from, n int64, use func(io.Reader) error) error {
	ctx, done, err := s.request(ctx)
	if err != nil {
		return err
	}
	defer done()
	var o minio.GetObjectOptions
	if err := o.SetRange(from, from+n-1); err != nil {
		return err
	}
	r, info, _, err := s.core.GetObject(ctx, s.o.Location.Bucket, s.key(objectKey(b)), o)
	if err != nil {
		return err
	}
	defer r.Close()
	switch {
	case info.Size >= 0 && info.Size < n:
		return fmt.Errorf("%d bytes are missing at the end: %w", n-info.Size, errDamaged)
	case info.Size > n:
		return errors.New("the server sends more than it was asked for: it does not know ranges")
	}
	err = use(r)
	if err != nil && !errors.Is(err, errDamaged) {
		return lostError{err}
	}
	return err
}
