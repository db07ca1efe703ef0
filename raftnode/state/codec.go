package state

import (
	"encoding/binary"
	"errors"
)

// codec writes or reads one value: a type describes its fields once, in code,
// and both directions follow. Writing leaves the value alone: others may read it. Integers are varints, strings and lists are
// preceded by their length.
type codec struct {
	b    []byte // what is written, or what is left to read
	read bool
	err  error // the first
}

var errEncoding = errors.New("the encoding is damaged")

// damaged notes that what is read makes no sense.
func (c *codec) damaged() {
	if c.err == nil {
		c.err = errEncoding
	}
	c.b = nil
}

// unsigned codes an unsigned number.
func unsigned[T ~uint8 | ~uint16 | ~uint32 | ~uint64](c *codec, v *T) {
	if !c.read {
		c.b = binary.AppendUvarint(c.b, uint64(*v))
		return
	}
	x, n := binary.Uvarint(c.b)
	if n <= 0 || uint64(T(x)) != x {
		c.damaged()
		return
	}
	*v, c.b = T(x), c.b[n:]
}

// signed codes a signed number.
func signed[T ~int64](c *codec, v *T) {
	if !c.read {
		c.b = binary.AppendVarint(c.b, int64(*v))
		return
	}
	x, n := binary.Varint(c.b)
	if n <= 0 {
		c.damaged()
		return
	}
	*v, c.b = T(x), c.b[n:]
}

func (c *codec) bool(v *bool) {
	var x uint8
	if *v {
		x = 1
	}
	if unsigned(c, &x); c.read {
		*v = x == 1
	}
	if x > 1 {
		c.damaged()
	}
}

func (c *codec) string(v *string) {
	n := uint64(len(*v))
	unsigned(c, &n)
	if !c.read {
		c.b = append(c.b, *v...)
		return
	}
	if n > uint64(len(c.b)) {
		c.damaged()
		return
	}
	*v, c.b = string(c.b[:n]), c.b[n:]
}

func (c *codec) bytes(v *[]byte) {
	s := string(*v)
	if c.string(&s); c.read {
		*v = []byte(s)
	}
}

func (c *codec) hash(v *[32]byte) {
	if !c.read {
		c.b = append(c.b, v[:]...)
		return
	}
	if len(c.b) < len(v) {
		c.damaged()
		return
	}
	c.b = c.b[copy(v[:], c.b):]
}

// list codes a slice; an empty one is read as nil.
func list[T any](c *codec, v *[]T, elem func(*codec, *T)) {
	n := uint64(len(*v))
	unsigned(c, &n)
	if !c.read {
		for i := range *v {
			elem(c, &(*v)[i])
		}
		return
	}
	if n > uint64(len(c.b)) { // each element takes a byte at least
		c.damaged()
		return
	}
	*v = nil
	for range n {
		var e T
		if elem(c, &e); c.err != nil {
			return
		}
		*v = append(*v, e)
	}
}

// coded is a type that describes its fields.
type coded interface{ code(*codec) }

// encode appends v to b.
func encode(b []byte, v coded) []byte {
	c := codec{b: b}
	v.code(&c)
	return c.b
}

// decode reads v, which must be all of b.
func decode(b []byte, v coded) error {
	c := codec{b: b, read: true}
	v.code(&c)
	if c.err == nil && len(c.b) > 0 {
		c.err = errEncoding
	}
	return c.err
}
