package contenttest

import (
	"context"
	"slices"
	"testing"

	"nexusfs/content"
	"nexusfs/meta"
)

// harness wraps a driver that keeps everything in memory over a reopen.
func harness(c meta.Content, m *memory) *Harness {
	return &Harness{Content: c, Reopen: func() (meta.Content, error) { return c, nil }, Damage: m.damage}
}

func TestMemoryPasses(t *testing.T) {
	Run(t, func(t *testing.T) *Harness {
		m := newMemory(t.TempDir())
		return harness(m, m)
	})
}

// The mutants: each breaks one promise.
type (
	wrongBytes      struct{ *memory }
	noVerify        struct{ *memory }
	firstLeafOnly   struct{ *memory }
	shortRead       struct{ *memory }
	damageIsIO      struct{ *memory }
	damageUncounted struct{ *memory }
	lostPut         struct{ *memory }
	keepsSlice      struct{ *memory }
	anySize         struct{ *memory }
	anyRangeGoes    struct{ *memory }
	sharedPlace     struct{ *memory }
	freeByID        struct{ *memory }
	freeTooMuch     struct{ *memory }
	freeNothing     struct{ *memory }
	walkMissesOne   struct{ *memory }
	walkTwice       struct{ *memory }
	walkSwallows    struct{ *memory }
	shortID         struct{ *memory }
	syncNothing     struct{ *memory }
	deafToContext   struct{ *memory }
	longBacking     struct{ *memory }
	blindBacking    struct{ *memory }
	compactLoses    struct{ *memory }
	compactTooEarly struct{ *memory }
	compactIdle     struct{ *memory }
	compactDeaf     struct{ *memory }
	compactGreedy   struct{ *memory }
	zeroStats       struct{ *memory }
)

func (d wrongBytes) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	err := d.memory.Read(ctx, b, off, p)
	if err == nil && off%content.LeafSize != 0 && len(p) > content.LeafSize {
		p[len(p)-1] ^= 1
	}
	return err
}

// raw copies what is there.
func (m *memory) raw(b meta.Blob, off int64, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(p)
	if e := m.at[b]; e != nil && off < int64(len(e.data)) {
		copy(p, e.data[off:])
	}
}

func (d noVerify) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	err := d.memory.Read(ctx, b, off, p)
	if err != nil && meta.KindOf(err) == meta.KindDamaged {
		d.raw(b, off, p)
		return nil
	}
	return err
}

func (d firstLeafOnly) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	err := d.memory.Read(ctx, b, off, p)
	if err != nil && meta.KindOf(err) == meta.KindDamaged {
		err = d.memory.Read(ctx, b, off, p[:min(len(p), content.LeafSize)])
		d.raw(b, off, p)
	}
	return err
}

func (d shortRead) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	err := d.memory.Read(ctx, b, off, p)
	d.mu.Lock()
	e := d.at[b]
	cut := e != nil && int64(len(e.data)) < b.Size
	d.mu.Unlock()
	if err != nil && cut {
		d.raw(b, off, p)
		return nil
	}
	return err
}

func (d damageIsIO) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	err := d.memory.Read(ctx, b, off, p)
	if err != nil && meta.KindOf(err) == meta.KindDamaged {
		return meta.KindIO.Err()
	}
	return err
}

func (d damageUncounted) Stats() meta.ContentStats {
	st := d.memory.Stats()
	st.Damaged = 0
	return st
}

func (d lostPut) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	b, err := d.memory.Put(ctx, data)
	if err == nil && b.Offset%7 == 0 {
		d.drop(b)
	}
	return b, err
}

func (d keepsSlice) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	b, err := d.memory.Put(ctx, data)
	if err == nil {
		d.mu.Lock()
		d.at[b].data = data
		d.mu.Unlock()
	}
	return b, err
}

func (d anySize) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	return d.memory.Put(ctx, data[:min(len(data), meta.BlobMax)])
}

