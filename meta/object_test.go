package meta

import (
	"bytes"
	"testing"
)

func TestMake(t *testing.T) {
	long := string(bytes.Repeat([]byte("t"), SymlinkMax+1))
	for _, tc := range []struct {
		name string
		o    Object
		want Kind // with fails
		fail bool
	}{
		{"empty file", Object{Mode: ModeRegular | 0o600}, 0, false},
		{"file with content", Object{Mode: ModeRegular | 0o4755, UID: 5, GID: 6, Atime: 7, Mtime: -8, Content: []byte("content")}, 0, false},
		{"directory", Object{Mode: ModeDir | 0o2700, UID: 5, Mtime: 9}, 0, false},
		{"link", Object{Mode: ModeSymlink | 0o777, Target: "to"}, 0, false},
		{"device", Object{Mode: ModeChar | 0o600, Rdev: 259}, 0, false},
		{"fifo", Object{Mode: ModeFifo | 0o600}, 0, false},
		{"no type", Object{Mode: 0o600}, KindInvalid, true},
		{"link without target", Object{Mode: ModeSymlink}, KindInvalid, true},
		{"file with target", Object{Mode: ModeRegular, Target: "to"}, KindInvalid, true},
		{"directory with content", Object{Mode: ModeDir, Content: []byte("x")}, KindInvalid, true},
		{"too much content", Object{Mode: ModeRegular, Content: make([]byte, InlineMax+1)}, KindTooBig, true},
		{"target too long", Object{Mode: ModeSymlink, Target: long}, KindNameTooLong, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			ctx, c := t.Context(), Caller{UID: 77, GID: 77}
			dir, err := r.Mkdir(ctx, c, RootIno, "setgid", 0o2777, 0) // whose group nothing takes here
			if err != nil {
				t.Fatal(err)
			}
			made, err := r.Make(ctx, c, dir.Ino, "it", tc.o)
			if tc.fail {
				if err == nil || KindOf(err) != tc.want {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.GetAttr(ctx, made.Ino)
			if err != nil || got.Mode != tc.o.Mode || got.UID != tc.o.UID || got.GID != tc.o.GID || got.Atime != tc.o.Atime ||
				got.Mtime != tc.o.Mtime || got.Rdev != tc.o.Rdev || got.Rev != made.Rev {
				t.Errorf("made %+v of %+v, %v", got, tc.o, err)
			}
			if got.IsRegular() && (got.Size != int64(len(tc.o.Content)) || got.Version != 1) {
				t.Errorf("a file of %d bytes, version %d", got.Size, got.Version)
			}
			if _, err := r.Make(ctx, c, dir.Ino, "it", tc.o); err == nil || KindOf(err) != KindExist {
				t.Errorf("a second one of the same name: %v", err)
			}
		})
	}
}

// TestMakeFileIsOneVersion: what is written through its handle is version 1.
func TestMakeFileIsOneVersion(t *testing.T) {
	r := newRig(t)
	ctx, c := t.Context(), Caller{}
	a, h, err := r.MakeFile(ctx, c, RootIno, "f", Object{Mode: ModeRegular | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Write(ctx, c, 0, make([]byte, 100_000), false); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(ctx, c); err != nil {
		t.Fatal(err)
	}
	h.Release(ctx)
	if a, err = r.GetAttr(ctx, a.Ino); err != nil || a.Version != 1 || a.Size != 100_000 {
		t.Errorf("version %d with %d bytes, %v", a.Version, a.Size, err)
	}
}
