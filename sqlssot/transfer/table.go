package transfer

import (
	"fmt"
	"strings"
)

// Version is that of the description below. It is part of an Origin, so that a
// run is not gone on with by a program that copies other columns.
const Version = 2

// zoneShift is where the zone's number begins in keys (0001_init).
const zoneShift = 48

// Type is what a column holds.
type Type uint8

// The types, and what a Row holds for each; nil stands for NULL.
const (
	Int   Type = iota // int64
	Text              // string of any bytes; an engine whose text holds fewer may store bytes
	Bytes             // []byte, not nil
)

// Ref says whether a number in a column depends on the zone's place in its
// database, and how.
type Ref uint8

// The kinds of numbers.
const (
	Plain   Ref = iota
	Key         // inode, revision, session or actor: the zone's number in the bits from 48 upward; 0 is 'none'
	Zone        // the zone's number
	Mark        // a revision up to which something is done: as a Key, but 0 is the zone's beginning
	BlobRow     // number of a blob's row
	Usage       // counters.id: a Key where kind is 2, else plain
)

// Column is one column of a table.
type Column struct {
	Name string
	Type Type
	Ref  Ref
	// Local says that the value is the database's own: it is copied, or replaced
	// on the way, and not compared.
	Local bool
}

// Table is one table of a zone. The first Keys columns are its primary key and
// order its rows; bytes and text are ordered by their bytes.
type Table struct {
	Name    string
	Keys    int
	Columns []Column
	scope   string // condition for a zone's rows; $lo and $hi are its first and last key, $zone its number
}

// Row is one row: a value for each column, nil, int64, string or []byte.
type Row []any

func num(names string, ref Ref) []Column {
	var out []Column
	for n := range strings.FieldsSeq(names) {
		out = append(out, Column{Name: n, Type: Int, Ref: ref})
	}
	return out
}

func ints(names string) []Column  { return num(names, Plain) }
func keys(names string) []Column  { return num(names, Key) }
func marks(names string) []Column { return num(names, Mark) }

func typed(t Type, names string) []Column {
	out := ints(names)
	for i := range out {
		out[i].Type = t
	}
	return out
}

func local(cols []Column) []Column {
	for i := range cols {
		cols[i].Local = true
	}
	return cols
}

func table(name string, keys int, scope string, columns ...[]Column) *Table {
	t := &Table{Name: name, Keys: keys, scope: scope}
	for _, c := range columns {
		t.Columns = append(t.Columns, c...)
	}
	return t
}

// between is the scope of a table whose first column is a Key.
func between(column string) string { return `"` + column + `" BETWEEN $lo AND $hi` }

// inodeColumns are those of inodes and inode_history behind their keys.
func inodeColumns() []Column {
	return join(ints("mode uid gid nlink rdev flags size bytes entries atime mtime ctime btime"),
		keys("parent"), ints("cookie creator"), keys("rev content_rev"), ints("version"), typed(Bytes, "target"))
}

