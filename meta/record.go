package meta

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strconv"
)

// recordEncoding is the version of the digest's input, its first byte.
const recordEncoding = 1

// RecordDigest hashes a record without its revision (P4): SHA-256 over a
// versioned encoding in which integers are 8 bytes big-endian and strings are
// preceded by their length, so that no two records share an encoding.
func RecordDigest(r *Record, session int64) [32]byte { return r.digest(session) }

func (r *Record) digest(session int64) [32]byte {
	var buf [512]byte
	b := append(buf[:0], recordEncoding, byte(r.Kind))
	num := func(v uint64) { b = binary.BigEndian.AppendUint64(b, v) }
	str := func(s string) {
		num(uint64(len(s)))
		b = append(b, s...)
	}
	num(uint64(r.Ino))
	num(uint64(r.Parent))
	str(r.Name)
	num(uint64(r.NewParent))
	str(r.NewName)
	num(uint64(r.Time))
	a := &r.Actor
	num(uint64(a.UID)<<32 | uint64(a.GID))
	num(uint64(a.PID))
	num(a.StartTime)
	for _, s := range [...]string{a.Exe, a.Cgroup, a.Node, a.Agent, a.Task} {
		str(s)
	}
	num(uint64(r.Version))
	num(uint64(r.Size))
	num(uint64(session))
	num(uint64(r.Seq))
	str(r.Before)
	str(r.After)
	return sha256.Sum256(b)
}

// object builds the small JSON objects of a record's Before and After.
type object struct{ b []byte }

func (o *object) key(k string) {
	if len(o.b) == 0 {
		o.b = append(make([]byte, 0, 128), '{')
	} else {
		o.b = append(o.b, ',')
	}
	o.b = append(o.b, '"')
	o.b = append(o.b, k...)
	o.b = append(o.b, '"', ':')
}

// num adds a number.
func (o *object) num(k string, v int64) *object {
	o.key(k)
	o.b = strconv.AppendInt(o.b, v, 10)
	return o
}

// hex adds bytes as a hexadecimal string, whatever they are.
func (o *object) hex(k string, v []byte) *object {
	o.key(k)
	o.b = append(o.b, '"')
	o.b = hex.AppendEncode(o.b, v)
	o.b = append(o.b, '"')
	return o
}

// String returns the object, "" when nothing was added.
func (o *object) String() string {
	if len(o.b) == 0 {
		return ""
	}
	return string(append(o.b, '}'))
}

// dirTimes adds a directory's times before its names changed, under the given
// prefix: Rewind puts them back (P22).
func (o *object) dirTimes(prefix string, a *Attr) *object {
	return o.num(prefix+"mtime", a.Mtime).num(prefix+"ctime", a.Ctime)
}

// diff fills before and after with the fields in which two images differ.
func diff(before, after *Attr) (b, a object) {
	add := func(k string, x, y int64) {
		if x != y {
			b.num(k, x)
			a.num(k, y)
		}
	}
	add("mode", int64(before.Mode), int64(after.Mode))
	add("uid", int64(before.UID), int64(after.UID))
	add("gid", int64(before.GID), int64(after.GID))
	add("nlink", int64(before.Nlink), int64(after.Nlink))
	add("size", before.Size, after.Size)
	add("atime", before.Atime, after.Atime)
	add("mtime", before.Mtime, after.Mtime)
	add("ctime", before.Ctime, after.Ctime)
	add("version", before.Version, after.Version)
	add("parent", int64(before.Parent), int64(after.Parent))
	return b, a
}

// ClampTime keeps a time given in seconds and nanoseconds inside what int64
// nanoseconds can hold (years 1677 to 2262).
func ClampTime(sec int64, nsec uint32) int64 {
	const limit = math.MaxInt64/1_000_000_000 - 1
	sec = max(min(sec, limit), -limit)
	return sec*1_000_000_000 + int64(nsec)
}
