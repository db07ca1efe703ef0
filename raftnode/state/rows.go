package state

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"nexusfs/meta"
)

// The state is kept as rows, one for each thing in it: so that an entry writes
// what it changed, and a snapshot is all of them. The first byte of a key says
// what its row holds.
const (
	tableMeta    = 'm'
	tableZone    = 'z'
	tablePending = 'p'
	tableSession = 's'
	tableFile    = 'f'
	tableNamed   = 'n'
	tableClient  = 'c'
	tableMember  = 'e'
	tableJoin    = 't'
)

// Row is one piece of the state. A nil Value says that it is gone.
type Row struct{ Key, Value []byte }

// Place says in which bucket of the store a row belongs.
type Place uint8

// The places.
const (
	PlaceState     Place = iota // members, clients, tokens, and what stands once
	PlaceRevisions              // zones
	PlaceLocks                  // sessions and locks
)

// Place returns where the row belongs.
func (r Row) Place() Place {
	switch r.Key[0] {
	case tableZone, tablePending:
		return PlaceRevisions
	case tableSession, tableFile, tableNamed:
		return PlaceLocks
	}
	return PlaceState
}

func rowMeta() string            { return string(rune(tableMeta)) }
func rowZone(zone string) string { return string(rune(tableZone)) + zone }

func numbered(table byte, zone string, n uint64) string {
	return string(binary.BigEndian.AppendUint64(append(append([]byte{table}, zone...), 0), n))
}

func rowPending(zone string, first meta.Rev) string {
	return numbered(tablePending, zone, uint64(first))
}
func rowSession(k SessionKey) string { return numbered(tableSession, k.Zone, uint64(k.ID)) }
func rowFile(k FileKey) string       { return numbered(tableFile, k.Zone, uint64(k.Ino)) }
func rowNamed(k NameKey) string      { return string(rune(tableNamed)) + k.Zone + "\x00" + k.Name }
func rowClient(id NodeID) string     { return numbered(tableClient, "", uint64(id)) }
func rowMember(id NodeID) string     { return numbered(tableMember, "", uint64(id)) }
func rowJoin(h [32]byte) string      { return string(rune(tableJoin)) + string(h[:]) }

func (s *State) touch(row string) { s.dirty[row] = struct{}{} }

func sortedFiles(m map[FileKey]*FileLocks) []FileKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b FileKey) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Ino, b.Ino))
	})
}

func sortedNames(m map[NameKey]*Named) []NameKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b NameKey) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Name, b.Name))
	})
}

func sortedJoins(m map[[32]byte]*JoinToken) [][32]byte {
	return slices.SortedFunc(maps.Keys(m), func(a, b [32]byte) int { return slices.Compare(a[:], b[:]) })
}

// metaRow is what stands once.
type metaRow struct {
	version uint16
	index   uint64
	time    int64
	token   uint64
	removed []former
}

func (m *metaRow) code(c *codec) {
	unsigned(c, &m.version)
	unsigned(c, &m.index)
	signed(c, &m.time)
	unsigned(c, &m.token)
	list(c, &m.removed, func(c *codec, f *former) {
		unsigned(c, &f.id)
		c.string(&f.address)
	})
}

// former is a member that was removed.
type former struct {
	id      NodeID
	address string
}

// formers returns the removed members in order.
func (s *State) formers() []former {
	var out []former
	for _, id := range slices.Sorted(maps.Keys(s.Removed)) {
		out = append(out, former{id, s.Removed[id]})
	}
	return out
}

// Changed returns the rows that differ from what it returned before, in the
// order of their keys.
func (s *State) Changed() []Row {
	rows := make([]Row, 0, len(s.dirty))
	for _, key := range slices.Sorted(maps.Keys(s.dirty)) {
		rows = append(rows, Row{[]byte(key), s.row(key)})
	}
	clear(s.dirty)
	return rows
}

// All returns every row, in the order of their keys.
func (s *State) All() []Row {
	keys := []string{rowMeta()}
	for name, z := range s.Zones {
		keys = append(keys, rowZone(name))
		for _, p := range z.Pending {
			keys = append(keys, rowPending(name, p.First))
		}
	}
	for k := range s.Sessions {
		keys = append(keys, rowSession(k))
	}
	for k := range s.Files {
		keys = append(keys, rowFile(k))
	}
	for k := range s.Names {
		keys = append(keys, rowNamed(k))
	}
	for k := range s.clients {
		keys = append(keys, rowClient(k))
	}
	for k := range s.Members {
		keys = append(keys, rowMember(k))
	}
	for k := range s.Joins {
		keys = append(keys, rowJoin(k))
	}
	slices.Sort(keys)
	rows := make([]Row, len(keys))
	for i, k := range keys {
		rows[i] = Row{[]byte(k), s.row(k)}
	}
	return rows
}

