package meta

import (
	"context"
	"sort"
)

// seekWindow is how many extents a seek looks at in one step.
const seekWindow = 1024

// Seek returns where the next data (SEEK_DATA) or hole (SEEK_HOLE) begins at or
// behind off; the file's end counts as a hole. KindNoDevice at or past the end,
// and when no data follows.
func (h *Handle) Seek(ctx context.Context, off int64, wantHole bool) (int64, error) {
	fs, n := h.fs, h.n
	if h.released.Load() {
		return 0, E("seek", n.ino, "", KindBadHandle, nil)
	}
	staged := n.stagedRanges()
	a, err := fs.attr(ctx, n.ino)
	if err != nil {
		return 0, err
	}
	size := a.Size
	if len(staged) > 0 {
		size = max(size, staged[len(staged)-1].end)
	}
	if off < 0 || off >= size {
		return 0, E("seek", n.ino, "", KindNoDevice, nil)
	}
	at := off
	for at < size {
		list, err := fs.o.Store.Extents(ctx, n.ino, at, size, seekWindow, false)
		if err != nil {
			return 0, err
		}
		known := size // how far list and staged tell the truth
		if len(list) == seekWindow {
			known = list[len(list)-1].Off + list[len(list)-1].Len
		}
		if found, ok := seekIn(mergeRanges(staged, list), at, known, wantHole); ok {
			return found, nil
		}
		at = known
	}
	if wantHole {
		return size, nil
	}
	return 0, E("seek", n.ino, "", KindNoDevice, nil)
}

// seekIn looks for data or a hole in [at, end), given ascending ranges of data.
func seekIn(data []hole, at, end int64, wantHole bool) (int64, bool) {
	for _, d := range data {
		if d.end <= at {
			continue
		}
		if d.off >= end {
			break
		}
		if !wantHole {
			return max(d.off, at), true
		}
		if d.off > at {
			return at, true
		}
		at = d.end
	}
	return at, wantHole && at < end
}

// stagedRanges lists the ranges that staged content covers.
func (n *node) stagedRanges() []hole {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.staged.ranges(nil)
	if n.flight != nil {
		out = n.flight.stage.ranges(out)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].off < out[j].off })
	return joinRanges(out)
}

func (s *stage) ranges(out []hole) []hole {
	for i := range s.runs {
		out = append(out, hole{s.runs[i].off, s.runs[i].end()})
	}
	return out
}

// mergeRanges joins staged ranges and extents.
func mergeRanges(staged []hole, list []Extent) []hole {
	all := append([]hole(nil), staged...)
	for i := range list {
		all = append(all, hole{list[i].Off, list[i].Off + list[i].Len})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].off < all[j].off })
	return joinRanges(all)
}

// joinRanges makes one range of those that touch; list is ascending.
func joinRanges(list []hole) []hole {
	out := list[:0]
	for _, g := range list {
		if k := len(out) - 1; k >= 0 && g.off <= out[k].end {
			out[k].end = max(out[k].end, g.end)
			continue
		}
		out = append(out, g)
	}
	return out
}
