package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

func temp(t *testing.T) *Store {
	t.Helper()
	s, err := OpenTemp(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Close of a temporary store its file is there: %v", err)
		}
	})
	return s
}

func TestStoreDoesWhatItSays(t *testing.T) {
	s := temp(t)
	if _, err := s.Get(Locks, []byte("a")); !errors.Is(err, ErrNotFound) {
		t.Errorf("get of an absent key: %v, want ErrNotFound", err)
	}
	if err := s.Set(Locks, []byte("a"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	v, err := s.Get(Locks, []byte("a"))
	if err != nil || string(v) != "1" {
		t.Errorf("got %q, %v", v, err)
	}
	for _, tc := range []struct {
		name       string
		old, value []byte
		want       bool
	}{
		{"wrong belief", []byte("0"), []byte("2"), false},
		{"absent expected", nil, []byte("2"), false},
		{"right belief", []byte("1"), []byte("2"), true},
	} {
		if ok, err := s.CompareAndSwap(Locks, []byte("a"), tc.old, tc.value); err != nil || ok != tc.want {
			t.Errorf("%s: swapped %v, %v; want %v", tc.name, ok, err, tc.want)
		}
	}
	if ok, err := s.CompareAndSwap(Locks, []byte("b"), nil, []byte("new")); err != nil || !ok {
		t.Errorf("swap of an absent key: %v, %v", ok, err)
	}
	if err := s.Delete(Locks, []byte("b")); err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want <= 3; want++ {
		if id, err := s.GenerateID(Witness); err != nil || id != want {
			t.Errorf("id %d, %v; want %d", id, err, want)
		}
		if rev, err := s.IncrementRevision("zone"); err != nil || rev != int64(want) {
			t.Errorf("revision %d, %v; want %d", rev, err, want)
		}
	}
	if rev, err := s.IncrementRevision("other"); err != nil || rev != 1 {
		t.Errorf("another counter begins at %d, %v; want 1", rev, err)
	}
}

func TestBatchIsOneTransaction(t *testing.T) {
	s := temp(t)
	err := s.Batch([]Op{{Locks, []byte("a"), []byte("1")}, {Locks, nil, []byte("no key")}})
	if err == nil {
		t.Fatal("a batch with an empty key was accepted")
	}
	if _, err := s.Get(Locks, []byte("a")); !errors.Is(err, ErrNotFound) {
		t.Errorf("half of a refused batch is there: %v", err)
	}
	if err := s.Batch([]Op{{Locks, []byte("a"), []byte("1")}, {Locks, []byte("a"), nil}, {Locks, []byte("b"), []byte{}}}); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get(Locks, []byte("b")); err != nil || len(v) != 0 {
		t.Errorf("an empty value: %q, %v", v, err)
	}
}

func TestPrefixEnd(t *testing.T) {
	for _, tc := range []struct{ in, want string }{{"a", "b"}, {"a\xff", "b"}, {"\xff\xff", ""}, {"", ""}} {
		if got := PrefixEnd([]byte(tc.in)); string(got) != tc.want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// TestScanAgainstModel compares ranges, prefixes and deletions with a map.
func TestScanAgainstModel(t *testing.T) {
	s := temp(t)
	key := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 'a', 'b', 0xff}), 1, 4)
	rapid.Check(t, func(t *rapid.T) {
		model := map[string]string{}
		if err := s.Update(false, func(tx *Tx) error { return tx.DeleteRange(Metadata, nil, nil) }); err != nil {
			t.Fatal(err)
		}
		for i, k := range rapid.SliceOfN(key, 0, 20).Draw(t, "keys") {
			model[string(k)] = fmt.Sprint(i)
			if err := s.Update(false, func(tx *Tx) error { return tx.Set(Metadata, k, []byte(fmt.Sprint(i))) }); err != nil {
				t.Fatal(err)
			}
		}
		from, to := key.Draw(t, "from"), key.Draw(t, "to")
		if err := s.Update(false, func(tx *Tx) error { return tx.DeleteRange(Metadata, from, to) }); err != nil {
			t.Fatal(err)
		}
		for k := range model {
			if k >= string(from) && k < string(to) {
				delete(model, k)
			}
		}
		prefix := key.Draw(t, "prefix")
		got := map[string]string{}
		last := ""
		err := s.ScanPrefix(Metadata, prefix, func(k, v []byte) error {
			if string(k) <= last {
				t.Fatalf("key %q after %q", k, last)
			}
			last = string(k)
			got[last] = string(v)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range model {
			if strings.HasPrefix(k, string(prefix)) && got[k] != v {
				t.Fatalf("key %q: got %q, want %q", k, got[k], v)
			}
		}
		for k := range got {
			if _, ok := model[k]; !ok || !strings.HasPrefix(k, string(prefix)) {
				t.Fatalf("key %q is too much", k)
			}
		}
	})
}

// TestP16DamagedFileIsMovedAside damages a file that was not closed in each of
// its pages: it is moved away and named, or it reads right; never wrong bytes.
func TestP16DamagedFileIsMovedAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "raft.db")
	s := must(Open(path))(t)
	for i := range 200 {
		if err := s.Update(false, func(tx *Tx) error {
			return tx.Set(Entries, fmt.Appendf(nil, "%04d", i), bytes.Repeat([]byte{byte(i)}, 300))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Abandon(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	cases := map[string][]byte{"cut": whole[:len(whole)/2], "zeros": make([]byte, len(whole)), "one byte": {0}}
	for at := 0; at < len(whole); at += page {
		b := bytes.Clone(whole)
		for i := at; i < at+page && i < len(b); i += 7 {
			b[i] ^= 0x5a
		}
		cases[fmt.Sprintf("page %d", at/page)] = b
	}
	moved := 0
	for name, content := range cases {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		var damaged *DamagedError
		switch {
		case errors.As(err, &damaged):
			moved++
			if got, err := os.ReadFile(damaged.Moved); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: what was moved aside is not the file: %v", name, err)
			}
			s, err = Open(path)
			if err != nil {
				t.Fatalf("%s: the Open after it: %v", name, err)
			}
		case err != nil:
			t.Fatalf("%s: %v, want a *DamagedError", name, err)
		default:
			for i := range 200 {
				v, err := s.Get(Entries, fmt.Appendf(nil, "%04d", i))
				if err != nil && !errors.Is(err, ErrNotFound) || err == nil && !bytes.Equal(v, bytes.Repeat([]byte{byte(i)}, 300)) {
					t.Errorf("%s: entry %d reads wrong: %v", name, i, err)
				}
			}
		}
		if err := s.Abandon(); err != nil {
			t.Fatal(err)
		}
	}
	if moved < len(cases)/3 {
		t.Errorf("only %d of %d damaged files were found", moved, len(cases))
	}
}

// must hands on the value of a call that may not fail.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestP16OtherFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign.db")
	db := must(bolt.Open(foreign, 0o600, nil))(t)
	if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("key")); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer.db")
	s := must(Open(newer))(t)
	if err := s.Set(State, keyFormat, append(bytes.Clone(product), Format+1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("SQLite format 3\x00"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open.db")
	used := must(Open(open))(t)
	defer func() { _ = used.Close() }()
	for path, want := range map[string]error{foreign: ErrForeign, newer: ErrNewer, text: ErrForeign, open: ErrInUse} {
		before, _ := os.ReadFile(path)
		_, err := Open(path)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v with the file's name", path, err, want)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed by a refused Open: %v", path, err)
		}
	}
}

func TestUncheckedAfterOrderlyClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s := must(Open(path))(t)
	if err := s.Set(Locks, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = must(Open(path))(t)
	defer func() { _ = s.Close() }()
	if v, err := s.Get(Locks, []byte("k")); err != nil || string(v) != "v" {
		t.Errorf("got %q, %v", v, err)
	}
	if _, err := s.Get(State, keyClean); !errors.Is(err, ErrNotFound) {
		t.Errorf("an open file is marked as closed: %v", err)
	}
}

// BenchmarkSyncedUpdate is the floor of everything that a member writes before it
// answers: one small value in one synced transaction.
func BenchmarkSyncedUpdate(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "raft.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	value := bytes.Repeat([]byte{7}, 300)
	times := make([]time.Duration, b.N)
	b.ResetTimer()
	for i := range b.N {
		began := time.Now()
		if err := s.Set(Entries, fmt.Appendf(nil, "%08d", i), value); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[b.N/2].Nanoseconds()), "p50-ns")
}
