package meta

import (
	"context"
	"sort"
)

// Named limits of reading extents.
const (
	firstWindow  = 64      // extents read for a file's first bytes, inline bytes included
	mapWindow    = 4096    // extents that a file keeps at most
	mappedMax    = 1 << 18 // extents that all files keep together
	inlineWindow = 256     // extents read at once when their bytes come along
)

// extentSource reads extents in order: of a file now, or as of a revision.
type extentSource func(ctx context.Context, off, end int64, limit int, inline bool) ([]Extent, error)

// mapping is a window of a file's extents, kept while its content stays the
// same. Inline bytes are not kept: the kernel has the pages.
type mapping struct {
	rev      Rev // Attr.ContentRev that it belongs to
	off, end int64
	extents  []Extent
}

// covers reports whether the mapping serves [off, end) of the content of rev.
func (m *mapping) covers(rev Rev, off, end int64) bool {
	return m != nil && m.rev == rev && m.off <= off && end <= m.end
}

// overlapping returns the extents that overlap [off, end); list is ascending.
func overlapping(list []Extent, off, end int64) []Extent {
	i := sort.Search(len(list), func(i int) bool { return list[i].Off+list[i].Len > off })
	j := i + sort.Search(len(list)-i, func(j int) bool { return list[i+j].Off >= end })
	return list[i:j]
}

// hasInline reports whether bytes of the list lie in SQL.
func hasInline(list []Extent) bool {
	for i := range list {
		if list[i].Blob.Place == PlaceInline {
			return true
		}
	}
	return false
}

// unmap drops a node's mapping; the caller holds n.mu.
func (fs *FS) unmap(n *node) {
	if n.mapping != nil {
		fs.nodes.mapped.Add(-int64(len(n.mapping.extents)))
		n.mapping = nil
	}
	n.mapMiss = 0
}

// unmapOpen drops the mapping of a file that may be open.
func (fs *FS) unmapOpen(ino Ino) {
	n := fs.useNode(ino)
	if n == nil {
		return
	}
	n.mu.Lock()
	fs.unmap(n)
	n.mu.Unlock()
	fs.closeNode(n)
}

// remap keeps a mapping, unless all files together have enough of them.
func (fs *FS) remap(n *node, m *mapping) {
	n.mu.Lock()
	defer n.mu.Unlock()
	miss := n.mapMiss
	fs.unmap(n)
	n.mapMiss = miss + 1
	if fs.nodes.mapped.Load()+int64(len(m.extents)) > mappedMax {
		return
	}
	fs.nodes.mapped.Add(int64(len(m.extents)))
	n.mapping = m
}

// sourceOf reads the current extents of a file.
func (fs *FS) sourceOf(ino Ino) extentSource {
	return func(ctx context.Context, off, end int64, limit int, inline bool) ([]Extent, error) {
		return fs.o.Store.Extents(ctx, ino, off, end, limit, inline)
	}
}

// extentsFor returns the extents of a file that overlap [off, end), with inline
// bytes, from the node's mapping or from SQL.
//
// The first read of a file fetches a few extents and their bytes: that is all
// there is to most files. When further reads miss, the whole file's extents
// are fetched, or as large a window of them as a file may keep.
func (fs *FS) extentsFor(ctx context.Context, n *node, a *Attr, off, end int64) ([]Extent, error) {
	n.mu.Lock()
	m, miss := n.mapping, n.mapMiss
	n.mu.Unlock()
	if m.covers(a.ContentRev, off, end) {
		if list := overlapping(m.extents, off, end); !hasInline(list) {
			return list, nil
		}
		return collectExtents(ctx, fs.sourceOf(n.ino), off, end, inlineWindow, true)
	}
	src := fs.sourceOf(n.ino)
	if m != nil && m.rev == a.ContentRev && miss > 0 {
		from := int64(0)
		if a.Size/BlobMax > mapWindow || len(m.extents) >= mapWindow {
			from = off - off%BlobMax
		}
		if m, err := window(ctx, src, a, from, mapWindow, false); err != nil {
			return nil, err
		} else if fs.remap(n, m); m.covers(a.ContentRev, off, end) {
			if list := overlapping(m.extents, off, end); !hasInline(list) {
				return list, nil
			}
		}
		return collectExtents(ctx, src, off, end, inlineWindow, true)
	}
	m, err := window(ctx, src, a, off, firstWindow, true)
	if err != nil {
		return nil, err
	}
	if !m.covers(a.ContentRev, off, end) {
		return collectExtents(ctx, src, off, end, inlineWindow, true)
	}
	list := overlapping(m.extents, off, end)
	if off != 0 || m.end < a.Size || len(m.extents) > 1 || !hasInline(list) {
		fs.remap(n, m.lean())
	}
	return list, nil
}

// window reads extents from off on and says how far they reach.
func window(ctx context.Context, src extentSource, a *Attr, off int64, limit int, inline bool) (*mapping, error) {
	list, err := src(ctx, off, SizeMax, limit, inline)
	if err != nil {
		return nil, err
	}
	m := &mapping{rev: a.ContentRev, off: off, end: SizeMax, extents: list}
	if len(list) >= limit {
		m.end = list[len(list)-1].Off + list[len(list)-1].Len
	}
	return m, nil
}

// lean is the mapping without inline bytes.
func (m *mapping) lean() *mapping {
	l := *m
	l.extents = make([]Extent, len(m.extents))
	copy(l.extents, m.extents)
	for i := range l.extents {
		l.extents[i].Data = nil
	}
	return &l
}

// collectExtents reads all extents that overlap [off, end), step at a time.
func collectExtents(ctx context.Context, src extentSource, off, end int64, step int, inline bool) ([]Extent, error) {
	var all []Extent
	for off < end {
		list, err := src(ctx, off, end, step, inline)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = list
		} else {
			all = append(all, list...)
		}
		if len(list) < step {
			break
		}
		off = list[len(list)-1].Off + list[len(list)-1].Len
	}
	return all, nil
}
