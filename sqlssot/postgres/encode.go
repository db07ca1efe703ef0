package postgres

import (
	"encoding/binary"
	"errors"
)

// OIDs of the server's own types.
const (
	oidInt8  = 20
	oidBytea = 17
	oidText  = 25
)

// rowType is a composite type of ours and the type of its arrays.
type rowType struct{ elem, array uint32 }

// rowSet is an array of rows in the server's binary format: per row its length
// and number of fields, per field type, length and bytes. It is encoded by hand
// because the driver's reflection costs more than the server needs for the rows
// (docs/adr/0005-postgres-commit.md).
type rowSet struct {
	b     []byte
	n     uint32
	start int // where the row being written begins
}

func (r *rowSet) reset() { r.b, r.n = r.b[:0], 0 }

// row begins a row of so many fields; end ends it.
func (r *rowSet) row(fields int) {
	r.start = len(r.b)
	r.b = binary.BigEndian.AppendUint32(r.b, 0)
	r.b = binary.BigEndian.AppendUint32(r.b, uint32(fields))
}

func (r *rowSet) end() {
	binary.BigEndian.PutUint32(r.b[r.start:], uint32(len(r.b)-r.start-4))
	r.n++
}

// ints appends integer fields.
func (r *rowSet) ints(values ...int64) {
	for _, v := range values {
		r.b = binary.BigEndian.AppendUint32(r.b, oidInt8)
		r.b = binary.BigEndian.AppendUint32(r.b, 8)
		r.b = binary.BigEndian.AppendUint64(r.b, uint64(v))
	}
}

const nullField = 0xffffffff // length of a NULL

// null appends integer fields that are NULL.
func (r *rowSet) null(n int) {
	for range n {
		r.b = binary.BigEndian.AppendUint32(r.b, oidInt8)
		r.b = binary.BigEndian.AppendUint32(r.b, nullField)
	}
}

// changed appends a value, NULL where it did not change.
func (r *rowSet) changed(before, after int64) {
	if before == after {
		r.null(1)
		return
	}
	r.ints(after)
}

// bytes appends a bytea field; nil is NULL.
func (r *rowSet) bytes(v []byte) {
	r.b = binary.BigEndian.AppendUint32(r.b, oidBytea)
	if v == nil {
		r.b = binary.BigEndian.AppendUint32(r.b, nullField)
		return
	}
	r.b = binary.BigEndian.AppendUint32(r.b, uint32(len(v)))
	r.b = append(r.b, v...)
}

// name appends a bytea field; "" is NULL.
func (r *rowSet) name(v string) { r.text(oidBytea, v) }

// string appends a text field; "" is NULL.
func (r *rowSet) string(v string) { r.text(oidText, v) }

func (r *rowSet) text(oid uint32, v string) {
	r.b = binary.BigEndian.AppendUint32(r.b, oid)
	if v == "" {
		r.b = binary.BigEndian.AppendUint32(r.b, nullField)
		return
	}
	r.b = binary.BigEndian.AppendUint32(r.b, uint32(len(v)))
	r.b = append(r.b, v...)
}

// appendTo appends the set as a field of a composite value; an empty one is NULL.
func (r *rowSet) appendTo(b []byte, t rowType) []byte {
	b = binary.BigEndian.AppendUint32(b, t.array)
	if r.n == 0 {
		return binary.BigEndian.AppendUint32(b, nullField)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(arrayHeader+len(r.b)))
	return r.appendArray(b, t)
}

const arrayHeader = 20 // bytes before the elements of an array

// appendArray appends the set as an array.
func (r *rowSet) appendArray(b []byte, t rowType) []byte {
	for _, v := range [...]uint32{1, 0, t.elem, r.n, 1} { // dimensions, no NULLs, type, length, first index
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return append(b, r.b...)
}

func encodeInt(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }

func encodeBool(v bool) []byte {
	if v {
		return []byte{1}
	}
	return []byte{0}
}

var errFormat = errors.New("the server answered in an unknown format")

// decodeInts reads a bigint array without NULLs in binary format.
func decodeInts(b []byte) ([]int64, error) {
	if len(b) < 12 {
		return nil, errFormat
	}
	if binary.BigEndian.Uint32(b) == 0 {
		return nil, nil
	}
	if len(b) < 20 || binary.BigEndian.Uint32(b) != 1 || binary.BigEndian.Uint32(b[8:]) != oidInt8 {
		return nil, errFormat
	}
	n := int(binary.BigEndian.Uint32(b[12:]))
	if b = b[20:]; len(b) != 12*n {
		return nil, errFormat
	}
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(binary.BigEndian.Uint64(b[12*i+4:]))
	}
	return out, nil
}
