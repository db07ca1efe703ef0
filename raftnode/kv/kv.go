// Package kv is raftnode's typed store: six buckets of one bbolt file, with
// checked values.
//
// It promises: a transaction is there wholly or not at all, also after kill -9;
// what was written with Sync survives a loss of power; every value carries a
// checksum, and what does not match it is ErrDamaged, never wrong bytes; a file
// that is damaged is moved aside, one of a newer format or of another product
// is refused and left alone (P16). It does not know Raft. Its caller is
// raftnode.
package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Bucket names one of the store's tables.
type Bucket string

// The buckets; raftnode/DESIGN.md says what each holds.
const (
	Entries   Bucket = "raft_entries"
	State     Bucket = "raft_state"
	Metadata  Bucket = "sm_metadata"
	Locks     Bucket = "sm_locks"
	Witness   Bucket = "witness_log"
	Revisions Bucket = "revisions"
)

// Buckets returns all of them.
func Buckets() []Bucket { return []Bucket{Entries, State, Metadata, Locks, Witness, Revisions} }

// Limits of keys and values, in bytes.
const (
	KeyMax   = 4096
	ValueMax = 256 << 20
)

var (
	// ErrNotFound is the absence of a key.
	ErrNotFound = errors.New("no such key")
	// ErrDamaged is a value whose checksum does not match.
	ErrDamaged = errors.New("the stored value is damaged")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Store is an open file. Its methods may be called concurrently; writes run one
// at a time.
type Store struct {
	db   *bolt.DB
	path string
	temp bool // the file is removed by Close
	tidy bool // it was new, or closed in order, when it was opened
}

// Clean reports whether the file was new, or closed in order, when it was opened.
func (s *Store) Clean() bool { return s.tidy }

// Tx is one transaction. It is valid until the function it was handed to
// returns, and for one goroutine.
type Tx struct{ tx *bolt.Tx }

// View runs fn on an unchanging state of the store.
func (s *Store) View(fn func(*Tx) error) error {
	return s.db.View(func(tx *bolt.Tx) error { return fn(&Tx{tx}) })
}

// Update runs fn in one transaction; an error of fn takes everything back.
// With sync it returns when the disk has it; without, a loss of power may take
// it, or damage the file: for what can be rebuilt.
func (s *Store) Update(sync bool, fn func(*Tx) error) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := fn(&Tx{tx}); err != nil {
		return err
	}
	s.db.NoSync = !sync // read by Commit below; the writer's lock is held
	// gofail: var kvBeforeCommit struct{}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit to %s: %w", s.path, err)
	}
	// gofail: var kvAfterCommit struct{}
	return nil
}

// Sync makes everything written before durable.
func (s *Store) Sync() error { return s.db.Sync() }

// Path returns the file's name.
func (s *Store) Path() string { return s.path }

// Size returns the file's size in bytes.
func (s *Store) Size() int64 {
	var n int64
	_ = s.db.View(func(tx *bolt.Tx) error { n = tx.Size(); return nil })
	return n
}

// Get returns a copy of a key's value. ErrNotFound, ErrDamaged.
func (t *Tx) Get(b Bucket, key []byte) ([]byte, error) {
	v := t.tx.Bucket([]byte(b)).Get(key)
	if v == nil {
		return nil, ErrNotFound
	}
	return open(b, key, v)
}

// Set stores a value. Key and value may be reused afterwards.
func (t *Tx) Set(b Bucket, key, value []byte) error {
	if len(value) > ValueMax {
		return fmt.Errorf("set %s %x: %d bytes, at most %d fit", b, key, len(value), ValueMax)
	}
	sealed := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(value)), crc32.Checksum(value, castagnoli))
	return t.tx.Bucket([]byte(b)).Put(bytes.Clone(key), append(sealed, value...))
}

// Delete removes a key, if it is there.
func (t *Tx) Delete(b Bucket, key []byte) error { return t.tx.Bucket([]byte(b)).Delete(key) }

// DeleteRange removes the keys in [from, to); a nil to is the end of the bucket.
func (t *Tx) DeleteRange(b Bucket, from, to []byte) error {
	var keys [][]byte
	c := t.tx.Bucket([]byte(b)).Cursor()
	for k, _ := c.Seek(from); k != nil && (to == nil || bytes.Compare(k, to) < 0); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := t.Delete(b, k); err != nil {
			return err
		}
	}
	return nil
}

