package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/minio/minio-go/v7"

	"nexusfs/content"
	"nexusfs/meta"
)

// putPlaces is how many places a Put tries. A second one is needed only when
// the answer to an upload was lost: its repetition finds the place taken.
const putPlaces = 3

// Put uploads data, of 1 to BlobMax bytes, as an object of its own and returns
// when the server has acknowledged it. data is not retained. It waits while
// Options.Parallel requests are under way. After an error the object may or may
// not be there; nothing refers to it and Walk lists it. Errors: KindInvalid
// (size), KindNoSpace, KindReadOnly, KindIO, KindInterrupted.
func (s *Store) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	const op = "put content"
	size := int64(len(data))
	switch {
	case ctx.Err() != nil:
		return meta.Blob{}, meta.E(op, 0, "", meta.KindInterrupted, ctx.Err())
	case s.o.ReadOnly:
		return meta.Blob{}, meta.E(op, 0, "", meta.KindReadOnly, nil)
	case size == 0 || size > meta.BlobMax:
		return meta.Blob{}, meta.E(op, 0, "", meta.KindInvalid, fmt.Errorf("a blob has 1 to %d bytes, not %d", meta.BlobMax, size))
	}
	b := meta.Blob{Size: size, Place: meta.PlaceFile, Segment: s.session}
	var table []byte
	if n := content.TableLen(size); n > 0 {
		table = content.LeafTable(make([]byte, 0, n), data)
		b.ID = content.TreeID(size, table)
	} else {
		b.ID = content.ID(data)
	}
	b, err := s.put(ctx, b, table, data)
	if err != nil {
		return meta.Blob{}, s.fail(ctx, op, blobName(b), err)
	}
	if table != nil {
		s.tables.Put(b.ID, table)
	}
	s.puts.Add(1)
	s.putBytes.Add(size)
	s.files.Add(1)
	s.fileBytes.Add(size)
	return b, nil
}

// put finds a place for b. A place that is taken holds what an earlier try of
// this very Put has sent, since nobody else names it: it is given back.
func (s *Store) put(ctx context.Context, b meta.Blob, table, data []byte) (meta.Blob, error) {
	var err error
	for range putPlaces {
		b.Offset = s.next.Add(1)
		err = s.send(ctx, s.key(objectKey(b)), table, data)
		if code := codeOf(err); code != "PreconditionFailed" && code != "ConditionalRequestConflict" {
			return b, err
		}
		s.remove(ctx, []meta.Blob{b}) // Walk finds what this leaves
	}
	return b, err
}

// send writes an object that must not exist yet. The server compares what it
// received with the checksum, which the signature covers.
func (s *Store) send(ctx context.Context, key string, table, data []byte) error {
	ctx, done, err := s.request(ctx)
	if err != nil {
		return err
	}
	defer done()
	o := minio.PutObjectOptions{
		DisableContentSha256: true, // the checksum does it, ten times faster
		UserMetadata:         map[string]string{"x-amz-checksum-crc32c": checksum(table, data)},
	}
	o.SetMatchETagExcept("*")
	_, err = s.core.PutObject(ctx, s.o.Location.Bucket, key, &body{table: table, data: data}, int64(len(table)+len(data)), "", "", o)
	return err
}

// checksum is S3's text of the CRC-32C of table and data.
func checksum(table, data []byte) string {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Update(0, castagnoli, table), castagnoli, data)
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// body reads a leaf table and a blob one behind the other, and again from the
// start when a request is repeated.
type body struct {
	table, data []byte
	off         int
}

func (b *body) Read(p []byte) (int, error) {
	left := b.data[max(b.off-len(b.table), 0):]
	if b.off < len(b.table) {
		left = b.table[b.off:]
	}
	n := copy(p, left)
	b.off += n
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Seek goes back to the start, which is all that is asked for.
func (b *body) Seek(off int64, whence int) (int64, error) {
	if off != 0 || whence != io.SeekStart {
		return 0, errors.New("only the start can be sought")
	}
	b.off = 0
	return 0, nil
}
