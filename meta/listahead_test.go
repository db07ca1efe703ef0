package meta

import (
	"context"
	"fmt"
	"testing"
)

// countedLists counts the listings that reach the store.
type countedLists struct {
	*fakeStore
	lists int
}

func (s *countedLists) List(ctx context.Context, dir Ino, after uint64, limit int, attrs bool, buf []Entry) ([]Entry, error) {
	s.lists++
	all, err := s.fakeStore.List(ctx, dir, after, limit, attrs, nil)
	n := min(limit, len(all))
	for n > 0 && n < len(all) && all[n].Cookie == all[n-1].Cookie {
		n++
	}
	return append(buf, all[:n]...), err
}

// A listing of a far store takes one statement for a thousand entries, however
// few are asked for at a time, and shows what was committed in between.
func TestFarDirectoriesAreReadAhead(t *testing.T) {
	var store *countedLists
	r := newRig(t, func(o *Options) {
		store = &countedLists{fakeStore: o.Store.(*fakeStore)}
		o.Store, o.Far = store, true
	})
	const n = 2500
	for i := range n {
		if _, err := r.Mknod(t.Context(), user, RootIno, fmt.Sprint(i), ModeRegular|0o644, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	list := func(between func(seen int)) map[string]Attr {
		t.Helper()
		seen := map[string]Attr{}
		for after := uint64(0); ; {
			got, err := r.ReadDir(t.Context(), RootIno, after, 30, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				return seen
			}
			for _, e := range got {
				if _, twice := seen[e.Name]; twice {
					t.Fatalf("%s is listed twice", e.Name)
				}
				seen[e.Name] = e.Attr
			}
			after = got[len(got)-1].Cookie
			between(len(seen))
		}
	}
	if got := len(list(func(int) {})); got != n {
		t.Errorf("%d entries, want %d", got, n)
	}
	if store.lists != 3 {
		t.Errorf("%d statements for %d entries, want 3", store.lists, n)
	}
	last, err := r.ReadDir(t.Context(), RootIno, 0, n, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := last[aheadEntries/2] // in the page that the first call has read
	done := false
	seen := list(func(int) {
		if !done {
			done = true
			if _, err := r.SetAttr(t.Context(), user, changed.Attr.Ino, SetAttr{Valid: SetMode, Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
		}
	})
	if got := seen[changed.Name].Mode & ModePerm; got != 0o600 {
		t.Errorf("an attribute that changed while the listing went on: mode %o", got)
	}
}
