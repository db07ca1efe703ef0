package local

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"nexusfs/content"
	"nexusfs/meta"
)

// two opens a folder twice: writers 0 and 1.
func two(t *testing.T, set func(*Options)) (a, b *Store) {
	t.Helper()
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	if set != nil {
		set(&o)
	}
	a, b = mustOpen(t, o), openBeside(t, o)
	if a.writer != 0 || b.writer != 1 {
		t.Fatalf("writers are %d and %d, want 0 and 1", a.writer, b.writer)
	}
	return a, b
}

func mustFree(t *testing.T, s *Store, blobs ...meta.Blob) {
	t.Helper()
	if err := s.Free(context.Background(), blobs); err != nil {
		t.Fatal(err)
	}
}

func notesIn(t *testing.T, f *folder) int {
	t.Helper()
	names, err := os.ReadDir(filepath.Join(f.dir, "notes"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func everything(meta.Blob) (bool, error)  { return true, nil }
func neverMoved(from, to meta.Blob) error { return meta.KindConflict.Err() }

// What one writer frees of a running other one is not lost, whoever comes to
// work it off, and until then it is there.
func TestFreeOfARunningWritersBlobs(t *testing.T) {
	ctx := context.Background()
	reopen := func(t *testing.T, s *Store) *Store {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return openBeside(t, Options{Dir: s.opts.Dir})
	}
	tests := map[string]func(t *testing.T, owner, other *Store) *Store{
		"the owner frees": func(t *testing.T, owner, _ *Store) *Store {
			mustFree(t, owner)
			return owner
		},
		"the owner compacts": func(t *testing.T, owner, _ *Store) *Store {
			if err := owner.Compact(ctx, everything, neverMoved); err != nil {
				t.Fatal(err)
			}
			return owner
		},
		"the next one takes the folder": func(t *testing.T, owner, _ *Store) *Store {
			return reopen(t, owner)
		},
		"another compacts after the owner's end": func(t *testing.T, owner, other *Store) *Store {
			if err := owner.Close(); err != nil {
				t.Fatal(err)
			}
			if err := other.Compact(ctx, everything, neverMoved); err != nil {
				t.Fatal(err)
			}
			return other
		},
		"another frees after the owner's end": func(t *testing.T, owner, other *Store) *Store {
			if err := owner.Close(); err != nil {
				t.Fatal(err)
			}
			mustFree(t, other, meta.Blob{Place: meta.PlacePack, Segment: 1, Offset: 1 << 30, Size: 1})
			return other
		},
	}
	for name, workOff := range tests {
		t.Run(name, func(t *testing.T) {
			owner, other := two(t, nil)
			record, file := mustPut(t, owner, randomBytes(1, 50_000)), mustPut(t, owner, randomBytes(2, 2<<20))
			keep := mustPut(t, owner, randomBytes(3, 50_000))
			mustFree(t, other, record.Blob, file.Blob)
			mustFree(t, other, record.Blob) // noted twice: no harm
			if n := notesIn(t, owner.folder); n != 2 {
				t.Fatalf("%d notes, want 2", n)
			}
			mustRead(t, other, record)
			mustRead(t, owner, file)
			s := workOff(t, owner, other)
			if n := notesIn(t, owner.folder); n != 0 {
				t.Errorf("%d notes are left", n)
			}
			if got := walkAll(t, s); len(got) != 1 || !got[keep.Blob] {
				t.Errorf("walk lists %v, want the blob that was not freed alone", got)
			}
			mustRead(t, s, keep)
			if st := s.Stats(); s.writer == 0 && (st.Files != 0 || st.FileBytes != 0) {
				t.Errorf("stats count %d files of %d bytes, all of them freed", st.Files, st.FileBytes)
			}
			s.tables, s.leaves = content.NewTables(1), newLeafCache(0)
			for _, b := range []blobData{record, file} {
				err := s.Read(ctx, b.Blob, 0, make([]byte, b.Size))
				if err == nil || meta.KindOf(err) != meta.KindStale {
					t.Errorf("read of a freed place: got %v, want stale", err)
				}
			}
		})
	}
}

func TestFreeOfPlacesThatNobodyHas(t *testing.T) {
	_, s := two(t, nil)
	for _, segment := range []int64{7, 9<<segmentBits | 1, 2 << segmentBits, 1<<62 + 1} {
		b := meta.Blob{Place: meta.PlacePack, Segment: segment, Size: 20_000}
		mustFree(t, s, b)
		err := s.Read(context.Background(), b, 0, make([]byte, 10))
		if err == nil || meta.KindOf(err) != meta.KindStale {
			t.Errorf("segment %d: read gives %v, want stale", segment, err)
		}
	}
}

func TestUnreadableNoteIsPassedOver(t *testing.T) {
	owner, other := two(t, nil)
	drop, keep := mustPut(t, owner, randomBytes(1, 50_000)), mustPut(t, other, randomBytes(2, 50_000))
	text := "rubbish\n1 2 3\n" + string(encodeNote([]meta.Blob{drop.Blob, keep.Blob}))
	if err := os.WriteFile(filepath.Join(owner.dir, "notes", "0001-x-1"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mustFree(t, owner)
	if got := walkAll(t, owner); len(got) != 1 || !got[keep.Blob] || notesIn(t, owner.folder) != 0 {
		t.Errorf("walk lists %v, %d notes are left; want the other writer's blob alone", got, notesIn(t, owner.folder))
	}
}

func FuzzDecodeNote(f *testing.F) {
	f.Add(encodeNote([]meta.Blob{{Place: meta.PlaceFile, Segment: 3<<segmentBits | 5, Offset: 64, Size: 1 << 20}}))
	f.Add([]byte("1 2 3 4 zz\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		blobs, _ := decodeNote(text)
		again, err := decodeNote(encodeNote(blobs))
		if err != nil || len(again) != len(blobs) {
			t.Fatalf("%v reads back as %v: %v", blobs, again, err)
		}
		for i := range blobs {
			if blobs[i] != again[i] {
				t.Fatalf("%v reads back as %v", blobs[i], again[i])
			}
		}
	})
}
