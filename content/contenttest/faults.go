package contenttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"nexusfs/meta"
)

func flipped(ctx context.Context, h *Harness) error {
	for _, size := range []int{50_000, 1<<20 - 5, meta.BlobMax} {
		for _, at := range []int{0, 17_000, size - 1} {
			s, err := put(ctx, h.Content, uint64(200+at), size)
			if err != nil {
				return err
			}
			other, err := put(ctx, h.Content, uint64(300+at), size)
			if err != nil {
				return err
			}
			c, err := h.Reopen()
			if err != nil {
				return err
			}
			h.Content = c
			if err := h.Damage(s.blob, Damage{Flip, int64(at)}); err != nil {
				return err
			}
			if err := damagedAt(ctx, c, s, at); err != nil {
				return fmt.Errorf("byte %d of %d flipped: %w", at, size, err)
			}
			if err := check(ctx, c, other); err != nil {
				return fmt.Errorf("beside a damaged blob: %w", err)
			}
			if _, err := c.Backing(ctx, s.blob); err == nil {
				return fmt.Errorf("byte %d of %d flipped: the kernel was given a backing file", at, size)
			}
		}
	}
	return nil
}

// damagedAt wants reads that touch the byte to fail, and reads far from it to
// give their bytes or fail, but nothing else.
func damagedAt(ctx context.Context, c meta.Content, s stored, at int) error {
	before := c.Stats().Damaged
	size := len(s.data)
	for _, r := range [][2]int{{0, size}, {at, 1}, {max(at-100, 0), 101}} {
		n := min(r[1], size-r[0])
		err := c.Read(ctx, s.blob, int64(r[0]), make([]byte, n))
		if err := wantKind(fmt.Sprintf("read of %d bytes at %d", n, r[0]), err, meta.KindDamaged); err != nil {
			return err
		}
	}
	if got := c.Stats().Damaged - before; got != 3 {
		return fmt.Errorf("3 reads were damaged, stats count %d", got)
	}
	const leaf = 16 << 10
	for off := 0; off < size; off += leaf {
		n := min(leaf, size-off)
		if at >= off && at < off+n {
			continue
		}
		if err := checkRange(ctx, c, s, off, n); err != nil {
			return fmt.Errorf("a leaf that is sound: %w", err)
		}
	}
	return nil
}

func missing(ctx context.Context, h *Harness) error {
	for _, size := range []int{50_000, meta.BlobMax} {
		for _, how := range []Damage{{Cut, int64(size) - 1}, {Cut, 20_000}, {Cut, 0}, {Remove, 0}} {
			other, err := put(ctx, h.Content, 400, size)
			if err != nil {
				return err
			}
			s, err := put(ctx, h.Content, 401, size)
			if err != nil {
				return err
			}
			if err := h.Content.Sync(ctx); err != nil {
				return err
			}
			if err := h.Damage(s.blob, how); err != nil {
				return err
			}
			c, err := h.Reopen()
			if err != nil {
				return err
			}
			h.Content = c
			what := fmt.Sprintf("read of %d bytes after damage %+v", size, how)
			kinds := []meta.Kind{meta.KindDamaged}
			if h.RemovedIsStale && how.Kind == Remove {
				kinds = append(kinds, meta.KindStale)
			}
			if err := wantKind(what, c.Read(ctx, s.blob, 0, make([]byte, size)), kinds...); err != nil {
				return err
			}
			if how.Kind == Cut {
				if err := check(ctx, c, other); err != nil {
					return fmt.Errorf("before a cut blob: %w", err)
				}
			}
			healed, err := put(ctx, c, 401, size)
			if err != nil {
				return fmt.Errorf("put of what was damaged: %w", err)
			}
			if err := check(ctx, c, healed); err != nil {
				return fmt.Errorf("put of what was damaged: %w", err)
			}
		}
	}
	return nil
}

// table stands for SQL: which blob is at which place.
type table map[meta.BlobID]stored

func (t table) live(b meta.Blob) (bool, error) { return t[b.ID].blob == b, nil }

func (t table) all() []stored {
	var out []stored
	for _, s := range t {
		out = append(out, s)
	}
	return out
}

// filled stores enough for several segments, all of it known to the table.
func filled(ctx context.Context, c meta.Content) (table, error) {
	t := make(table)
	for i := range 150 {
		size := 20_000 + i%7*30_011
		if i%10 == 9 {
			size = 1<<20 + i
		}
		s, err := put(ctx, c, uint64(500+i), size)
		if err != nil {
			return nil, err
		}
		t[s.blob.ID] = s
	}
	return t, nil
}

// thin forgets most blobs; freed says that the store is told.
func thin(ctx context.Context, c meta.Content, t table, freed bool) error {
	for _, s := range t.all() {
		if s.blob.ID[0]%8 == 0 {
			continue
		}
		delete(t, s.blob.ID)
		if freed {
			if err := c.Free(ctx, []meta.Blob{s.blob}); err != nil {
				return err
			}
		}
	}
	return nil
}

func storedBytes(c meta.Content) int64 {
	st := c.Stats()
	return st.SegmentBytes + st.FileBytes
}