func (d anyRangeGoes) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	err := d.memory.Read(ctx, b, off, p)
	if err != nil && meta.KindOf(err) == meta.KindInvalid {
		return nil
	}
	return err
}

func (d sharedPlace) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	d.mu.Lock()
	for b := range d.at {
		if b.ID == content.ID(data) {
			d.mu.Unlock()
			return b, nil
		}
	}
	d.mu.Unlock()
	return d.memory.Put(ctx, data)
}

func (d freeByID) Free(ctx context.Context, blobs []meta.Blob) error {
	var all []meta.Blob
	d.mu.Lock()
	for b := range d.at {
		if slices.ContainsFunc(blobs, func(f meta.Blob) bool { return f.ID == b.ID }) {
			all = append(all, b)
		}
	}
	d.mu.Unlock()
	return d.memory.Free(ctx, all)
}

func (d freeTooMuch) Free(ctx context.Context, blobs []meta.Blob) error {
	d.mu.Lock()
	for b := range d.at {
		if b.Offset == blobs[0].Offset-1 {
			blobs = append(slices.Clone(blobs), b)
		}
	}
	d.mu.Unlock()
	return d.memory.Free(ctx, blobs)
}

func (d freeNothing) Free(ctx context.Context, blobs []meta.Blob) error { return ctx.Err() }

func (d walkMissesOne) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	return d.memory.Walk(ctx, func(b meta.Blob) error {
		if b.Offset == 3 {
			return nil
		}
		return fn(b)
	})
}

func (d walkTwice) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	return d.memory.Walk(ctx, func(b meta.Blob) error {
		if err := fn(b); err != nil {
			return err
		}
		return fn(b)
	})
}

func (d walkSwallows) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	return d.memory.Walk(ctx, func(b meta.Blob) error { fn(b); return nil })
}

func (d shortID) ID(data []byte) meta.BlobID { return content.ID(data[:len(data)-1]) }

func (d syncNothing) Sync(context.Context) error { return nil }

func (d deafToContext) Read(_ context.Context, b meta.Blob, off int64, p []byte) error {
	return d.memory.Read(context.Background(), b, off, p)
}

func (d longBacking) Backing(ctx context.Context, b meta.Blob) (meta.Backing, error) {
	f, err := d.memory.Backing(ctx, b)
	if err != nil {
		return nil, err
	}
	f.Close()
	data := make([]byte, b.Size+1)
	d.raw(b, 0, data)
	return backingFile(d.dir, data)
}

func (d blindBacking) Backing(ctx context.Context, b meta.Blob) (meta.Backing, error) {
	if b.Place != meta.PlaceFile {
		return nil, meta.KindNotSupported.Err()
	}
	data := make([]byte, b.Size)
	d.raw(b, 0, data)
	return backingFile(d.dir, data)
}

func (d compactLoses) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	return d.memory.Compact(ctx, func(b meta.Blob) (bool, error) {
		alive, err := live(b)
		return alive && b.Offset%16 != 0, err
	}, moved)
}

func (d compactTooEarly) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	return d.memory.Compact(ctx, live, func(from, to meta.Blob) error {
		d.drop(from)
		return moved(from, to)
	})
}

func (d compactIdle) Compact(context.Context, func(meta.Blob) (bool, error), func(from, to meta.Blob) error) error {
	return nil
}

func (d compactDeaf) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	return d.memory.Compact(ctx, live, func(from, to meta.Blob) error { moved(from, to); return meta.KindConflict.Err() })
}

func (d compactGreedy) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	return d.memory.Compact(ctx, live, func(from, to meta.Blob) error {
		err := moved(from, to)
		if err != nil && meta.KindOf(err) == meta.KindConflict {
			d.drop(from)
		}
		return err
	})
}

func (d zeroStats) Stats() meta.ContentStats { return meta.ContentStats{} }