// Scan calls fn for the keys in [from, to) in order, until fn returns an error,
// which it returns. A nil to is the end of the bucket. fn may keep the value,
// not the key.
func (t *Tx) Scan(b Bucket, from, to []byte, fn func(key, value []byte) error) error {
	c := t.tx.Bucket([]byte(b)).Cursor()
	for k, v := c.Seek(from); k != nil && (to == nil || bytes.Compare(k, to) < 0); k, v = c.Next() {
		value, err := open(b, k, v)
		if err != nil {
			return err
		}
		if err := fn(k, value); err != nil {
			return err
		}
	}
	return nil
}

// open checks a stored value and returns a copy of what was set.
func open(b Bucket, key, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 || binary.BigEndian.Uint32(sealed) != crc32.Checksum(sealed[4:], castagnoli) {
		return nil, fmt.Errorf("%s %x: %w", b, key, ErrDamaged)
	}
	return bytes.Clone(sealed[4:]), nil
}

// PrefixEnd returns the first key behind all that begin with prefix, nil when
// there is none.
func PrefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < math.MaxUint8 {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// Get reads one key. ErrNotFound, ErrDamaged.
func (s *Store) Get(b Bucket, key []byte) (value []byte, err error) {
	err = s.View(func(t *Tx) error {
		value, err = t.Get(b, key)
		return err
	})
	return value, err
}

// Set writes one key durably.
func (s *Store) Set(b Bucket, key, value []byte) error {
	return s.Update(true, func(t *Tx) error { return t.Set(b, key, value) })
}

// Delete removes one key durably.
func (s *Store) Delete(b Bucket, key []byte) error {
	return s.Update(true, func(t *Tx) error { return t.Delete(b, key) })
}

// ScanPrefix calls fn for the keys that begin with prefix, as Tx.Scan does. No
// write may be made from within fn.
func (s *Store) ScanPrefix(b Bucket, prefix []byte, fn func(key, value []byte) error) error {
	return s.View(func(t *Tx) error { return t.Scan(b, prefix, PrefixEnd(prefix), fn) })
}

// GenerateID returns a number that the bucket never gave before, from 1 on,
// durably.
func (s *Store) GenerateID(b Bucket) (id uint64, err error) {
	err = s.Update(true, func(t *Tx) error {
		id, err = t.tx.Bucket([]byte(b)).NextSequence()
		return err
	})
	return id, err
}

// CompareAndSwap durably sets key to value if it has the value old (nil: if it
// is absent), and reports whether it did.
func (s *Store) CompareAndSwap(b Bucket, key, old, value []byte) (swapped bool, err error) {
	err = s.Update(true, func(t *Tx) error {
		now, err := t.Get(b, key)
		absent := errors.Is(err, ErrNotFound)
		if err != nil && !absent {
			return err
		}
		if absent != (old == nil) || !bytes.Equal(now, old) {
			return nil
		}
		swapped = true
		return t.Set(b, key, value)
	})
	return swapped && err == nil, err
}

// Op is one write of a batch.
type Op struct {
	Bucket Bucket
	Key    []byte
	Value  []byte // nil: the key is deleted
}

// Batch applies ops in order in one transaction, durably.
func (s *Store) Batch(ops []Op) error {
	return s.Update(true, func(t *Tx) error { return t.Apply(ops) })
}

// Apply writes ops in order.
func (t *Tx) Apply(ops []Op) error {
	for _, op := range ops {
		err := t.Delete(op.Bucket, op.Key)
		if op.Value != nil {
			err = t.Set(op.Bucket, op.Key, op.Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// IncrementRevision durably adds one to the counter of that name in the bucket
// Revisions and returns it; a counter begins at 0.
func (s *Store) IncrementRevision(name string) (rev int64, err error) {
	key := []byte("count/" + name)
	err = s.Update(true, func(t *Tx) error {
		switch v, err := t.Get(Revisions, key); {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case len(v) != 8:
			return fmt.Errorf("revision %s: %w", name, ErrDamaged)
		default:
			rev = int64(binary.BigEndian.Uint64(v))
		}
		rev++
		return t.Set(Revisions, key, binary.BigEndian.AppendUint64(nil, uint64(rev)))
	})
	return rev, err
}

// Close ends the store. An orderly Close is remembered: the next Open need not
// check every page.
func (s *Store) Close() error {
	err := s.Update(true, func(t *Tx) error { return t.Set(State, keyClean, []byte{1}) })
	err = errors.Join(err, s.db.Close())
	if s.temp {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

// Abandon closes the file as kill -9 would: nothing more is written.
func (s *Store) Abandon() error { return s.db.Close() }

// lockWait is how long Open waits for another process that has the file.
const lockWait = time.Second
