package meta

import (
	"context"
	"fmt"
	"testing"
)

// tree makes directories and files below a new directory "t" and returns how
// many names there are with it.
func (r *rig) tree(dirs, files int) int {
	r.t.Helper()
	ctx := r.t.Context()
	top, err := r.Mkdir(ctx, user, RootIno, "t", 0o755, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	n, at := 1, top.Ino
	for d := range dirs {
		for f := range files {
			if _, err := r.Mknod(ctx, user, at, fmt.Sprintf("f%d", f), ModeRegular|0o644, 0, 0); err != nil {
				r.t.Fatal(err)
			}
			n++
		}
		a, err := r.Mkdir(ctx, user, at, fmt.Sprintf("d%d", d), 0o755, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		at, n = a.Ino, n+1
	}
	return n
}

func TestRemoveTreeRemovesEachNameByItsOwnOperation(t *testing.T) {
	r := newRig(t)
	want := r.tree(5, 40)
	records, batches := len(r.store.records), len(r.store.batches)
	var seen int64
	got, err := r.RemoveTree(t.Context(), user, RootIno, "t", func(n int64) { seen = n })
	if err != nil || got != int64(want) || seen != got {
		t.Fatalf("removed %d (told %d), %v, want %d", got, seen, err, want)
	}
	if n := len(r.store.records) - records; n != want {
		t.Errorf("%d records of %d names", n, want)
	}
	if n := len(r.store.batches) - batches; n > 12 {
		t.Errorf("%d transactions", n)
	}
	if len(r.store.names) != 0 {
		t.Errorf("names left: %v", r.store.names)
	}
	if a := r.stat(RootIno); a.Entries != 0 || a.Nlink != 2 {
		t.Errorf("the root has %d entries and %d links", a.Entries, a.Nlink)
	}
	_, err = r.RemoveTree(t.Context(), user, RootIno, "t", nil)
	r.wantKind(err, KindNotExist)
}

func TestRemoveTreeOfAFile(t *testing.T) {
	r := newRig(t)
	r.close(r.create("f"))
	if n, err := r.RemoveTree(t.Context(), user, RootIno, "f", nil); n != 1 || err != nil {
		t.Fatalf("removed %d, %v", n, err)
	}
}

func TestRemoveTreeEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	r.tree(3, 3)
	ctx, cancel := context.WithCancel(t.Context())
	n, err := r.RemoveTree(ctx, user, RootIno, "t", func(int64) { cancel() })
	r.wantKind(err, KindInterrupted)
	if n == 0 || len(r.store.names) == 0 {
		t.Errorf("removed %d, %d are left", n, len(r.store.names))
	}
}

// Somebody who goes on making names in a directory is removed after a few
// rounds, or reported.
func TestRemoveTreeAgainstSomebodyWhoMakesNames(t *testing.T) {
	r := newRig(t)
	r.tree(1, 1)
	var made int
	_, err := r.RemoveTree(t.Context(), user, RootIno, "t", func(int64) {
		if made == 3 {
			return
		}
		made++
		top, err := r.Lookup(t.Context(), RootIno, "t")
		if err != nil {
			return
		}
		if _, err := r.Mknod(t.Context(), user, top.Ino, fmt.Sprintf("late%d", made), ModeRegular|0o644, 0, 0); err != nil {
			t.Error(err)
		}
	})
	if err != nil || len(r.store.names) != 0 {
		t.Errorf("%v, names left: %v", err, r.store.names)
	}
}
