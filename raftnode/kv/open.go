package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Format is the version of what this package writes; an older one would be
// brought up to date by Open.
const Format = 1

var (
	keyFormat = []byte("format")
	keyClean  = []byte("clean")
	product   = []byte("nexusfs raft store ")
)

// DamagedError says that a file could not be trusted and was moved aside. The
// next Open makes a new one: right for a single voter, whose state is rebuilt
// from SQL; a member of a group must join again under a new identity (P16).
type DamagedError struct {
	Path  string
	Moved string // where it lies now
	Err   error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged and was moved to %s: %v", e.Path, e.Moved, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// ErrForeign is the refusal of a file of another product.
var ErrForeign = errors.New("not a store of nexusfs: choose another folder, or move the file away")

// ErrNewer is the refusal of a file in a format that a newer version wrote.
var ErrNewer = errors.New("written by a newer version of nexusfs: use that version or a newer one")

// ErrInUse is the refusal of a file that another process has open.
var ErrInUse = errors.New("another daemon has it open: end that one, or give this one a folder of its own")

// Open opens or makes the file at path. It waits up to a second for another
// process that has it open. Errors: *DamagedError, ErrForeign, ErrNewer,
// ErrInUse, or the system's.
func Open(path string) (*Store, error) {
	if err := checkMagic(path); err != nil {
		return nil, settle(path, err)
	}
	s, err := openChecked(path)
	if err != nil {
		return nil, settle(path, err)
	}
	return s, nil
}

// OpenTemp makes a store in a new file below dir ("": the system's folder for
// such files); Close removes it.
func OpenTemp(dir string) (*Store, error) {
	f, err := os.CreateTemp(dir, "nexusfs-raft-*.db")
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	s, err := Open(f.Name())
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	s.temp = true
	return s, nil
}

// errBroken marks what is wrong with a file that is ours.
var errBroken = errors.New("the file is not whole")

// settle moves a damaged file aside and names the file in every refusal.
func settle(path string, err error) error {
	if !errors.Is(err, errBroken) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("open %s: %w", path, err)
	}
	moved := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000")
	if rerr := os.Rename(path, moved); rerr != nil {
		return fmt.Errorf("open %s: %w; it cannot be moved aside: %w", path, err, rerr)
	}
	if derr := syncDir(filepath.Dir(path)); derr != nil {
		return errors.Join(&DamagedError{path, moved, err}, derr)
	}
	return &DamagedError{path, moved, err}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// boltMagic is at offset 16 of bbolt's first two pages, in the machine's byte order.
const boltMagic = 0xED0CDAED

// checkMagic tells a file of another product from one of ours that lost its
// first pages: the latter has bbolt's mark in one of them, or nothing at all.
func checkMagic(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	head := make([]byte, min(st.Size(), 128<<10))
	if _, err := f.ReadAt(head, 0); err != nil {
		return err
	}
	if !bytes.ContainsFunc(head, func(r rune) bool { return r != 0 }) {
		return fmt.Errorf("%w: it begins with zeros", errBroken)
	}
	for _, page := range []int{0, 4 << 10, 8 << 10, 16 << 10, 64 << 10} {
		if len(head) >= page+20 && binary.NativeEndian.Uint32(head[page+16:]) == boltMagic {
			return nil
		}
	}
	return ErrForeign
}

func openChecked(path string) (_ *Store, err error) {
	// A page that points anywhere makes bbolt panic or read past its mapping.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var db *bolt.DB
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errBroken, p)
		}
		if err != nil && db != nil {
			_ = db.Close() // the first error is reported
		}
	}()
	// The list of free pages is stored: to rebuild it bbolt reads every page in a
	// goroutine of its own, where a damaged one would end the process.
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrInUse
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	case err != nil:
		return nil, err
	}
	s := &Store{db: db, path: path}
	return s, s.begin()
}

// begin checks whose file it is, that it is whole, and makes what is missing.
func (s *Store) begin() error {
	fresh, clean := true, false
	err := s.db.View(func(tx *bolt.Tx) error {
		err := tx.ForEach(func([]byte, *bolt.Bucket) error { fresh = false; return nil })
		if fresh || err != nil {
			return err
		}
		if tx.Bucket([]byte(State)) == nil {
			return ErrForeign
		}
		t := &Tx{tx}
		if err := checkFormat(t); err != nil {
			return err
		}
		_, err = t.Get(State, keyClean)
		clean = err == nil
		return nil
	})
	if err != nil {
		return err
	}
	s.tidy = fresh || clean
	if !s.tidy {
		if err := s.check(); err != nil {
			return err
		}
	}
	return s.Update(true, func(t *Tx) error {
		for _, b := range Buckets() {
			if _, err := t.tx.CreateBucketIfNotExists([]byte(b)); err != nil {
				return err
			}
		}
		if err := t.Set(State, keyFormat, append(product[:len(product):len(product)], Format)); err != nil {
			return err
		}
		return t.Delete(State, keyClean)
	})
}

func checkFormat(t *Tx) error {
	v, err := t.Get(State, keyFormat)
	switch {
	case errors.Is(err, ErrNotFound):
		return ErrForeign
	case err != nil:
		return err
	case len(v) != len(product)+1 || !bytes.HasPrefix(v, product):
		return ErrForeign
	case v[len(product)] > Format:
		return fmt.Errorf("format %d: %w", v[len(product)], ErrNewer)
	}
	return nil
}

// check reads every page and every value of a file that was not closed.
func (s *Store) check() error {
	return s.db.View(func(tx *bolt.Tx) error {
		// Reading a page that the file does not have would kill the process.
		if st, err := os.Stat(s.path); err != nil {
			return err
		} else if st.Size() < tx.Size() {
			return fmt.Errorf("%w: it has %d bytes of %d", errBroken, st.Size(), tx.Size())
		}
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("%w: %w", errBroken, err)
			}
		}
		if first != nil {
			return first
		}
		t := &Tx{tx}
		for _, b := range Buckets() {
			if tx.Bucket([]byte(b)) == nil {
				return fmt.Errorf("%w: bucket %s is missing", errBroken, b)
			}
			if err := t.Scan(b, nil, nil, func(_, _ []byte) error { return nil }); err != nil {
				return err
			}
		}
		return nil
	})
}