func TestMutantsFail(t *testing.T) {
	mutants := []struct {
		name   string
		caught string // by this case
		make   func(*memory) meta.Content
	}{
		{"wrong bytes", "reading any range gives its bytes", func(m *memory) meta.Content { return wrongBytes{m} }},
		{"no verification", "a flipped bit is found where it is read", func(m *memory) meta.Content { return noVerify{m} }},
		{"only the first leaf verified", "a flipped bit is found where it is read", func(m *memory) meta.Content { return firstLeafOnly{m} }},
		{"short read accepted", "a cut or removed blob is damage, and a new put heals it", func(m *memory) meta.Content { return shortRead{m} }},
		{"damage of the wrong kind", "a flipped bit is found where it is read", func(m *memory) meta.Content { return damageIsIO{m} }},
		{"damage not counted", "a flipped bit is found where it is read", func(m *memory) meta.Content { return damageUncounted{m} }},
		{"lost put", "what was put is there after reopening", func(m *memory) meta.Content { return lostPut{m} }},
		{"argument retained", "put keeps no reference to its argument", func(m *memory) meta.Content { return keepsSlice{m} }},
		{"any size accepted", "sizes and ranges out of bounds are refused", func(m *memory) meta.Content { return anySize{m} }},
		{"any range accepted", "sizes and ranges out of bounds are refused", func(m *memory) meta.Content { return anyRangeGoes{m} }},
		{"shared place", "each put has a place of its own", func(m *memory) meta.Content { return sharedPlace{m} }},
		{"free by name", "each put has a place of its own", func(m *memory) meta.Content { return freeByID{m} }},
		{"free of a living neighbour", "free takes what it was given and nothing else", func(m *memory) meta.Content { return freeTooMuch{m} }},
		{"free of nothing", "free takes what it was given and nothing else", func(m *memory) meta.Content { return freeNothing{m} }},
		{"walk misses one", "walk lists what is stored, once", func(m *memory) meta.Content { return walkMissesOne{m} }},
		{"walk lists twice", "walk lists what is stored, once", func(m *memory) meta.Content { return walkTwice{m} }},
		{"walk swallows errors", "walk lists what is stored, once", func(m *memory) meta.Content { return walkSwallows{m} }},
		{"name without the last byte", "ID is a function of the bytes alone", func(m *memory) meta.Content { return shortID{m} }},
		{"sync does nothing", "sync is shared and repeatable", func(m *memory) meta.Content { return syncNothing{m} }},
		{"context ignored", "a context that has ended stops a call", func(m *memory) meta.Content { return deafToContext{m} }},
		{"backing too long", "backing is the whole blob or not supported", func(m *memory) meta.Content { return longBacking{m} }},
		{"backing not verified", "a flipped bit is found where it is read", func(m *memory) meta.Content { return blindBacking{m} }},
		{"compact loses living blobs", "compact keeps what is alive and gives back the rest", func(m *memory) meta.Content { return compactLoses{m} }},
		{"compact removes before it tells", "compact keeps what is alive and gives back the rest", func(m *memory) meta.Content { return compactTooEarly{m} }},
		{"compact does nothing", "compact keeps what is alive and gives back the rest", func(m *memory) meta.Content { return compactIdle{m} }},
		{"compact ignores errors", "compact stops at an error and loses nothing", func(m *memory) meta.Content { return compactDeaf{m} }},
		{"compact drops what changed", "a blob that changed while it was moved stays where it was", func(m *memory) meta.Content { return compactGreedy{m} }},
		{"no figures", "space and stats say what is there", func(m *memory) meta.Content { return zeroStats{m} }},
	}
	for _, test := range mutants {
		t.Run(test.name, func(t *testing.T) {
			i := slices.IndexFunc(Cases(), func(c Case) bool { return c.Name == test.caught })
			if i < 0 {
				t.Fatalf("no case %q", test.caught)
			}
			m := newMemory(t.TempDir())
			err := Cases()[i].Run(t.Context(), harness(test.make(m), m))
			if err == nil {
				t.Errorf("passes %q", test.caught)
			}
			t.Log(err)
		})
	}
}
