package s3

import (
	"encoding/hex"
	"fmt"
	"strings"

	"nexusfs/meta"
)

// blobDir is the part of a key behind the store's prefix that all blobs share.
const blobDir = "blobs/"

// objectKey is the key of a blob's object behind the store's prefix:
//
//	blobs/ab/abcdef...-SIZE-SEGMENT-OFFSET
//
// The name's own first byte spreads keys over 256 prefixes; the numbers, in
// hexadecimal, make a key say all that a meta.Blob says.
func objectKey(b meta.Blob) string {
	id := hex.EncodeToString(b.ID[:])
	return fmt.Sprintf("%s%s/%s-%x-%x-%x", blobDir, id[:2], id, b.Size, b.Segment, b.Offset)
}

// parseKey is the inverse of objectKey; false: no blob has this key.
func parseKey(key string) (meta.Blob, bool) {
	name, ok := strings.CutPrefix(key, blobDir)
	const shard, idLen = 3, 2 * len(meta.BlobID{})
	if !ok || len(name) < shard+idLen {
		return meta.Blob{}, false
	}
	b := meta.Blob{Place: meta.PlaceFile}
	if _, err := hex.Decode(b.ID[:], []byte(name[shard:shard+idLen])); err != nil {
		return meta.Blob{}, false
	}
	_, err := fmt.Sscanf(name[shard+idLen:], "-%x-%x-%x", &b.Size, &b.Segment, &b.Offset)
	if err != nil || b.Size <= 0 || b.Size > meta.BlobMax || objectKey(b) != key {
		return meta.Blob{}, false
	}
	return b, true
}
