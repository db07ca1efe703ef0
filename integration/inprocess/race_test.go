package inprocess

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"nexusfs/meta"
)

// race runs both functions at the same moment and returns their errors.
func race(a, b func() error) (ea, eb error) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	wg.Go(func() { <-start; ea = a() })
	wg.Go(func() { <-start; eb = b() })
	close(start)
	wg.Wait()
	return ea, eb
}

func mkdir(t *testing.T, fs *meta.FS, parent meta.Ino, name string) meta.Ino {
	t.Helper()
	a, err := fs.Mkdir(context.Background(), caller, parent, name, 0o755, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a.Ino
}

func mknod(t *testing.T, fs *meta.FS, parent meta.Ino, name string) meta.Ino {
	t.Helper()
	a, err := fs.Mknod(context.Background(), caller, parent, name, meta.ModeRegular|0o644, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a.Ino
}

const rounds = 300

// TestP3RmdirAgainstCreate: an empty directory is removed while a file is
// created in it; exactly one of both succeeds.
func TestP3RmdirAgainstCreate(t *testing.T) {
	fs, ctx := open(t), context.Background()
	for i := range rounds {
		name := fmt.Sprintf("d%d", i)
		d := mkdir(t, fs, meta.RootIno, name)
		er, ec := race(
			func() error { return fs.Rmdir(ctx, caller, meta.RootIno, name) },
			func() error {
				_, err := fs.Mknod(ctx, caller, d, "f", meta.ModeRegular|0o644, 0, 0)
				return err
			})
		switch {
		case er == nil && ec != nil && meta.KindOf(ec) == meta.KindNotExist:
		case ec == nil && er != nil && meta.KindOf(er) == meta.KindNotEmpty:
		default:
			t.Fatalf("round %d: rmdir %v, create %v", i, er, ec)
		}
	}
}

// TestP3CrossingRenames: a goes below b while b goes below a; one is refused,
// and both stay reachable.
func TestP3CrossingRenames(t *testing.T) {
	fs, ctx := open(t), context.Background()
	for i := range rounds {
		top := mkdir(t, fs, meta.RootIno, fmt.Sprintf("t%d", i))
		a, b := mkdir(t, fs, top, "a"), mkdir(t, fs, top, "b")
		ea, eb := race(
			func() error { return fs.Rename(ctx, caller, top, "a", b, "a", 0) },
			func() error { return fs.Rename(ctx, caller, top, "b", a, "b", 0) })
		if (ea == nil) == (eb == nil) {
			t.Fatalf("round %d: %v, %v: want one winner", i, ea, eb)
		}
		path := "a/b"
		if ea == nil {
			path = "b/a"
		}
		if _, err := fs.Resolve(ctx, fmt.Sprintf("/t%d/%s", i, path)); err != nil {
			t.Fatalf("round %d: %s: %v", i, path, err)
		}
	}
}

// TestRenameOfOneFileByTwo: one wins, the other is told that the name is gone.
func TestRenameOfOneFileByTwo(t *testing.T) {
	fs, ctx := open(t), context.Background()
	for i := range rounds {
		d := mkdir(t, fs, meta.RootIno, fmt.Sprintf("r%d", i))
		mknod(t, fs, d, "f")
		ea, eb := race(
			func() error { return fs.Rename(ctx, caller, d, "f", d, "a", 0) },
			func() error { return fs.Rename(ctx, caller, d, "f", d, "b", 0) })
		if ea == nil {
			ea, eb = eb, ea
		}
		if eb != nil || ea == nil || meta.KindOf(ea) != meta.KindNotExist {
			t.Fatalf("round %d: %v, %v: want one success and one 'no such file'", i, ea, eb)
		}
	}
}

// TestLinkAgainstUnlink: a file's only name goes while another one is made.
func TestLinkAgainstUnlink(t *testing.T) {
	fs, ctx := open(t), context.Background()
	for i := range rounds {
		d := mkdir(t, fs, meta.RootIno, fmt.Sprintf("l%d", i))
		ino := mknod(t, fs, d, "f")
		el, eu := race(
			func() error { _, err := fs.Link(ctx, caller, ino, d, "g"); return err },
			func() error { return fs.Unlink(ctx, caller, d, "f") })
		if eu != nil {
			t.Fatalf("round %d: unlink: %v", i, eu)
		}
		a, err := fs.GetAttr(ctx, ino)
		switch {
		case el == nil && err == nil && a.Nlink == 1:
		case meta.KindOf(el) == meta.KindNotExist && err == nil && a.Nlink == 0:
		default:
			t.Fatalf("round %d: link %v, then %+v, %v", i, el, a, err)
		}
	}
}

// TestOneWinnerPerName: many create one name; one succeeds.
func TestOneWinnerPerName(t *testing.T) {
	fs, ctx := open(t), context.Background()
	for i := range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for range 8 {
			wg.Go(func() {
				_, h, err := fs.Create(ctx, caller, meta.RootIno, fmt.Sprintf("x%d", i),
					meta.CreateArgs{Mode: 0o644, Flags: meta.OpenFlags{Write: true, Excl: true}})
				if err == nil {
					h.Release(ctx)
					mu.Lock()
					won++
					mu.Unlock()
				} else if meta.KindOf(err) != meta.KindExist {
					t.Errorf("create: %v", err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Fatalf("round %d: %d winners", i, won)
		}
	}
}
