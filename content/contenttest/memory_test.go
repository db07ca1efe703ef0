package contenttest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"nexusfs/content"
	"nexusfs/meta"
)

// memory is a driver that does everything right, so that a test can break one
// thing of it.
type memory struct {
	dir string // for backing files

	mu       sync.Mutex
	next     int64
	at       map[meta.Blob]*entry
	gone     map[meta.Blob]bool
	stats    meta.ContentStats
	unsynced int64
}

type entry struct {
	data  []byte // what is stored, perhaps damaged
	table []byte
}

const fileFrom = 1 << 20

func newMemory(dir string) *memory {
	return &memory{dir: dir, at: make(map[meta.Blob]*entry), gone: make(map[meta.Blob]bool)}
}

func (m *memory) ID(data []byte) meta.BlobID { return content.ID(data) }

func (m *memory) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	if ctx.Err() != nil {
		return meta.Blob{}, meta.KindInterrupted.Err()
	}
	if len(data) == 0 || len(data) > meta.BlobMax {
		return meta.Blob{}, meta.KindInvalid.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.Puts++
	m.stats.PutBytes += int64(len(data))
	m.unsynced += int64(len(data))
	return m.store(slices.Clone(data)), nil
}

// store keeps data at a new place.
func (m *memory) store(data []byte) meta.Blob {
	m.next++
	b := meta.Blob{ID: content.ID(data), Size: int64(len(data)), Place: meta.PlacePack, Segment: 1, Offset: m.next}
	if len(data) >= fileFrom {
		b.Place = meta.PlaceFile
	}
	m.at[b] = &entry{data, content.LeafTable(nil, data)}
	return b
}

func (m *memory) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	if ctx.Err() != nil {
		return meta.KindInterrupted.Err()
	}
	if off < 0 || off > b.Size-int64(len(p)) {
		return meta.KindInvalid.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.at[b]
	switch {
	case e == nil && m.gone[b]:
		return meta.KindStale.Err()
	case e == nil || !e.sound(b, off, int64(len(p))):
		m.stats.Damaged++
		return meta.KindDamaged.Err()
	}
	copy(p, e.data[off:])
	m.stats.Reads++
	m.stats.ReadBytes += int64(len(p))
	return nil
}

// sound reports whether the leaves that hold a range match their hashes.
func (e *entry) sound(b meta.Blob, off, n int64) bool {
	for leaf := off / content.LeafSize; leaf*content.LeafSize < off+n; leaf++ {
		from := leaf * content.LeafSize
		to := min(from+content.LeafSize, b.Size)
		if to > int64(len(e.data)) {
			return false
		}
		h := content.LeafHash(e.data[from:to])
		if string(h[:]) != string(e.table[leaf*content.HashSize:][:content.HashSize]) {
			return false
		}
	}
	return true
}

func (m *memory) Prefetch(meta.Blob) {}

func (m *memory) Sync(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsynced = 0
	return nil
}

func (m *memory) Free(ctx context.Context, blobs []meta.Blob) error {
	if ctx.Err() != nil {
		return meta.KindInterrupted.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range blobs {
		delete(m.at, b)
		m.gone[b] = true
	}
	return nil
}

func (m *memory) Space(context.Context) (meta.Space, error) {
	return meta.Space{Total: 1 << 40, Free: 1 << 39, Files: 100, FreeFiles: 50}, nil
}

func (m *memory) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	m.mu.Lock()
	blobs := slices.Collect(maps.Keys(m.at))
	m.mu.Unlock()
	for _, b := range blobs {
		alive, err := live(b)
		if err != nil {
			return err
		}
		if !alive {
			m.drop(b)
			continue
		}
		m.mu.Lock()
		to := m.store(m.at[b].data)
		m.mu.Unlock()
		err = moved(b, to)
		if err != nil {
			m.drop(to)
			if meta.KindOf(err) != meta.KindConflict {
				return err
			}
			continue
		}
		m.drop(b)
	}
	return nil
}

func (m *memory) drop(b meta.Blob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.at, b)
	m.gone[b] = true
}

func (m *memory) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	if ctx.Err() != nil {
		return meta.KindInterrupted.Err()
	}
	m.mu.Lock()
	blobs := slices.Collect(maps.Keys(m.at))
	m.mu.Unlock()
	for _, b := range blobs {
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Backing(ctx context.Context, b meta.Blob) (meta.Backing, error) {
	if b.Place != meta.PlaceFile {
		return nil, meta.KindNotSupported.Err()
	}
	data := make([]byte, b.Size)
	if err := m.Read(ctx, b, 0, data); err != nil {
		return nil, err
	}
	return backingFile(m.dir, data)
}

func backingFile(dir string, data []byte) (meta.Backing, error) {
	f, err := os.CreateTemp(dir, "backing")
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (m *memory) Stats() meta.ContentStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.stats
	st.UnsyncedBytes = m.unsynced
	for _, e := range m.at {
		st.SegmentBytes += int64(len(e.data))
	}
	return st
}

func (m *memory) damage(b meta.Blob, how Damage) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.at[b]
	if e == nil {
		return fmt.Errorf("damage of %+v, which is not stored", b)
	}
	switch how.Kind {
	case Flip:
		e.data[how.Off] ^= 1
	case Cut:
		e.data = e.data[:how.Off]
	case Remove:
		delete(m.at, b)
	}
	return nil
}
