package contenttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"nexusfs/meta"
)

func idIsPure(ctx context.Context, h *Harness) error {
	seen := make(map[meta.BlobID]int)
	for _, size := range boundarySizes() {
		data := random(1, size)
		id := h.Content.ID(data)
		if id != h.Content.ID(random(1, size)) {
			return fmt.Errorf("equal bytes, %d of them, have two names", size)
		}
		for _, at := range []int{0, size / 2, size - 1} {
			data[at] ^= 1
			if h.Content.ID(data) == id {
				return fmt.Errorf("byte %d of %d does not change the name", at, size)
			}
			data[at] ^= 1
		}
		if other, ok := seen[id]; ok {
			return fmt.Errorf("%d and %d bytes have the same name", size, other)
		}
		seen[id] = size
	}
	return nil
}

func roundTrip(ctx context.Context, h *Harness) error {
	all, err := putAll(ctx, h.Content, 10, boundarySizes()...)
	if err != nil {
		return err
	}
	for _, s := range all {
		if err := check(ctx, h.Content, s); err != nil {
			return err
		}
	}
	return nil
}

func anyRange(ctx context.Context, h *Harness) error {
	all, err := putAll(ctx, h.Content, 20, boundarySizes()...)
	if err != nil {
		return err
	}
	c, err := h.Reopen()
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, s := range all {
		size := len(s.data)
		ranges := [][2]int{{0, 0}, {size, 0}, {0, 1}, {size - 1, 1}, {16383, 2}, {1, size - 1}, {0, size - 1}}
		for range 40 {
			off := rnd.IntN(size)
			ranges = append(ranges, [2]int{off, rnd.IntN(size - off + 1)}, [2]int{off, min(4096, size-off)})
		}
		for _, r := range ranges {
			if err := checkRange(ctx, c, s, r[0], r[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func putRetainsNothing(ctx context.Context, h *Harness) error {
	for i, size := range []int{20_000, meta.BlobMax} {
		data := random(uint64(30+i), size)
		b, err := h.Content.Put(ctx, data)
		if err != nil {
			return err
		}
		clear(data)
		if err := check(ctx, h.Content, stored{b, random(uint64(30+i), size)}); err != nil {
			return fmt.Errorf("after the argument was changed: %w", err)
		}
	}
	return nil
}

func bounds(ctx context.Context, h *Harness) error {
	_, err := h.Content.Put(ctx, make([]byte, meta.BlobMax+1))
	if err := wantKind("put of more than BlobMax", err, meta.KindInvalid); err != nil {
		return err
	}
	_, err = h.Content.Put(ctx, nil)
	if err := wantKind("put of nothing", err, meta.KindInvalid); err != nil {
		return err
	}
	for _, size := range []int{20_000, 1 << 20} {
		s, err := put(ctx, h.Content, 40, size)
		if err != nil {
			return err
		}
		for _, r := range [][2]int64{{-1, 1}, {0, int64(size) + 1}, {int64(size), 1}, {1 << 62, 10}} {
			err := h.Content.Read(ctx, s.blob, r[0], make([]byte, r[1]))
			if err := wantKind(fmt.Sprintf("read of %d bytes at %d of %d", r[1], r[0], size), err, meta.KindInvalid); err != nil {
				return err
			}
		}
	}
	return nil
}

// ownPlaces is what P28 stands on: a blob that is condemned at one place is
// stored again at another, and freeing the one leaves the other.
func ownPlaces(ctx context.Context, h *Harness) error {
	for _, size := range []int{20_000, 1 << 20, meta.BlobMax} {
		first, err := put(ctx, h.Content, 50, size)
		if err != nil {
			return err
		}
		second, err := put(ctx, h.Content, 50, size)
		if err != nil {
			return err
		}
		if first.blob == second.blob {
			return fmt.Errorf("two puts of the same %d bytes share the place %+v", size, first.blob)
		}
		for _, drop := range []stored{first, first} { // the second time it is gone already
			if err := h.Content.Free(ctx, []meta.Blob{drop.blob}); err != nil {
				return fmt.Errorf("free: %w", err)
			}
			if err := check(ctx, h.Content, second); err != nil {
				return fmt.Errorf("after another place of the same bytes was freed: %w", err)
			}
		}
	}
	return nil
}

func concurrent(ctx context.Context, h *Harness) error {
	const workers, each = 8, 12
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		all  []stored
		errs []error
	)
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				size := 17_000 + i*13_001
				if i%6 == 5 {
					size = 1<<20 + i
				}
				s, err := put(ctx, h.Content, uint64(100+w%2*1000+i), size) // half of them the same bytes
				if err == nil {
					err = check(ctx, h.Content, s)
				}
				if err == nil && i%5 == 0 {
					err = h.Content.Sync(ctx)
				}
				mu.Lock()
				all = append(all, s)
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	places := make(map[meta.Blob]bool)
	for _, s := range all {
		if places[s.blob] {
			return fmt.Errorf("two puts were given the place %+v", s.blob)
		}
		places[s.blob] = true
		if err := check(ctx, h.Content, s); err != nil {
			return err
		}
	}
	return nil
}

func syncs(ctx context.Context, h *Harness) error {
	if err := h.Content.Sync(ctx); err != nil {
		return fmt.Errorf("sync of an empty store: %w", err)
	}
	if _, err := putAll(ctx, h.Content, 60, boundarySizes()...); err != nil {
		return err
	}
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = h.Content.Sync(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if n := h.Content.Stats().UnsyncedBytes; n != 0 {
		return fmt.Errorf("%d bytes are unsynced after a sync", n)
	}
	return h.Content.Sync(ctx)
}

func reopens(ctx context.Context, h *Harness) error {
	c := h.Content
	var all []stored
	for round := range 3 {
		more, err := putAll(ctx, c, uint64(70+round*100), boundarySizes()...)
		if err != nil {
			return err
		}
		all = append(all, more...)
		if c, err = h.Reopen(); err != nil {
			return err
		}
		for _, s := range all {
			if err := check(ctx, c, s); err != nil {
				return fmt.Errorf("opened for the %d. time: %w", round+2, err)
			}
		}
	}
	return nil
}

// listed compares what Walk says with what is stored.
func listed(ctx context.Context, c meta.Content, want []stored) error {
	got := make(map[meta.Blob]int)
	if err := c.Walk(ctx, func(b meta.Blob) error { got[b]++; return nil }); err != nil {
		return fmt.Errorf("walk: %w", err)
	}
	for _, s := range want {
		if got[s.blob] != 1 {
			return fmt.Errorf("walk lists %+v %d times, want once", s.blob, got[s.blob])
		}
		delete(got, s.blob)
	}
	for b := range got {
		return fmt.Errorf("walk lists %+v, which is not stored", b)
	}
	return nil
}

func walks(ctx context.Context, h *Harness) error {
	if err := listed(ctx, h.Content, nil); err != nil {
		return err
	}
	all, err := putAll(ctx, h.Content, 80, boundarySizes()...)
	if err != nil {
		return err
	}
	if err := listed(ctx, h.Content, all); err != nil {
		return err
	}
	stop := errors.New("stop")
	if err := h.Content.Walk(ctx, func(meta.Blob) error { return stop }); !errors.Is(err, stop) {
		return fmt.Errorf("walk whose function fails: got %v, want its error", err)
	}
	c, err := h.Reopen()
	if err != nil {
		return err
	}
	return listed(ctx, c, all)
}

func frees(ctx context.Context, h *Harness) error {
	all, err := putAll(ctx, h.Content, 90, append(boundarySizes(), boundarySizes()...)...)
	if err != nil {
		return err
	}
	var kept, gone []stored
	var drop []meta.Blob
	for i, s := range all {
		if i%2 == 0 {
			kept = append(kept, s)
			continue
		}
		gone, drop = append(gone, s), append(drop, s.blob)
	}
	c := h.Content
	for round := range 2 {
		if err := c.Free(ctx, drop); err != nil {
			return fmt.Errorf("free, time %d: %w", round+1, err)
		}
		if err := listed(ctx, c, kept); err != nil {
			return fmt.Errorf("after free: %w", err)
		}
		for _, s := range kept {
			if err := check(ctx, c, s); err != nil {
				return fmt.Errorf("after others were freed: %w", err)
			}
		}
		if c, err = h.Reopen(); err != nil {
			return err
		}
	}
	for _, s := range gone {
		err := c.Read(ctx, s.blob, 0, make([]byte, len(s.data)))
		if err := wantKind("read of a freed blob", err, meta.KindStale, meta.KindDamaged); err != nil {
			return err
		}
	}
	return nil
}

func contexts(ctx context.Context, h *Harness) error {
	s, err := put(ctx, h.Content, 95, 20_000)
	if err != nil {
		return err
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, putErr := h.Content.Put(ended, s.data)
	for what, err := range map[string]error{
		"put":  putErr,
		"read": h.Content.Read(ended, s.blob, 0, make([]byte, 10)),
		"free": h.Content.Free(ended, []meta.Blob{s.blob}),
		"walk": h.Content.Walk(ended, func(meta.Blob) error { return nil }),
	} {
		if err := wantKind(what+" with a context that has ended", err, meta.KindInterrupted); err != nil {
			return err
		}
	}
	return check(ctx, h.Content, s)
}

func figures(ctx context.Context, h *Harness) error {
	sp, err := h.Content.Space(ctx)
	if err != nil {
		return err
	}
	if sp.Total <= 0 || sp.Free <= 0 || sp.Free > sp.Total || sp.FreeFiles > sp.Files {
		return fmt.Errorf("space %+v is not that of a disk", sp)
	}
	var total int64
	for i, size := range boundarySizes() {
		s, err := put(ctx, h.Content, uint64(96+i), size)
		if err != nil {
			return err
		}
		if err := check(ctx, h.Content, s); err != nil {
			return err
		}
		total += int64(size)
	}
	st, n := h.Content.Stats(), int64(len(boundarySizes()))
	if st.Puts != n || st.PutBytes != total || st.Reads != n || st.ReadBytes != total || st.Damaged != 0 {
		return fmt.Errorf("%d puts and reads of %d bytes give %+v", n, total, st)
	}
	if st.SegmentBytes+st.FileBytes < total {
		return fmt.Errorf("%d bytes are stored, stats say %+v", total, st)
	}
	return nil
}