func compacts(ctx context.Context, h *Harness) error {
	for _, freed := range []bool{true, false} {
		t, err := filled(ctx, h.Content)
		if err != nil {
			return err
		}
		c, err := h.Reopen() // what was put before is not on its way to a commit any more
		if err != nil {
			return err
		}
		h.Content = c
		before := storedBytes(c)
		if err := thin(ctx, c, t, freed); err != nil {
			return err
		}
		var want int64
		for _, s := range t {
			want += s.blob.Size
		}
		err = c.Compact(ctx, t.live, func(from, to meta.Blob) error {
			s := t[from.ID]
			if s.blob != from || to.ID != from.ID || to.Size != from.Size {
				return fmt.Errorf("moved from %+v to %+v, the blob is at %+v", from, to, s.blob)
			}
			if err := check(ctx, c, s); err != nil {
				return fmt.Errorf("at the old place, before moved has returned: %w", err)
			}
			s.blob = to
			if err := check(ctx, c, s); err != nil {
				return fmt.Errorf("at the new place: %w", err)
			}
			t[to.ID] = s
			return nil
		})
		if err != nil {
			return fmt.Errorf("compact: %w", err)
		}
		if h.Unfreed == Walked {
			if err := freeUnknown(ctx, c, t); err != nil {
				return err
			}
		}
		if after := storedBytes(c); after > want+before/2 {
			return fmt.Errorf("%d of %d bytes are alive, after compact %d are stored (freed before: %v)", want, before, after, freed)
		}
		if h.Content, err = h.Reopen(); err != nil {
			return err
		}
		for _, s := range t {
			if err := check(ctx, h.Content, s); err != nil {
				return fmt.Errorf("after compact: %w", err)
			}
		}
		if err := freeAll(ctx, h.Content); err != nil {
			return err
		}
	}
	return nil
}

func freeAll(ctx context.Context, c meta.Content) error { return freeUnknown(ctx, c, nil) }

// freeUnknown frees every blob that the table does not know and wants to find
// the others.
func freeUnknown(ctx context.Context, c meta.Content, t table) error {
	var unknown []meta.Blob
	known := 0
	err := c.Walk(ctx, func(b meta.Blob) error {
		if alive, _ := t.live(b); alive {
			known++
		} else {
			unknown = append(unknown, b)
		}
		return nil
	})
	if err == nil && known != len(t) {
		err = fmt.Errorf("walk lists %d of %d living blobs", known, len(t))
	}
	if err != nil {
		return err
	}
	return c.Free(ctx, unknown)
}

func compactErrors(ctx context.Context, h *Harness) error {
	t, err := filled(ctx, h.Content)
	if err != nil {
		return err
	}
	c, err := h.Reopen()
	if err != nil {
		return err
	}
	if err := thin(ctx, c, t, true); err != nil {
		return err
	}
	wrong := errors.New("sql is away")
	asked := 0
	err = c.Compact(ctx, func(meta.Blob) (bool, error) { asked++; return false, wrong }, func(from, to meta.Blob) error { return nil })
	if asked > 0 && !errors.Is(err, wrong) {
		return fmt.Errorf("compact whose live fails: got %v, want its error", err)
	}
	calls := 0
	err = c.Compact(ctx, t.live, func(from, to meta.Blob) error { calls++; return wrong })
	if calls > 0 && !errors.Is(err, wrong) {
		return fmt.Errorf("compact whose moved fails: got %v, want its error", err)
	}
	if calls > 1 {
		return fmt.Errorf("compact went on after an error, %d times", calls-1)
	}
	for _, s := range t {
		if err := check(ctx, c, s); err != nil {
			return fmt.Errorf("after a compact that failed: %w", err)
		}
	}
	return nil
}

func compactConflicts(ctx context.Context, h *Harness) error {
	t, err := filled(ctx, h.Content)
	if err != nil {
		return err
	}
	c, err := h.Reopen()
	if err != nil {
		return err
	}
	if err := thin(ctx, c, t, true); err != nil {
		return err
	}
	err = c.Compact(ctx, t.live, func(from, to meta.Blob) error { return meta.KindConflict.Err() })
	if err != nil {
		return fmt.Errorf("compact with conflicts: %w", err)
	}
	for _, s := range t {
		if err := check(ctx, c, s); err != nil {
			return fmt.Errorf("a blob whose move was refused: %w", err)
		}
	}
	return nil
}

func backings(ctx context.Context, h *Harness) error {
	for _, size := range boundarySizes() {
		s, err := put(ctx, h.Content, 600, size)
		if err != nil {
			return err
		}
		for range 2 {
			f, err := h.Content.Backing(ctx, s.blob)
			if s.blob.Place != meta.PlaceFile || meta.KindOf(err) == meta.KindNotSupported && err != nil {
				if err := wantKind("backing of a blob without a file", err, meta.KindNotSupported); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return fmt.Errorf("backing of %d bytes: %w", size, err)
			}
			err = sameFile(f.Fd(), s.data)
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("backing of %d bytes: %w", size, err)
			}
		}
	}
	return nil
}

// sameFile compares what the kernel would read.
func sameFile(fd uintptr, want []byte) error {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the file has %d bytes that are not the blob's %d", len(got), len(want))
	}
	return nil
}
