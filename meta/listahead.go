package meta

import (
	"context"
	"sort"
	"sync"
)

// Named limits of reading directories ahead.
const (
	aheadEntries = 1024 // entries read at once
	aheadPages   = 16   // listings under way that are remembered
)

// listings keeps what was read of directories beyond what was asked for, where
// the store is far away: the kernel asks for a few dozen entries at a time. A
// page holds for one state of the zone: when anything was committed since, it
// is read again, so nobody is told an attribute that has changed.
type listings struct {
	mu    sync.Mutex
	pages map[pageKey]*page // guarded by mu
}

type pageKey struct {
	dir   Ino
	attrs bool
}

// page is what a directory holds above a cookie. It is not modified.
type page struct {
	head    int64 // newest revision when it was read
	after   uint64
	entries []Entry
	whole   bool // it reaches to the directory's end
}

// from returns the entries above a cookie, at most limit and never a part of
// those that share one; ok: the page knows them.
func (p *page) from(after uint64, limit int) (list []Entry, ok bool) {
	if after < p.after {
		return nil, false
	}
	i := sort.Search(len(p.entries), func(i int) bool { return p.entries[i].Cookie > after })
	if i == len(p.entries) {
		return nil, p.whole
	}
	j := min(i+limit, len(p.entries))
	for j < len(p.entries) && p.entries[j].Cookie == p.entries[j-1].Cookie {
		j++
	}
	return p.entries[i:j], true
}

// listAhead is Store.List with what is left over kept for the next call.
func (fs *FS) listAhead(ctx context.Context, dir Ino, after uint64, limit int, attrs bool, buf []Entry) ([]Entry, error) {
	key, head := pageKey{dir, attrs}, fs.head.Load()
	fs.listings.mu.Lock()
	p := fs.listings.pages[key]
	fs.listings.mu.Unlock()
	if p != nil && p.head == head {
		if list, ok := p.from(after, limit); ok {
			return append(buf, list...), nil
		}
	}
	list, err := fs.o.Store.List(ctx, dir, after, max(limit, aheadEntries), attrs, nil)
	if err != nil {
		return buf, err
	}
	p = &page{head: head, after: after, entries: list, whole: len(list) < max(limit, aheadEntries)}
	fs.listings.keep(key, p)
	some, _ := p.from(after, limit)
	return append(buf, some...), nil
}

// keep remembers a page, instead of any other when there are many.
func (l *listings) keep(key pageKey, p *page) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pages == nil {
		l.pages = make(map[pageKey]*page)
	}
	for other := range l.pages {
		if len(l.pages) < aheadPages {
			break
		}
		delete(l.pages, other)
	}
	l.pages[key] = p
}