func join(parts ...[]Column) []Column {
	var out []Column
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// ZoneTable is the zone's own row. A target writes it first, under another
// name, and gives it its name last: that makes the zone.
func ZoneTable() *Table {
	return table("zones", 1, `"zone" = $zone`, num("zone", Zone), local(typed(Text, "name")),
		ints("epoch policy_rev next_ino created"), marks("indexed"))
}

// BlobTable is the one whose rows say where bytes outside of SQL are. Blobs
// that nothing refers to stay behind: their bytes may be going already.
func BlobTable() *Table {
	return table("blobs", 1, `"zone" = $zone AND "refs" > 0`, num("blob", BlobRow), num("zone", Zone), typed(Bytes, "id"), ints("size"),
		local(ints("place segment offset")), ints("refs condemned removing"), typed(Bytes, "data"))
}

// Positions in a row of BlobTable.
const (
	blobID = iota + 2
	blobSize
	blobPlace
	blobSegment
	blobOffset
)

// Tables returns every table of a zone but its own row, in the order in which
// they are copied.
func Tables() []*Table {
	return []*Table{
		table("counters", 3, `"zone" = $zone`, num("zone", Zone), ints("kind"), num("id", Usage), ints("inodes bytes history"),
			marks("rev"), typed(Bytes, "head"), marks("barrier reserved"), ints("topology sessions")),
		table("zone_names", 1, between("rev"), keys("rev"), typed(Text, "name")),
		table("session_rows", 1, between("session"), keys("session"), ints("epoch"), typed(Text, "node"), ints("pid"),
			typed(Text, "boot_id mountpoint"), ints("lease started ended fenced")),
		table("actors", 1, between("actor"), keys("actor"), ints("uid gid pid start"), typed(Text, "exe cgroup node agent task")),
		BlobTable(),
		table("inodes", 1, between("ino"), keys("ino"), inodeColumns()),
		table("inode_history", 2, between("ino"), keys("ino end"), inodeColumns()),
		table("dentries", 3, between("parent"), keys("parent"), ints("cookie"), typed(Bytes, "name"), keys("ino"), ints("type"), keys("begin")),
		table("dentry_history", 4, between("parent"), keys("parent"), ints("cookie"), typed(Bytes, "name"), keys("end"),
			keys("ino"), ints("type"), keys("begin")),
		table("xattrs", 2, between("ino"), keys("ino"), typed(Bytes, "name value"), keys("begin")),
		table("xattr_history", 3, between("ino"), keys("ino"), typed(Bytes, "name"), keys("end"), typed(Bytes, "value"), keys("begin")),
		table("extents", 2, between("ino"), keys("ino"), ints("off len"), num("blob", BlobRow), ints("blob_off"), keys("begin")),
		table("extent_history", 3, between("ino"), keys("ino"), ints("off"), keys("end"), ints("len"), num("blob", BlobRow),
			ints("blob_off"), keys("begin")),
		table("version_rows", 2, between("ino"), keys("ino"), ints("n"), keys("first_rev rev"), ints("size"), keys("actor"), ints("time")),
		table("operation_records", 1, between("rev"), keys("rev"), ints("kind"), keys("ino parent"), typed(Bytes, "name"),
			keys("new_parent"), typed(Bytes, "new_name"), ints("time"), keys("actor"), ints("version size session seq"),
			typed(Text, "before after"), typed(Bytes, "digest"), ints("batch"), typed(Bytes, "head")),
		table("record_index", 2, between("ino"), keys("ino rev")),
		table("late_answers", 2, between("rev"), keys("rev"), typed(Text, "reason"), ints("time")),
		table("chain_seals", 1, between("rev"), keys("rev"), typed(Bytes, "head"), ints("time")),
	}
}

// Dialect is what differs between the engines in the statements below. They
// take parameters as $1, $2 ..., which both SQLite and PostgreSQL know.
type Dialect struct {
	TextOrder string // after a column of text: orders and compares it by its bytes
}

func quoted(names []Column, d Dialect) []string {
	out := make([]string, len(names))
	for i, c := range names {
		out[i] = `"` + c.Name + `"`
		if c.Type == Text {
			out[i] += d.TextOrder
		}
	}
	return out
}

// Names lists the columns as a statement does.
func (t *Table) Names() string { return strings.Join(quoted(t.Columns, Dialect{}), ",") }

func params(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "$%d", i+1)
	}
	return b.String()
}

// Where is the condition for the rows of the zone with a number.
func (t *Table) Where(zone int64) string {
	lo, hi := zone<<zoneShift, zone<<zoneShift|(1<<zoneShift-1)
	return strings.NewReplacer("$lo", fmt.Sprint(lo), "$hi", fmt.Sprint(hi), "$zone", fmt.Sprint(zone)).Replace(t.scope)
}

// Select reads a zone's rows in the order of their keys; with after those
// behind a key, which are its parameters.
func (t *Table) Select(zone int64, after bool, d Dialect) string {
	key := strings.Join(quoted(t.Columns[:t.Keys], d), ",")
	where := t.Where(zone)
	if after {
		where += fmt.Sprintf(" AND (%s) > (%s)", key, params(t.Keys))
	}
	return fmt.Sprintf("SELECT %s FROM %s WHERE %s ORDER BY %s", t.Names(), t.Name, where, key)
}

// SelectLast reads the key of a zone's last row.
func (t *Table) SelectLast(zone int64, d Dialect) string {
	key := quoted(t.Columns[:t.Keys], d)
	return fmt.Sprintf("SELECT %s FROM %s WHERE %s ORDER BY %s DESC LIMIT 1",
		strings.Join(quoted(t.Columns[:t.Keys], Dialect{}), ","), t.Name, t.Where(zone), strings.Join(key, " DESC,"))
}

// SelectCount counts a zone's rows.
func (t *Table) SelectCount(zone int64) string {
	return fmt.Sprintf("SELECT count(*) FROM %s WHERE %s", t.Name, t.Where(zone))
}

// Insert writes one row; its columns are the parameters.
func (t *Table) Insert() string {
	return fmt.Sprintf("INSERT INTO %s(%s) VALUES(%s)", t.Name, t.Names(), params(len(t.Columns)))
}