// row encodes one row; nil when what it holds is gone.
func (s *State) row(key string) []byte {
	zone, num := splitKey(key)
	switch key[0] {
	case tableMeta:
		return encode(nil, &metaRow{s.Version, s.Index, s.Time, s.Token, s.formers()})
	case tableZone:
		return encodeIf(s.Zones[key[1:]])
	case tablePending:
		if z := s.Zones[zone]; z != nil {
			for _, p := range z.Pending {
				if p.First == meta.Rev(num) {
					return encode(nil, p)
				}
			}
		}
	case tableSession:
		return encodeIf(s.Sessions[SessionKey{zone, int64(num)}])
	case tableFile:
		return encodeIf(s.Files[FileKey{zone, meta.Ino(num)}])
	case tableNamed:
		zone, name := cutZone(key)
		return encodeIf(s.Names[NameKey{zone, name}])
	case tableClient:
		return encodeIf(s.clients[NodeID(num)])
	case tableMember:
		return encodeIf(s.Members[NodeID(num)])
	case tableJoin:
		return encodeIf(s.Joins[[32]byte([]byte(key[1:]))])
	}
	return nil
}

// splitKey takes a numbered key apart; of others it returns nonsense.
func splitKey(key string) (zone string, num uint64) {
	if len(key) < 10 {
		return "", 0
	}
	return key[1 : len(key)-9], binary.BigEndian.Uint64([]byte(key[len(key)-8:]))
}

// cutZone takes a named lock's key apart.
func cutZone(key string) (zone, name string) {
	for i := 1; i < len(key); i++ {
		if key[i] == 0 {
			return key[1:i], key[i+1:]
		}
	}
	return key[1:], ""
}

func encodeIf[T any, P interface {
	*T
	coded
}](v P) []byte {
	if v == nil {
		return nil
	}
	return encode(nil, v)
}

// Restore makes the state that rows hold. It refuses rows of a version that the
// program does not know (ErrNewer), and damaged ones.
func Restore(known uint16, rows []Row) (*State, error) {
	s := New(known)
	for _, r := range rows {
		if err := s.load(r); err != nil {
			return nil, fmt.Errorf("row %q of the state: %w", r.Key, err)
		}
	}
	if s.Version > known {
		return nil, fmt.Errorf("state of version %d: %w", s.Version, ErrNewer)
	}
	return s, nil
}

func (s *State) load(r Row) error {
	if len(r.Key) == 0 {
		return errEncoding
	}
	zone, num := splitKey(string(r.Key))
	switch r.Key[0] {
	case tableMeta:
		var m metaRow
		if err := decode(r.Value, &m); err != nil {
			return err
		}
		s.Version, s.Index, s.Time, s.Token = m.version, m.index, m.time, m.token
		for _, f := range m.removed {
			s.Removed[f.id] = f.address
		}
		return nil
	case tableZone:
		z := new(Zone)
		if old := s.Zones[string(r.Key[1:])]; old != nil {
			z.Pending = old.Pending
		}
		s.Zones[string(r.Key[1:])] = z
		return decode(r.Value, z)
	case tablePending:
		if s.Zones[zone] == nil {
			s.Zones[zone] = new(Zone) // its own row comes later
		}
		p := new(Span)
		s.Zones[zone].Pending = append(s.Zones[zone].Pending, p)
		return decode(r.Value, p)
	case tableSession:
		return loadInto(s.Sessions, SessionKey{zone, int64(num)}, r.Value)
	case tableFile:
		return loadInto(s.Files, FileKey{zone, meta.Ino(num)}, r.Value)
	case tableNamed:
		z, name := cutZone(string(r.Key))
		return loadInto(s.Names, NameKey{z, name}, r.Value)
	case tableClient:
		return loadInto(s.clients, NodeID(num), r.Value)
	case tableMember:
		return loadInto(s.Members, NodeID(num), r.Value)
	case tableJoin:
		if len(r.Key) != 33 {
			return errEncoding
		}
		return loadInto(s.Joins, [32]byte(r.Key[1:]), r.Value)
	}
	return errEncoding
}

func loadInto[K comparable, T any, P interface {
	*T
	coded
}](m map[K]P, key K, value []byte) error {
	v := P(new(T))
	m[key] = v
	return decode(value, v)
}

// snapshot is how a state travels.
type snapshot struct {
	version uint16
	rows    []Row
}

func (s *snapshot) code(c *codec) {
	unsigned(c, &s.version)
	list(c, &s.rows, func(c *codec, r *Row) {
		c.bytes(&r.Key)
		c.bytes(&r.Value)
	})
}

// Snapshot returns the whole state's bytes.
func (s *State) Snapshot() []byte {
	return encode(nil, &snapshot{s.Version, s.All()})
}

// FromSnapshot reads what Snapshot returned. ErrNewer if known is lower than its
// version.
func FromSnapshot(known uint16, b []byte) (*State, error) {
	var snap snapshot
	head := codec{b: b, read: true}
	if unsigned(&head, &snap.version); head.err == nil && snap.version > known {
		return nil, fmt.Errorf("snapshot of version %d: %w", snap.version, ErrNewer)
	}
	if err := decode(b, &snap); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return Restore(known, snap.rows)
}

// HasChanged reports whether Changed would return rows.
func (s *State) HasChanged() bool { return len(s.dirty) > 0 }
