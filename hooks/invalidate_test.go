package hooks

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nexusfs/meta"
)

// heard writes down what the kernel is told.
type heard []string

func (h *heard) InvalidateInode(ino meta.Ino, pages bool) {
	*h = append(*h, fmt.Sprintf("inode %d pages %t", ino, pages))
}

func (h *heard) InvalidateName(parent meta.Ino, name string, gone meta.Ino) {
	*h = append(*h, fmt.Sprintf("name %d/%s gone %d", parent, name, gone))
}

func attr(ino meta.Ino, mode uint32) *meta.Attr { return &meta.Attr{Ino: ino, Mode: mode} }

func TestInvalidate(t *testing.T) {
	file := func(mode uint32) *meta.Attr { return attr(7, meta.ModeRegular|mode) }
	restore := &meta.Change{
		Record:  meta.Record{Kind: meta.OpRestore, Ino: 7},
		Inodes:  []meta.InodeChange{{Before: file(0o644), After: *file(0o644)}},
		Content: &meta.ContentChange{Ino: 7},
	}
	undelete := &meta.Change{
		Record: meta.Record{Kind: meta.OpRestore, Ino: 7},
		Inodes: []meta.InodeChange{{Before: file(0o644), After: *file(0o644)}},
		Names:  []meta.NameChange{{Parent: 3, Name: "a", After: 7}},
		Dirs:   []meta.DirDelta{{Ino: 3, Entries: 1}},
	}
	unlink := &meta.Change{
		Record: meta.Record{Kind: meta.OpUnlink, Ino: 7},
		Inodes: []meta.InodeChange{{Before: file(0o644), After: *file(0o644)}},
		Names:  []meta.NameChange{{Parent: 3, Name: "a", Before: 7}},
		Dirs:   []meta.DirDelta{{Ino: 3, Entries: -1}},
	}
	write := func(before, after uint32) *meta.Change {
		return &meta.Change{
			Record:  meta.Record{Kind: meta.OpWrite, Ino: 7},
			Inodes:  []meta.InodeChange{{Before: file(before), After: *file(after)}},
			Content: &meta.ContentChange{Ino: 7},
		}
	}
	chmod := &meta.Change{
		Record: meta.Record{Kind: meta.OpSetattr, Ino: 7},
		Inodes: []meta.InodeChange{{Before: file(0o644), After: *file(0o600)}},
	}
	for _, c := range []struct {
		name   string
		change *meta.Change
		origin meta.Origin
		want   heard
	}{
		{"restore by a command", restore, meta.OriginCommand, heard{"inode 7 pages true"}},
		{"undelete by a command", undelete, meta.OriginCommand,
			heard{"inode 7 pages false", "name 3/a gone 0", "inode 3 pages true"}},
		{"unlink by another node", unlink, meta.OriginRemote,
			heard{"inode 7 pages false", "name 3/a gone 7", "inode 3 pages true"}},
		{"unlink by the kernel", unlink, meta.OriginKernel, nil},
		{"write by the kernel", write(0o644, 0o644), meta.OriginKernel, nil},
		{"write by the kernel that drops set-user-id", write(0o4755, 0o755), meta.OriginKernel, heard{"inode 7 pages false"}},
		{"chmod by the kernel", chmod, meta.OriginKernel, nil},
		{"chmod by another node", chmod, meta.OriginRemote, heard{"inode 7 pages false"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got heard
			h := NewInvalidate(&got)
			if err := h.Apply(context.Background(), []meta.Committed{{Change: c.change, Origin: c.origin}}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("the kernel was told (-want +got):\n%s", diff)
			}
		})
	}
}

func (h *heard) DropAll(_ context.Context, wait bool) error {
	*h = append(*h, fmt.Sprintf("everything, wait %t", wait))
	return nil
}

func TestForgetDropsEverything(t *testing.T) {
	var h heard
	var hook meta.Hook = NewInvalidate(&h)
	if err := hook.(meta.Forgetter).Forget(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(heard{"everything, wait true"}, h); diff != "" {
		t.Error(diff)
	}
}
