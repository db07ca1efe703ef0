package raftnode

import (
	"encoding/binary"
	"errors"

	"nexusfs/meta"
	"nexusfs/raftnode/kv"
)

// Cache is a zone's read cache on this node that outlives the daemon. It is the
// node's own: outside of the replicated state and its snapshots (P18). It is
// written without syncs, each row with its revision; it is worth something only
// together with the revision up to which it is complete. After a restart its
// user replays SQL's operations from there, or drops it.
type Cache struct {
	store *kv.Store
	zone  string
}

// Cache returns the zone's cache.
func (z *Zone) Cache() Cache { return Cache{z.n.store, z.name} }

// CacheRow is one cached thing. A nil Value removes it.
type CacheRow struct {
	Key   []byte
	Rev   meta.Rev // of what Value holds
	Value []byte
}

// Keys of the cache: the zone, 0, then 'r' for a row or 'c' for the revision up
// to which it is complete.
func (c Cache) key(kind byte, key []byte) []byte {
	return append(append([]byte(c.zone), 0, kind), key...)
}

// Get returns a row; ok is false when there is none.
func (c Cache) Get(key []byte) (r CacheRow, ok bool, err error) {
	b, err := c.store.Get(kv.Metadata, c.key('r', key))
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return r, false, nil
	case err != nil:
		return r, false, err
	case len(b) < 8:
		return r, false, kv.ErrDamaged
	}
	return CacheRow{Key: key, Rev: meta.Rev(binary.BigEndian.Uint64(b)), Value: b[8:]}, true, nil
}

// CompleteTo returns the revision up to which the cache holds nothing older than
// the truth; 0 when nothing is known.
func (c Cache) CompleteTo() (meta.Rev, error) {
	b, err := c.store.Get(kv.Metadata, c.key('c', nil))
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case len(b) != 8:
		return 0, kv.ErrDamaged
	}
	return meta.Rev(binary.BigEndian.Uint64(b)), nil
}

// Write stores rows in one transaction, after which the cache is complete up to
// the given revision. A row never replaces a newer one (I5). It is not synced.
func (c Cache) Write(completeTo meta.Rev, rows []CacheRow) error {
	return c.store.Update(false, func(t *kv.Tx) error {
		for _, r := range rows {
			if err := c.write(t, r); err != nil {
				return err
			}
		}
		return t.Set(kv.Metadata, c.key('c', nil), binary.BigEndian.AppendUint64(nil, uint64(completeTo)))
	})
}

func (c Cache) write(t *kv.Tx, r CacheRow) error {
	key := c.key('r', r.Key)
	b, err := t.Get(kv.Metadata, key)
	if err != nil && !errors.Is(err, kv.ErrNotFound) {
		return err
	}
	switch {
	case len(b) >= 8 && meta.Rev(binary.BigEndian.Uint64(b)) > r.Rev:
		return nil
	case r.Value == nil:
		return t.Delete(kv.Metadata, key)
	}
	return t.Set(kv.Metadata, key, append(binary.BigEndian.AppendUint64(nil, uint64(r.Rev)), r.Value...))
}

// Drop empties the cache.
func (c Cache) Drop() error {
	from := append([]byte(c.zone), 0)
	return c.store.Update(false, func(t *kv.Tx) error { return t.DeleteRange(kv.Metadata, from, kv.PrefixEnd(from)) })
}
