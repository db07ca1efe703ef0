// Package contenttest is the conformance suite of the content drivers: what
// meta relies on, told as cases that each driver passes on its own storage.
//
// It promises that a driver which returns wrong bytes, loses a blob, accepts
// damage or frees what it was not asked to free fails at least one case (its
// own tests run it against such drivers). It does not measure speed and does
// not cut the power; drivers test that beside it. Shipped code never imports
// this package.
package contenttest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"nexusfs/meta"
)

// Harness is one empty store under test and what a test may do to it from
// outside.
type Harness struct {
	// Content is the store under test.
	Content meta.Content
	// Reopen ends the store in order and opens it again with nothing in memory.
	Reopen func() (meta.Content, error)
	// Damage changes what is stored of b, behind the store's back. The store
	// may still remember what it verified before.
	Damage func(b meta.Blob, how Damage) error
	// RemovedIsStale says that the store cannot tell a file that was lost from
	// one that another process has removed: it may answer KindStale to both.
	RemovedIsStale bool
	// Unfreed says what finds blobs that nothing refers to and nobody freed.
	Unfreed Finder
}

// Finder is who finds blobs that were stored and never committed.
type Finder int

// The finders. A store that several daemons write to cannot tell a blob that
// was left behind from one on its way to another daemon's commit, so that its
// caller must find them.
const (
	Compacted Finder = iota // Compact does
	Walked                  // whoever walks the store and frees them
)

// Damage is a way in which stored bytes go wrong.
type Damage struct {
	Kind DamageKind
	Off  int64 // of the blob: the byte to flip, or the first to cut off
}

// DamageKind says what Damage does.
type DamageKind int

// The kinds of damage.
const (
	Flip   DamageKind = iota // one bit of the byte at Off
	Cut                      // everything from Off on, and what is stored behind it
	Remove                   // what holds the bytes is gone, other blobs in it too
)

// Case is one promise of meta.Content. Run gets a fresh store and returns what
// is wrong with it.
type Case struct {
	Name string
	Run  func(ctx context.Context, h *Harness) error
}

// Run runs every case against stores that open makes. What open needs to
// clean up it registers with t.
func Run(t *testing.T, open func(t *testing.T) *Harness) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t.Context(), open(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Cases returns the suite.
func Cases() []Case {
	return []Case{
		{"ID is a function of the bytes alone", idIsPure},
		{"what was put is read back", roundTrip},
		{"reading any range gives its bytes", anyRange},
		{"put keeps no reference to its argument", putRetainsNothing},
		{"sizes and ranges out of bounds are refused", bounds},
		{"each put has a place of its own", ownPlaces},
		{"many may put and read at once", concurrent},
		{"sync is shared and repeatable", syncs},
		{"what was put is there after reopening", reopens},
		{"walk lists what is stored, once", walks},
		{"free takes what it was given and nothing else", frees},
		{"a flipped bit is found where it is read", flipped},
		{"a cut or removed blob is damage, and a new put heals it", missing},
		{"compact keeps what is alive and gives back the rest", compacts},
		{"compact stops at an error and loses nothing", compactErrors},
		{"a blob that changed while it was moved stays where it was", compactConflicts},
		{"backing is the whole blob or not supported", backings},
		{"a context that has ended stops a call", contexts},
		{"space and stats say what is there", figures},
	}
}

// random returns n bytes that depend on seed alone.
func random(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

// stored is a blob and its bytes.
type stored struct {
	blob meta.Blob
	data []byte
}

// put stores random bytes and checks what Put says about them.
func put(ctx context.Context, c meta.Content, seed uint64, size int) (stored, error) {
	data := random(seed, size)
	b, err := c.Put(ctx, data)
	if err != nil {
		return stored{}, fmt.Errorf("put %d bytes: %w", size, err)
	}
	if b.Size != int64(size) || b.ID != c.ID(data) || b.Place == meta.PlaceInline {
		return stored{}, fmt.Errorf("put %d bytes: got %+v, want its size, its ID %x and a place outside of SQL", size, b, c.ID(data))
	}
	return stored{b, data}, nil
}

// putAll stores blobs of the given sizes.
func putAll(ctx context.Context, c meta.Content, seed uint64, sizes ...int) ([]stored, error) {
	var out []stored
	for i, size := range sizes {
		s, err := put(ctx, c, seed+uint64(i), size)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// check reads a blob whole and compares.
func check(ctx context.Context, c meta.Content, s stored) error {
	return checkRange(ctx, c, s, 0, len(s.data))
}

// checkRange reads n bytes at off and compares.
func checkRange(ctx context.Context, c meta.Content, s stored, off, n int) error {
	got := random(99, n) // so that bytes which are not written show
	if err := c.Read(ctx, s.blob, int64(off), got); err != nil {
		return fmt.Errorf("read %d bytes at %d of %d: %w", n, off, len(s.data), err)
	}
	for i := range got {
		if want := s.data[off+i]; got[i] != want {
			return fmt.Errorf("read %d bytes at %d of %d: byte %d is %#x, want %#x", n, off, len(s.data), off+i, got[i], want)
		}
	}
	return nil
}

// wantKind says what is wrong with err if it is not of one of the kinds.
func wantKind(what string, err error, kinds ...meta.Kind) error {
	if err == nil {
		return fmt.Errorf("%s: no error, want %q", what, kinds[0])
	}
	for _, k := range kinds {
		if meta.KindOf(err) == k {
			return nil
		}
	}
	return fmt.Errorf("%s: got %q, want %q", what, err, kinds[0])
}

// sizes around every boundary that drivers have.
func boundarySizes() []int {
	const leaf = 16 << 10
	return []int{
		meta.InlineMax + 1, 2*leaf - 1, 2 * leaf, 2*leaf + 1, 100_000,
		1<<20 - 1, 1 << 20, 1<<20 + 1, meta.BlobMax - 1, meta.BlobMax,
	}
}
