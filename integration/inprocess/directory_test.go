package inprocess

import (
	"context"
	"testing"

	"nexusfs/meta"
)

// TestRemovedDirectory: a directory that was removed while somebody is in it
// can still be changed, and can be given a name again.
func TestRemovedDirectory(t *testing.T) {
	fs, ctx := open(t), context.Background()
	ino := mkdir(t, fs, meta.RootIno, "d")
	if err := fs.Rmdir(ctx, caller, meta.RootIno, "d"); err != nil {
		t.Fatal(err)
	}
	if a, err := fs.SetAttr(ctx, caller, ino, meta.SetAttr{Valid: meta.SetMode, Mode: 0o700}); err != nil || a.Mode != meta.ModeDir|0o700 || a.Nlink != 0 {
		t.Fatalf("chmod: %+v, %v", a, err)
	}
	if _, err := fs.Undelete(ctx, caller, meta.RootIno, meta.DeletedName{Name: "d", Ino: ino}, "again"); err != nil {
		t.Fatal(err)
	}
	mknod(t, fs, ino, "f")
	a, err := fs.Resolve(ctx, "/again/f")
	if err != nil || a.Nlink != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	if root, err := fs.GetAttr(ctx, meta.RootIno); err != nil || root.Nlink != 3 || root.Entries != 1 {
		t.Fatalf("root: %+v, %v", root, err)
	}
}
