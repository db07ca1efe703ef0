package transfertest

import (
	"context"
	"fmt"
	"strings"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
	"nexusfs/sqlssot/transfer"
)

const zoneShift = 48

// formerName is what the zone of NewZone was called up to revision 2.
const formerName = "former"

// NewZone makes a zone with rows in every table, with values that an engine
// could get wrong: extreme numbers, NULL beside the empty value, names of any
// bytes, text that is no UTF-8, keys whose order depends on how they are
// compared. Its chain verifies. Nothing in it makes sense as a filesystem.
func NewZone(name string, n transfer.Numbers, content *Content) *Memory {
	z := &zoneMaker{m: NewMemory(), name: name, base: n.Zone << zoneShift, n: n}
	z.m.begun = true
	z.m.origin = transfer.Origin{Version: transfer.Version, Name: name, Created: 12345, Sessions: 7, Numbers: n, LastBlob: 300, LastActor: 3}
	z.add("zones", n.Zone, name, 3, 4, 1<<20, 12345, z.base|2)
	z.add("zone_names", z.base|2, formerName)
	z.records()
	for i := range 3 {
		z.add("session_rows", z.base|int64(i+1), i+1, "node\xff", 42, "boot", "/mnt/ä", 10, 20, null(i > 0, 30), int64(i&1))
		z.add("actors", z.base|int64(i+1), 1000, 1000, 77, 1<<62, "/bin/\xfe", "", "node", strings.Repeat("agent ", i), "")
	}
	z.blobs(content)
	for i, name := range []string{"a", "B", "ä", "\xff", "\x01", "a\x7f", strings.Repeat("n", 255)} {
		ino := z.base | int64(i+1)
		inode := []any{0o100644, 1<<32 - 1, 0, 1, 1<<32 - 1, 3, int64(1<<63 - 1), 5, 0, -1, int64(-1 << 63), 1, 2, z.base | 1, 1<<63 - 1, -1, z.base | 2, z.base | 1, 9, null(i > 1, []byte(name))}
		z.add("inodes", append([]any{ino}, inode...)...)
		z.add("inode_history", append([]any{ino, z.base | 2}, inode...)...)
		z.add("dentries", z.base|1, int64(7), []byte(name), ino, 8, z.base|1)
		z.add("dentry_history", z.base|1, int64(7), []byte(name), z.base|2, ino, 8, z.base|1)
		z.add("xattrs", z.base|1, []byte("user."+name), []byte{}, z.base|1)
		z.add("xattr_history", z.base|1, []byte("user."+name), z.base|2, []byte("\x00\xff"), z.base|1)
		z.add("extents", ino, int64(i), 10, n.Blob+int64(i+1), 0, z.base|1)
		z.add("extent_history", ino, int64(1)<<62, z.base|2, 10, n.Blob+int64(i+1), 3, z.base|1)
		z.add("version_rows", ino, 1, z.base|1, z.base|2, 99, null(i > 0, z.base|3), 5)
		z.add("record_index", ino, z.base|1)
		z.add("late_answers", z.base|1, "reason "+strings.ToValidUTF8(name, "?"), 5)
	}
	return z.m
}

type zoneMaker struct {
	m    *Memory
	name string
	base int64
	n    transfer.Numbers
}

// null is nil unless has.
func null(has bool, v any) any {
	if has {
		return v
	}
	return nil
}

// add appends a row; ints become int64.
func (z *zoneMaker) add(table string, values ...any) {
	row := make(transfer.Row, len(values))
	for i, v := range values {
		if n, ok := v.(int); ok {
			v = int64(n)
		}
		row[i] = v
	}
	z.m.rows[table] = append(z.m.rows[table], row)
}

// records makes two batches and the counters that their chain ends in.
func (z *zoneMaker) records() {
	var head chain.Hash
	for batch := range 2 {
		first := int64(batch*2 + 1)
		var digests []chain.Hash
		for i := range int64(2) {
			r := meta.Record{Kind: meta.OpCreate, Ino: meta.Ino(first + i), Parent: 1, Name: fmt.Sprintf("\xfename%d", i),
				Time: 100 + first, Actor: meta.Actor{UID: 1000, GID: 1000, PID: 77, StartTime: 1 << 62, Exe: "/bin/\xfe", Node: "node"}, Seq: first + i, After: `{"a":1}`}
			digests = append(digests, meta.RecordDigest(&r, 5))
			last, size := any(nil), any(nil)
			if i == 1 {
				head = chain.Next(head, chain.NameAt([]chain.Name{{Until: 2, Name: formerName}}, z.name, first), first, digests)
				last, size = append([]byte{}, head[:]...), int64(2)
			}
			d := digests[i]
			if i == 1 && batch == 0 {
				z.add("chain_seals", z.base|(first+i), append([]byte{}, head[:]...), 5)
			}
			z.add("operation_records", z.base|(first+i), int64(r.Kind), z.base|int64(r.Ino), z.base|1, []byte(r.Name), 0, nil, r.Time, z.base|1,
				0, 0, 5, r.Seq, nil, r.After, d[:], size, last)
		}
	}
	z.m.origin.Rev, z.m.origin.Head = 4, head
	z.add("counters", z.n.Zone, 0, 0, 10, 20, 30, z.base|4, append([]byte{}, head[:]...), z.base|1, z.base|1000, 6, 7)
	z.add("counters", z.n.Zone, 1, 1000, 10, 20, nil, nil, nil, nil, nil, nil, nil)
	z.add("counters", z.n.Zone, 2, z.base|9, 1, 2, nil, nil, nil, nil, nil, nil, nil) // a quota's root is an inode
}

// blobs makes some that ride in SQL and some that do not.
func (z *zoneMaker) blobs(content *Content) {
	for i := range int64(300) {
		data := []byte(strings.Repeat(fmt.Sprintf("blob %d of %s ", i, z.name), int(i%9+1)))
		id := content.ID(data)
		if i%2 == 0 {
			z.add("blobs", z.n.Blob+i+1, z.n.Zone, id[:], int64(len(data)), 0, 0, 0, 2, nil, 0, data)
			continue
		}
		b, err := content.Put(context.Background(), data)
		if err != nil {
			panic(err) // memory does not fail
		}
		z.add("blobs", z.n.Blob+i+1, z.n.Zone, id[:], b.Size, int64(b.Place), b.Segment, b.Offset, 1, nil, 0, nil)
	}
}
