package local

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

type blobData struct {
	meta.Blob
	data []byte
}

func mustPut(t testing.TB, s *Store, data []byte) blobData {
	t.Helper()
	b, err := s.Put(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	return blobData{b, data}
}

func mustRead(t testing.TB, s *Store, b blobData) {
	t.Helper()
	got := make([]byte, b.Size)
	if err := s.Read(context.Background(), b.Blob, 0, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b.data) {
		t.Fatalf("blob of %d bytes at %d/%d reads differently", b.Size, b.Segment, b.Offset)
	}
}

func walkAll(t testing.TB, s *Store) map[meta.Blob]bool {
	t.Helper()
	got := make(map[meta.Blob]bool)
	if err := s.Walk(context.Background(), func(b meta.Blob) error { got[b] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

// After kill -9 every Put that has returned is there, and the next ones go
// behind it, whatever the moment was.
func TestKillKeepsEveryPut(t *testing.T) {
	for _, set := range []func(*Options){func(*Options) {}, small} {
		o := Options{Dir: filepath.Join(t.TempDir(), "s")}
		set(&o)
		s := mustOpen(t, o)
		var all []blobData
		for round := range 4 {
			for i := range 12 {
				data := randomBytes(uint64(round*100+i), 17_000+i*20_000)
				clear(data[len(data)-9000:]) // a tail of zeros is content, not room
				all = append(all, mustPut(t, s, data))
				if i == 6 {
					if err := s.Sync(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
			}
			o.Dir = cloneDir(t, o.Dir)
			if s = mustOpen(t, o); len(walkAll(t, s)) != len(all) {
				t.Fatalf("round %d: walk lists %d blobs, want %d", round, len(walkAll(t, s)), len(all))
			}
			for _, b := range all {
				mustRead(t, s, b)
			}
		}
	}
}

func TestTornTailIsSteppedOver(t *testing.T) {
	full := func() []byte { // a whole record of another blob
		data := randomBytes(7, 40_000)
		s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s")})
		b := mustPut(t, s, data)
		raw, err := os.ReadFile(s.packs.path(b.Segment))
		if err != nil {
			t.Fatal(err)
		}
		return raw[:blobRecord(b.Blob).length()]
	}()
	badHeader := bytes.Clone(full)
	badHeader[9] ^= 1
	abandoned := randomBytes(9, 10_000)
	encodeHeader(abandoned, header{Kind: kindData, State: stateOpen, Size: 1 << 20})
	tests := map[string][]byte{
		"large record abandoned": abandoned,
		"header cut":             full[:40],
		"table cut":              full[:80],
		"data cut":               full[:20_000],
		"footer cut":             full[:len(full)-7],
		"footer missing":         append(bytes.Clone(full[:len(full)-16]), make([]byte, 16)...),
		"header damaged":         badHeader,
		"garbage":                randomBytes(8, 10_000),
		"one byte":               {1},
		"zeros, then one byte":   append(make([]byte, 5000), 1),
		"only zeros":             make([]byte, 1<<20),
		"nothing":                nil,
	}
	for name, tail := range tests {
		t.Run(name, func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "s")}
			s := mustOpen(t, o)
			before := []blobData{mustPut(t, s, randomBytes(1, 30_000)), mustPut(t, s, randomBytes(2, 2<<20))}
			o.Dir = cloneDir(t, o.Dir)
			f, err := os.OpenFile(segmentPath(o.Dir, 1), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(tail); err != nil {
				t.Fatal(err)
			}
			f.Close()
			s = mustOpen(t, o)
			for i := range 5 {
				before = append(before, mustPut(t, s, randomBytes(uint64(20+i), 30_000)))
			}
			for _, b := range before {
				mustRead(t, s, b)
			}
			got := walkAll(t, s)
			for _, b := range before {
				if !got[b.Blob] {
					t.Errorf("walk misses %+v", b.Blob)
				}
			}
			if len(got) != len(before) {
				t.Errorf("walk lists %d blobs, want %d: a torn record was trusted", len(got), len(before))
			}
		})
	}
}

func blobRecord(b meta.Blob) header {
	h := header{Kind: kindData, State: stateLive, Size: b.Size, ID: b.ID}
	if b.Place == meta.PlaceFile {
		h.Kind = kindLeaves
	}
	return h
}

func TestOpenRemovesTemporaryFiles(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	s := mustOpen(t, o)
	b := mustPut(t, s, randomBytes(1, 2<<20))
	if err := os.WriteFile(filepath.Join(o.Dir, "tmp", "17"), randomBytes(2, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Dir = cloneDir(t, o.Dir)
	s = mustOpen(t, o)
	if names, _ := os.ReadDir(filepath.Join(o.Dir, "tmp")); len(names) != 0 {
		t.Errorf("temporary files stay: %v", names)
	}
	mustRead(t, s, b)
}

// powerCut is a disk that keeps only what was flushed. It remembers the bytes
// of each file at its last flush and the names of each directory at its own.
type powerCut struct {
	mu    sync.Mutex
	files map[uint64][]byte            // by inode
	dirs  map[string]map[string]uint64 // by path: name to inode
	isDir map[uint64]bool              // by inode
	fail  error
}

func newPowerCut() *powerCut {
	return &powerCut{files: make(map[uint64][]byte), dirs: make(map[string]map[string]uint64), isDir: make(map[uint64]bool)}
}

func (p *powerCut) Fdatasync(fd int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	data := make([]byte, st.Size)
	if err := preadFull(fd, data, 0); err != nil {
		return err
	}
	p.files[st.Ino] = data
	return nil
}

func (p *powerCut) SyncDir(path string) error {
	names, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.dirs[path] = make(map[string]uint64)
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(path, n.Name()), &st); err == nil {
			p.dirs[path][n.Name()] = st.Ino
			p.isDir[st.Ino] = n.IsDir()
		}
	}
	return nil
}

func (p *powerCut) SyncAll(root string) error {
	return filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if path == root { // Open has made its names durable
			return err
		}
		if err != nil || e.IsDir() {
			return errors.Join(err, p.SyncDir(path))
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return p.Fdatasync(int(f.Fd()))
	})
}

// TestSyncCoversWhatAKilledProcessWrote: kill -9, a start, a Sync, then the
// power goes. What the killed process had put is behind that Sync (P22, P23).
func TestSyncCoversWhatAKilledProcessWrote(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	s := mustOpen(t, o)
	record, file := mustPut(t, s, randomBytes(1, 100_000)), mustPut(t, s, randomBytes(2, 2<<20))
	disk := newPowerCut()
	killed := cloneDir(t, o.Dir)
	s = mustOpen(t, Options{Dir: killed, syncer: disk})
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, Options{Dir: disk.restore(t, killed)})
	mustRead(t, s, record)
	mustRead(t, s, file)
}

// restore builds the folder as it is after the power came back.
func (p *powerCut) restore(t *testing.T, dir string) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := filepath.Join(t.TempDir(), "after")
	for _, d := range []string{"", "tmp", "segments", "files"} { // made durable by Open itself
		if err := os.MkdirAll(filepath.Join(out, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(out, "format"), []byte(formatText), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, names := range p.dirs {
		rel := strings.TrimPrefix(path, dir)
		parent := filepath.Dir(path)
		if _, ok := p.dirs[parent][filepath.Base(path)]; filepath.Base(parent) == "files" && !ok {
			continue // the directory's own name was not flushed
		}
		if err := os.MkdirAll(filepath.Join(out, rel), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, ino := range names {
			if p.isDir[ino] {
				continue // made when its own names were flushed
			}
			if err := os.WriteFile(filepath.Join(out, rel, name), p.files[ino], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

// P23: whatever was put before a Sync survives a power loss after it, also
// what others put, in segments that were sealed or rolled meanwhile.
func TestPowerLossKeepsWhatWasSynced(t *testing.T) {
	for name, set := range map[string]func(*Options){"defaults": func(*Options) {}, "small": small} {
		t.Run(name, func(t *testing.T) {
			disk := newPowerCut()
			o := Options{Dir: filepath.Join(t.TempDir(), "s"), syncer: disk}
			set(&o)
			s := mustOpen(t, o)
			var safe, late []blobData
			for round := range 6 {
				var wg sync.WaitGroup
				var mu sync.Mutex
				for w := range 4 {
					wg.Go(func() {
						for i := range 3 {
							size := 17_000 + (w*3+i)*30_000
							if i == 2 {
								size += 1 << 20
							}
							b := mustPut(t, s, randomBytes(uint64(round*100+w*10+i), size))
							mu.Lock()
							late = append(late, b)
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				if round < 5 {
					if err := s.Sync(context.Background()); err != nil {
						t.Fatal(err)
					}
					safe, late = append(safe, late...), nil
				}
			}
			o.Dir, o.syncer = disk.restore(t, o.Dir), nil
			after := mustOpen(t, o)
			for _, b := range safe {
				mustRead(t, after, b)
			}
			for _, b := range late { // never wrong bytes, whether they survived or not
				got := make([]byte, b.Size)
				if err := after.Read(context.Background(), b.Blob, 0, got); err == nil && !bytes.Equal(got, b.data) {
					t.Errorf("unsynced blob reads wrong bytes")
				}
			}
			more := mustPut(t, after, randomBytes(999, 50_000))
			for _, b := range append(safe, more) {
				mustRead(t, after, b)
			}
		})
	}
}

// A test of the test: without Sync nothing survives the disk above.
func TestPowerCutDropsWhatWasNotSynced(t *testing.T) {
	disk := newPowerCut()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), syncer: disk}
	s := mustOpen(t, o)
	mustPut(t, s, randomBytes(1, 50_000))
	mustPut(t, s, randomBytes(2, 2<<20))
	after := mustOpen(t, Options{Dir: disk.restore(t, o.Dir)})
	if got := walkAll(t, after); len(got) != 0 {
		t.Errorf("unsynced blobs survive: %v", got)
	}
}

// A place that SQL remembers from before a power loss may hold another blob
// now: freeing it must not take that one.
func TestFreeOfALostPlaceSparesWhatIsThereNow(t *testing.T) {
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s")})
	b := mustPut(t, s, randomBytes(1, 50_000))
	lost := b.Blob
	lost.ID = s.ID(randomBytes(2, 50_000))
	if err := s.Free(context.Background(), []meta.Blob{lost}); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, b)
	err := s.Read(context.Background(), lost, 0, make([]byte, 100))
	if meta.KindOf(err) != meta.KindDamaged {
		t.Errorf("read of a lost place: got %v, want damaged", err)
	}
}

func TestFailedFlushIsFinal(t *testing.T) {
	ctx := context.Background()
	disk := newPowerCut()
	var logs bytes.Buffer
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), syncer: disk, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	b := mustPut(t, s, randomBytes(1, 50_000))
	disk.fail = errors.Join(errors.New("test"), unix.EIO)
	if err := s.Sync(ctx); meta.KindOf(err) != meta.KindIO || !errors.Is(err, unix.EIO) {
		t.Fatalf("sync on a failing disk: got %v", err)
	}
	disk.fail = nil
	for range 2 {
		if err := s.Sync(ctx); meta.KindOf(err) != meta.KindIO {
			t.Errorf("sync after a failed one: got %v, want the same error", err)
		}
		if _, err := s.Put(ctx, b.data); meta.KindOf(err) != meta.KindIO {
			t.Errorf("put after a failed sync: got %v, want an error", err)
		}
	}
	mustRead(t, s, b) // reading goes on
	if err := s.Close(); err == nil {
		t.Error("close of a failed store: no error")
	}
	if n := strings.Count(logs.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors logged, want 1:\n%s", n, logs.String())
	}
}
