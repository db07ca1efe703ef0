package local

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"nexusfs/content"
	"nexusfs/meta"
)

// A record in a pack segment is
//
//	header   headerSize bytes, see encodeHeader
//	table    32 bytes for each leaf; nothing when the blob is one leaf
//	data     the blob's bytes; nothing for the record of a blob with its own file
//	padding  zeros
//	footer   footerSize bytes that end at a multiple of recordAlign
//
// The footer is never zero, so the last byte of a segment that is not zero
// lies in the last record's footer: zeros written ahead need no bookkeeping.
const (
	headerSize  = 64
	footerSize  = 16
	recordAlign = 64

	headerMagic   = "NXR1"
	footerMagic   = "NXE1"
	recordVersion = 1
)

// recordKind says what follows a record's header.
type recordKind uint8

const (
	kindData   recordKind = 1 // leaf table and bytes
	kindLeaves recordKind = 2 // leaf table of a blob with a file of its own
)

// recordState says whether a record is there. A large one is written in three
// steps: a header with stateOpen and no ID, then the data while they are hashed,
// then the table, the footer and the true header. What a stop leaves in between
// is known to be nothing.
type recordState uint8

const (
	stateLive recordState = 1 // stored
	stateDead recordState = 2 // its place was given back
	stateOpen recordState = 3 // being written, or abandoned
)

// header is the decoded first part of a record.
type header struct {
	Kind  recordKind
	State recordState
	Size  int64 // of the blob
	ID    meta.BlobID
}

var (
	errNoRecord  = errors.New("no record here")
	errNewRecord = errors.New("record of a newer version of nexusfs")
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// dataOffset returns where a record's data begin, counted from its start.
func (h header) dataOffset() int64 { return headerSize + content.TableLen(h.Size) }

// length returns the bytes of the whole record.
func (h header) length() int64 {
	n := h.dataOffset() + footerSize
	if h.Kind == kindData {
		n += h.Size
	}
	return (n + recordAlign - 1) &^ (recordAlign - 1)
}

// encodeHeader writes h to the first headerSize bytes of p:
// magic 4, version 1, kind 1, state 1, 0, size 8, leaves 4, 0 4, id 32, 0 4,
// CRC-32C of all that 4; little endian.
func encodeHeader(p []byte, h header) {
	p = p[:headerSize]
	clear(p)
	copy(p, headerMagic)
	p[4], p[5], p[6] = recordVersion, byte(h.Kind), byte(h.State)
	binary.LittleEndian.PutUint64(p[8:], uint64(h.Size))
	binary.LittleEndian.PutUint32(p[16:], uint32(content.TableLen(h.Size)/content.HashSize))
	copy(p[24:56], h.ID[:])
	binary.LittleEndian.PutUint32(p[60:], crc32.Checksum(p[:60], castagnoli))
}

// decodeHeader reads a header; whatever it accepts has plausible bounds.
func decodeHeader(p []byte) (header, error) {
	if len(p) < headerSize || string(p[:4]) != headerMagic {
		return header{}, errNoRecord
	}
	if binary.LittleEndian.Uint32(p[60:]) != crc32.Checksum(p[:60], castagnoli) {
		return header{}, errNoRecord
	}
	if p[4] != recordVersion {
		return header{}, errNewRecord
	}
	h := header{Kind: recordKind(p[5]), State: recordState(p[6])}
	size := binary.LittleEndian.Uint64(p[8:])
	if size == 0 || size > meta.BlobMax {
		return header{}, errNoRecord
	}
	h.Size = int64(size)
	copy(h.ID[:], p[24:56])
	switch {
	case h.Kind != kindData && h.Kind != kindLeaves,
		h.State < stateLive, h.State > stateOpen,
		int64(binary.LittleEndian.Uint32(p[16:])) != content.TableLen(h.Size)/content.HashSize:
		return header{}, errNoRecord
	}
	return h, nil
}

// encodeFooter writes the footer of h to the first footerSize bytes of p.
func encodeFooter(p []byte, h header) {
	copy(p, footerMagic)
	binary.LittleEndian.PutUint32(p[4:], uint32(h.length()/recordAlign))
	copy(p[8:footerSize], h.ID[:8])
}

// isFooter reports whether p is the footer of h: the record was written to its end.
func isFooter(p []byte, h header) bool {
	var want [footerSize]byte
	encodeFooter(want[:], h)
	return string(p) == string(want[:])
}
