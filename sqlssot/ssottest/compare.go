package ssottest

import (
	"maps"
	"math"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"nexusfs/meta"
)

// compare holds the store's present against the model's.
func (w *world) compare() {
	w.tb.Helper()
	for _, ino := range w.now.inos() {
		n := w.now.nodes[ino]
		got, err := w.s.Inode(ctx, ino)
		w.ok(err)
		if diff := cmp.Diff(n.attr, got); diff != "" {
			w.tb.Fatalf("inode %d (-want +got):\n%s", ino, diff)
		}
		w.compareNames(ino, n)
		w.compareXattrs(ino, n)
		if n.attr.IsSymlink() {
			target, err := w.s.Target(ctx, ino)
			w.ok(err)
			if target != n.target {
				w.tb.Fatalf("inode %d points to %q, want %q", ino, target, n.target)
			}
		}
		if n.attr.IsRegular() {
			ext, err := w.s.Extents(ctx, ino, 0, math.MaxInt64, math.MaxInt32, true)
			w.ok(err)
			w.compareContent(ino, n, ext)
			w.compareVersions(ino, n)
		}
	}
	u, err := w.s.Usage(ctx)
	w.ok(err)
	if diff := cmp.Diff(w.now.usage(), u, cmpopts.IgnoreFields(meta.Usage{}, "HistoryBytes")); diff != "" {
		w.tb.Fatalf("usage (-want +got):\n%s", diff)
	}
}

func (w *world) compareNames(ino meta.Ino, n *node) {
	w.tb.Helper()
	if !n.attr.IsDir() {
		return
	}
	var list []meta.Entry
	for after := uint64(0); ; {
		page, err := w.s.List(ctx, ino, after, 3, true, nil)
		w.ok(err)
		if len(page) == 0 {
			break
		}
		list = append(list, page...)
		after = page[len(page)-1].Cookie
	}
	got := make(map[string]meta.Ino)
	for i, e := range list {
		if e.Cookie != meta.NameCookie(e.Name) || i > 0 && e.Cookie < list[i-1].Cookie {
			w.tb.Fatalf("directory %d lists %q out of order", ino, e.Name)
		}
		if diff := cmp.Diff(w.attr(e.Attr.Ino), e.Attr); diff != "" {
			w.tb.Fatalf("listing of %q (-want +got):\n%s", e.Name, diff)
		}
		got[e.Name] = e.Attr.Ino
	}
	if !maps.Equal(got, n.names) || len(list) != len(n.names) {
		w.tb.Fatalf("directory %d lists %v, want %v", ino, got, n.names)
	}
	for name, child := range n.names {
		a, err := w.s.Lookup(ctx, ino, name)
		w.ok(err)
		if a.Ino != child {
			w.tb.Fatalf("%q is inode %d, want %d", name, a.Ino, child)
		}
	}
}

func (w *world) compareXattrs(ino meta.Ino, n *node) {
	w.tb.Helper()
	names, err := w.s.Xattrs(ctx, ino)
	w.ok(err)
	if want := slices.Sorted(maps.Keys(n.xattrs)); !slices.Equal(names, want) {
		w.tb.Fatalf("inode %d has attributes %q, want %q", ino, names, want)
	}
	for name, value := range n.xattrs {
		got, err := w.s.Xattr(ctx, ino, name)
		w.ok(err)
		if string(got) != value {
			w.tb.Fatalf("attribute %q is %q, want %q", name, got, value)
		}
	}
}

// compareContent puts a file together from its extents.
func (w *world) compareContent(ino meta.Ino, n *node, ext []meta.Extent) {
	w.tb.Helper()
	data, held, end := make([]byte, len(n.data)), int64(0), int64(0)
	for _, e := range ext {
		if e.Off < end {
			w.tb.Fatalf("inode %d: extent at %d overlaps the one before", ino, e.Off)
		}
		end = e.Off + e.Len
		blob := w.blobs[e.Blob.ID]
		if e.Blob.Place == meta.PlaceInline && string(e.Data) != string(blob) {
			w.tb.Fatalf("inode %d: the bytes of the extent at %d differ", ino, e.Off)
		}
		if end > int64(len(data)) {
			data = append(data, make([]byte, end-int64(len(data)))...)
		}
		copy(data[e.Off:end], blob[e.BlobOff:])
		held += e.Len
	}
	if !sameData(data, n.data) || held != n.held() {
		w.tb.Fatalf("inode %d: content is %q (%d bytes held), want %q (%d)", ino, data, held, n.data, n.held())
	}
}

func (w *world) compareVersions(ino meta.Ino, n *node) {
	w.tb.Helper()
	got, err := w.s.Versions(ctx, ino)
	w.ok(err)
	if diff := cmp.Diff(n.vers, got, cmpopts.IgnoreFields(meta.Version{}, "Actor", "Time")); diff != "" {
		w.tb.Fatalf("versions of inode %d (-want +got):\n%s", ino, diff)
	}
}

// compareAt holds what the store says of a past revision against the model.
func (w *world) compareAt(rev meta.Rev) {
	w.tb.Helper()
	past := w.past[rev]
	for _, ino := range w.now.inos() {
		n := past.nodes[ino]
		got, err := w.s.InodeAt(ctx, ino, rev)
		if n == nil {
			w.wantKind(err, meta.KindNotExist)
			continue
		}
		w.ok(err)
		if n.attr.IsDir() { // its names and what they move are not part of its images
			if got.Mode != n.attr.Mode || got.UID != n.attr.UID {
				w.tb.Fatalf("directory %d at %d is %+v, want %+v", ino, rev, got, n.attr)
			}
			continue
		}
		if diff := cmp.Diff(n.attr, got); diff != "" {
			w.tb.Fatalf("inode %d at %d (-want +got):\n%s", ino, rev, diff)
		}
		if n.attr.IsRegular() {
			ext, err := w.s.ExtentsAt(ctx, ino, rev, 0, math.MaxInt64, math.MaxInt32, true)
			w.ok(err)
			w.compareContent(ino, n, ext)
		}
	}
}
