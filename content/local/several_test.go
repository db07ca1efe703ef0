package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"nexusfs/content/contenttest"
	"nexusfs/meta"
)

// several is one folder that several stores have open. What is put goes to one
// after another, what is freed is told to one after another, and whatever is
// asked is asked of all: they must agree.
type several struct {
	stores  []*Store
	puts    atomic.Int64
	frees   atomic.Int64
	again   atomic.Int64 // reads through stores other than the owner, with
	bytes   atomic.Int64 // their bytes
	damaged atomic.Int64 // and failures
}

func (m *several) owner(b meta.Blob) *Store {
	for _, s := range m.stores {
		if !s.foreign(b.Segment) {
			return s
		}
	}
	return m.stores[0]
}

func (m *several) ID(data []byte) meta.BlobID { return m.stores[0].ID(data) }

func (m *several) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	s := m.stores[int(m.puts.Add(1))%len(m.stores)]
	b, err := s.Put(ctx, data)
	if err == nil && writerOf(b.Segment) != s.writer {
		return b, fmt.Errorf("writer %d has put at %d", s.writer, b.Segment)
	}
	return b, err
}

func (m *several) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	owner := m.owner(b)
	err := owner.Read(ctx, b, off, p)
	for _, s := range m.stores {
		if s == owner {
			continue
		}
		got := make([]byte, len(p))
		oerr := s.Read(ctx, b, off, got)
		switch {
		case err == nil && oerr == nil && bytes.Equal(p, got):
			if len(p) > 0 {
				m.again.Add(1)
				m.bytes.Add(int64(len(p)))
			}
		case err != nil && oerr != nil && meta.KindOf(oerr) == meta.KindOf(err):
			if meta.KindOf(err) == meta.KindDamaged {
				m.damaged.Add(1)
			}
		case err != nil && oerr != nil && meta.KindOf(oerr) == meta.KindStale && meta.KindOf(err) == meta.KindDamaged:
		default:
			return fmt.Errorf("writer %d reads %v, writer %d %v, or other bytes", owner.writer, err, s.writer, oerr)
		}
	}
	return err
}

func (m *several) Prefetch(b meta.Blob) {
	for _, s := range m.stores {
		s.Prefetch(b)
	}
}

func (m *several) each(fn func(s *Store) error) error {
	for _, s := range m.stores {
		if err := fn(s); err != nil {
			return err
		}
	}
	return nil
}

func (m *several) Sync(ctx context.Context) error {
	return m.each(func(s *Store) error { return s.Sync(ctx) })
}

func (m *several) Free(ctx context.Context, blobs []meta.Blob) error {
	if err := m.stores[int(m.frees.Add(1))%len(m.stores)].Free(ctx, blobs); err != nil {
		return err
	}
	return m.each(func(s *Store) error { return s.Free(ctx, nil) }) // works off what was noted for it
}

func (m *several) Space(ctx context.Context) (meta.Space, error) { return m.stores[0].Space(ctx) }

func (m *several) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	return m.each(func(s *Store) error { return s.Compact(ctx, live, moved) })
}

func (m *several) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	var first map[meta.Blob]int
	for _, s := range m.stores[1:] {
		got := make(map[meta.Blob]int)
		if err := s.Walk(ctx, func(b meta.Blob) error { got[b]++; return nil }); err != nil {
			return err
		}
		if first != nil && !maps.Equal(first, got) {
			return fmt.Errorf("writer %d lists %d blobs, another %d", s.writer, len(got), len(first))
		}
		first = got
	}
	return m.stores[0].Walk(ctx, func(b meta.Blob) error {
		if first != nil && first[b] != 1 {
			return fmt.Errorf("writer %d lists %+v, others do not", m.stores[0].writer, b)
		}
		return fn(b)
	})
}

func (m *several) Backing(ctx context.Context, b meta.Blob) (f meta.Backing, err error) {
	for i, s := range m.stores {
		next, nerr := s.Backing(ctx, b)
		if f != nil {
			f.Close()
		}
		if i > 0 && meta.KindOf(err) != meta.KindOf(nerr) {
			return nil, errors.Join(errors.New("stores do not agree"), err, nerr)
		}
		if f, err = next, nerr; err != nil {
			f = nil
		}
	}
	return f, err
}

func (m *several) Stats() (sum meta.ContentStats) {
	for _, s := range m.stores {
		st := s.Stats()
		sum.Segments += st.Segments
		sum.SegmentBytes += st.SegmentBytes
		sum.Files += st.Files
		sum.FileBytes += st.FileBytes
		sum.Puts += st.Puts
		sum.PutBytes += st.PutBytes
		sum.Reads += st.Reads
		sum.ReadBytes += st.ReadBytes
		sum.Damaged += st.Damaged
		sum.UnsyncedBytes += st.UnsyncedBytes
	}
	sum.Reads -= m.again.Load()
	sum.ReadBytes -= m.bytes.Load()
	sum.Damaged -= m.damaged.Load()
	return sum
}

// openSeveral opens n stores on one folder. They close with the test.
func openSeveral(t testing.TB, o Options, n int) (*several, error) {
	m := &several{}
	for range n {
		s, err := Open(context.Background(), o)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { closeAll(t, s) })
		m.stores = append(m.stores, s)
	}
	return m, nil
}

// The suite with several writers at a time, and with one writer who comes
// after three have ended and has to tend what they left.
func TestConformanceOfSeveralWriters(t *testing.T) {
	tests := map[string]struct {
		set   func(*Options)
		after int
	}{
		"small, three again": {small, 3},
		"small, then one":    {small, 1},
		"defaults, then one": {func(*Options) {}, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			contenttest.Run(t, func(t *testing.T) *contenttest.Harness { return severalHarness(t, test.set, test.after) })
		})
	}
}

// severalHarness opens three stores; reopening opens as many as after says.
func severalHarness(t *testing.T, set func(*Options), after int) *contenttest.Harness {
	o := Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Shared: true}
	set(&o)
	checkLeaks(t)
	m, err := openSeveral(t, o, 3)
	if err != nil {
		t.Fatal(err)
	}
	h := &contenttest.Harness{Content: m, RemovedIsStale: after == 1}
	h.Reopen = func() (meta.Content, error) {
		if err := m.each((*Store).Close); err != nil {
			return nil, err
		}
		next, err := openSeveral(t, o, after)
		if err != nil {
			return nil, err
		}
		m = next
		if got := writersOf(m); !slices.Equal(got, []int64{0, 1, 2}[:after]) {
			return nil, fmt.Errorf("opened again, the writers are %v", got)
		}
		return m, nil
	}
	h.Damage = func(b meta.Blob, how contenttest.Damage) error { return damageStored(o.Dir, b, how) }
	return h
}

func writersOf(m *several) (out []int64) {
	for _, s := range m.stores {
		out = append(out, s.writer)
	}
	return out
}
