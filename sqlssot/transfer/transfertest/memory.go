package transfertest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
)

// Memory is a zone in memory: a transfer.Source and a transfer.Target.
type Memory struct {
	origin transfer.Origin
	rows   map[string][]transfer.Row
	begun  bool
	done   bool

	Name    string                               // of the zone; "": the origin's
	Numbers *transfer.Numbers                    // those that a target gives; nil: the origin's
	Change  func(table string, row transfer.Row) // what Import does to rows before it keeps them; nil: nothing
}

// NewMemory returns an empty target.
func NewMemory() *Memory { return &Memory{rows: map[string][]transfer.Row{}} }

// Origin implements transfer.Source.
func (m *Memory) Origin(context.Context) (transfer.Origin, error) { return m.origin, nil }

// Count implements transfer.Source.
func (m *Memory) Count(_ context.Context, t *transfer.Table) (int64, error) {
	return int64(len(m.rows[t.Name])), nil
}

// Outside implements transfer.Source.
func (m *Memory) Outside(context.Context) (blobs, bytes int64, err error) {
	for _, row := range m.rows["blobs"] {
		if transfer.PlaceOf(row)[0] != int64(meta.PlaceInline) {
			blobs++
			bytes += row[3].(int64)
		}
	}
	return blobs, bytes, nil
}

// Export implements transfer.Source.
func (m *Memory) Export(ctx context.Context, t *transfer.Table, after transfer.Row, fn func(transfer.Row) error) error {
	list := slices.Clone(m.rows[t.Name])
	slices.SortFunc(list, func(a, b transfer.Row) int { return compareKeys(t, a, b) })
	for _, row := range list {
		if err := ctx.Err(); err != nil {
			return meta.E("export", 0, "", meta.KindInterrupted, err)
		}
		if after != nil && compareKeys(t, row, after) <= 0 {
			continue
		}
		if err := fn(slices.Clone(row)); err != nil {
			return err
		}
	}
	return nil
}

func compareKeys(t *transfer.Table, a, b transfer.Row) int {
	for i := range t.Keys {
		c := 0
		switch x := a[i].(type) {
		case int64:
			c = cmp.Compare(x, b[i].(int64))
		case string:
			c = strings.Compare(x, b[i].(string))
		case []byte:
			c = slices.Compare(x, b[i].([]byte))
		}
		if c != 0 {
			return c
		}
	}
	return 0
}

// Begin implements transfer.Target.
func (m *Memory) Begin(_ context.Context, o transfer.Origin, zone transfer.Row) (transfer.Numbers, bool, bool, error) {
	if m.begun && !o.Same(m.origin) {
		return transfer.Numbers{}, false, false, meta.E("begin", 0, "", meta.KindExist, nil)
	}
	n := o.Numbers
	if m.Numbers != nil {
		n = *m.Numbers
	}
	begun := m.begun
	if !begun {
		zone = slices.Clone(zone)
		if err := (transfer.Mapping{From: o.Numbers, To: n}).Row(transfer.ZoneTable(), zone); err != nil {
			return n, false, false, err
		}
		m.origin, m.begun = o, true
		m.origin.Numbers = n
		m.rows["zones"] = []transfer.Row{zone}
	}
	return n, begun && !m.done, m.done, nil
}

// Last implements transfer.Target.
func (m *Memory) Last(_ context.Context, t *transfer.Table) (transfer.Row, error) {
	list := m.rows[t.Name]
	if len(list) == 0 {
		return nil, nil
	}
	return slices.Clone(slices.MaxFunc(list, func(a, b transfer.Row) int { return compareKeys(t, a, b) })[:t.Keys]), nil
}

// Import implements transfer.Target.
func (m *Memory) Import(_ context.Context, t *transfer.Table, list []transfer.Row) error {
	for _, row := range list {
		row = slices.Clone(row)
		if m.Change != nil {
			m.Change(t.Name, row)
		}
		m.rows[t.Name] = append(m.rows[t.Name], row)
	}
	return nil
}

// Placed implements transfer.Target.
func (m *Memory) Placed(_ context.Context, b meta.Blob) (bool, error) {
	return slices.ContainsFunc(m.rows["blobs"], func(row transfer.Row) bool {
		p := transfer.PlaceOf(row)
		return string(row[2].([]byte)) == string(b.ID[:]) && p[0] == int64(b.Place) && p[1] == b.Segment && p[2] == b.Offset
	}), nil
}

// VerifyChain implements transfer.Target: memory has no chain of its own to verify.
func (m *Memory) VerifyChain(context.Context, meta.Rev, func(meta.Finding)) (int64, error) {
	return int64(len(m.rows["operation_records"])), nil
}

// Whole reports whether a migration into it has come to its end.
func (m *Memory) Whole() bool { return m.done }

// Finish implements transfer.Target.
func (m *Memory) Finish(context.Context) error {
	m.done = true
	if m.Name == "" || m.Name == m.origin.Name {
		return nil
	}
	names, rev := m.rows["zone_names"], m.origin.Numbers.Zone<<zoneShift|int64(m.origin.Rev)
	if len(names) == 0 || names[len(names)-1][0].(int64) < rev {
		m.rows["zone_names"] = append(names, transfer.Row{rev, m.origin.Name})
	}
	m.origin.Name = m.Name
	return nil
}

// Content is a content store in memory; only what a migration calls works.
type Content struct {
	meta.Content
	mu     sync.Mutex
	blobs  map[int64][]byte // guarded by mu: by offset
	next   int64            // guarded by mu
	Broken meta.BlobID      // reading it gives KindDamaged
}

// NewContent returns an empty store.
func NewContent() *Content { return &Content{blobs: map[int64][]byte{}} }

// ID implements meta.Content, by another hash than the real ones.
func (c *Content) ID(data []byte) meta.BlobID { return sha256.Sum256(data) }

// Put implements meta.Content.
func (c *Content) Put(_ context.Context, data []byte) (meta.Blob, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	c.blobs[c.next] = slices.Clone(data)
	return meta.Blob{ID: c.ID(data), Size: int64(len(data)), Place: meta.PlacePack, Segment: 1, Offset: c.next}, nil
}

// Read implements meta.Content.
func (c *Content) Read(_ context.Context, b meta.Blob, off int64, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, ok := c.blobs[b.Offset]
	if !ok || c.ID(data) != b.ID || b.ID == c.Broken {
		return meta.E("read", 0, "", meta.KindDamaged, errors.New("not these bytes"))
	}
	copy(p, data[off:])
	return nil
}

// Sync implements meta.Content.
func (c *Content) Sync(context.Context) error { return nil }

// Walk implements meta.Content.
func (c *Content) Walk(_ context.Context, fn func(meta.Blob) error) error {
	c.mu.Lock()
	var list []meta.Blob
	for off, data := range c.blobs {
		list = append(list, meta.Blob{ID: c.ID(data), Size: int64(len(data)), Place: meta.PlacePack, Segment: 1, Offset: off})
	}
	c.mu.Unlock()
	for _, b := range list {
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

// Free implements meta.Content.
func (c *Content) Free(_ context.Context, list []meta.Blob) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range list {
		delete(c.blobs, b.Offset)
	}
	return nil
}

// Len returns the number of blobs.
func (c *Content) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.blobs)
}
