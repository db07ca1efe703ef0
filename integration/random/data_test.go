package random

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDataModel plays random operations on the bytes of two files.
func TestDataModel(t *testing.T) {
	everywhere(t, tester[dataStep]{steps: dataSteps, play: playData})
}

// dataStep is one operation on file File (0 or 1) through handle Handle of it.
type dataStep struct {
	Kind         string
	File, Handle int
	Off, Len     int64
	From         int64  // copy: offset in the other file, or the same one
	Seed         uint64 // of the bytes
}

func (s dataStep) String() string {
	return fmt.Sprintf("%-12s file %d handle %d off %d len %d from %d seed %d", s.Kind, s.File, s.Handle, s.Off, s.Len, s.From, s.Seed)
}

// dataKinds with their weights; the rare ones cost much.
var dataKinds = []struct {
	kind   string
	weight int
	mount  bool // needs a mount
}{
	{"write", 30, false}, {"append", 8, false}, {"truncate", 8, false}, {"ftruncate", 6, false},
	{"read", 20, false}, {"mapwrite", 6, false}, {"mapread", 5, false}, {"punch", 6, false},
	{"zero", 4, false}, {"zerokeep", 3, false}, {"allocate", 3, false}, {"copy", 6, false},
	{"copyself", 3, false}, {"fsync", 6, false}, {"reopen", 6, false}, {"dontneed", 5, false}, {"dropcaches", 1, false},
	{"holes", 4, false}, {"replace", 2, false}, {"stat", 8, false}, {"remount", 1, true}, {"crash", 1, true},
}

const handles = 3 // of each file: two for reading and writing, one for appending

// dataSteps makes a case: a scale, and operations within it.
func dataSteps(rnd *rand.Rand, p *place) []dataStep {
	scale := []int64{300, 20 << 10, 300 << 10, 3 << 20, 12 << 20}[rnd.IntN(5)]
	total := 0
	for _, k := range dataKinds {
		total += k.weight
	}
	out := make([]dataStep, 40+rnd.IntN(120))
	rare := 0
	for i := range out {
		kind := ""
		for at := rnd.IntN(total); kind == ""; {
			for _, k := range dataKinds {
				if at -= k.weight; at < 0 {
					kind = k.kind
					if k.mount {
						rare++
						if p.remount == nil || rare > 2 {
							kind = "fsync"
						}
					}
					break
				}
			}
		}
		out[i] = dataStep{
			Kind: kind, File: rnd.IntN(2), Handle: rnd.IntN(2),
			Off: offset(rnd, scale), Len: length(rnd, scale), From: offset(rnd, scale), Seed: rnd.Uint64(),
		}
	}
	return out
}

// offset prefers places beside pages and blocks.
func offset(rnd *rand.Rand, scale int64) int64 {
	off := rnd.Int64N(scale)
	switch rnd.IntN(4) {
	case 0:
		return off &^ 4095
	case 1:
		return max(0, off&^4095+int64(rnd.IntN(3))-1)
	}
	return off
}

func length(rnd *rand.Rand, scale int64) int64 {
	switch rnd.IntN(6) {
	case 0:
		return 1 + rnd.Int64N(10)
	case 1:
		return 4096
	case 2:
		return 1 + rnd.Int64N(min(scale, 4<<20))
	default:
		return 1 + rnd.Int64N(min(scale, 70000))
	}
}

// dataCase is one running case: the files, their handles and what they must hold.
type dataCase struct {
	place *place
	dir   string
	files [2][handles]*os.File
	want  [2][]byte
}

func playData(p *place, dir string, steps []dataStep) (err error) {
	c := &dataCase{place: p, dir: dir}
	defer func() {
		if cerr := c.closeAll(); err == nil {
			err = cerr
		}
	}()
	for f := range c.files {
		if err := c.open(f); err != nil {
			return err
		}
	}
	for i, s := range steps {
		if err := c.step(s); err != nil {
			return fmt.Errorf("step %d (%s): %w", i, s, err)
		}
		if err := c.checkSize(s.File); err != nil {
			return fmt.Errorf("after step %d (%s): %w", i, s, err)
		}
	}
	return c.checkAll()
}

func (c *dataCase) path(f int) string { return filepath.Join(c.dir, fmt.Sprint("file", f)) }

func (c *dataCase) open(f int) error {
	for h := range c.files[f] {
		flags := os.O_RDWR | os.O_CREATE
		if h == handles-1 {
			flags |= os.O_APPEND
		}
		file, err := os.OpenFile(c.path(f), flags, 0o644)
		if err != nil {
			return err
		}
		c.files[f][h] = file
	}
	return nil
}

func (c *dataCase) close(f int) error {
	var first error
	for h, file := range c.files[f] {
		if file == nil {
			continue
		}
		if err := file.Close(); err != nil && first == nil {
			first = err
		}
		c.files[f][h] = nil
	}
	return first
}

func (c *dataCase) closeAll() error {
	e0, e1 := c.close(0), c.close(1)
	if e0 != nil {
		return e0
	}
	return e1
}

// grow makes the model at least n bytes long.
func (c *dataCase) grow(f int, n int64) {
	if n > int64(len(c.want[f])) {
		c.want[f] = append(c.want[f], make([]byte, n-int64(len(c.want[f])))...)
	}
}

// resize is truncate in the model.
func (c *dataCase) resize(f int, n int64) {
	c.grow(f, n)
	c.want[f] = c.want[f][:n:n]
}

// wipe zeroes a range in the model.
func (c *dataCase) wipe(f int, off, n int64) {
	size := int64(len(c.want[f]))
	clear(c.want[f][min(off, size):min(off+n, size)])
}

func randomBytes(seed uint64, n int64) []byte {
	out := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = r.Read(out)
	return out
}

func (c *dataCase) step(s dataStep) error {
	file := c.files[s.File][s.Handle]
	fd := int(file.Fd())
	switch s.Kind {
	case "write":
		data := randomBytes(s.Seed, s.Len)
		c.grow(s.File, s.Off+s.Len)
		copy(c.want[s.File][s.Off:], data)
		_, err := file.WriteAt(data, s.Off)
		return err
	case "append":
		data := randomBytes(s.Seed, s.Len%5000+1)
		c.want[s.File] = append(c.want[s.File], data...)
		_, err := c.files[s.File][handles-1].Write(data)
		return err
	case "truncate":
		c.resize(s.File, s.Off)
		return os.Truncate(c.path(s.File), s.Off)
	case "ftruncate":
		c.resize(s.File, s.Off)
		return file.Truncate(s.Off)
	case "read":
		return c.read(s)
	case "mapwrite", "mapread":
		return c.mapped(s)
	case "copy":
		return c.copy(s, 1-s.File)
	case "copyself":
		return c.copy(s, s.File)
	case "holes":
		return c.holes(s.File)
	case "fsync":
		if s.Seed%2 == 0 {
			return unix.Fdatasync(fd)
		}
		return file.Sync()
	case "stat":
		return c.checkSize(s.File)
	case "dontneed":
		return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	case "dropcaches": // inodes and names, and with them their pages
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); !errors.Is(err, os.ErrPermission) {
			return err
		}
		return nil
	}
	return c.rarer(s, fd)
}

func (c *dataCase) rarer(s dataStep, fd int) error {
	switch s.Kind {
	case "punch":
		c.wipe(s.File, s.Off, s.Len)
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.Off, s.Len)
	case "zerokeep":
		c.wipe(s.File, s.Off, s.Len)
		return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, s.Off, s.Len)
	case "zero":
		c.grow(s.File, s.Off+s.Len)
		c.wipe(s.File, s.Off, s.Len)
		return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, s.Off, s.Len)
	case "allocate":
		c.grow(s.File, s.Off+s.Len)
		return unix.Fallocate(fd, 0, s.Off, s.Len)
	case "reopen":
		if err := c.close(s.File); err != nil {
			return err
		}
		return c.open(s.File)
	case "replace": // write aside, rename over; the old handles keep the old file
		tmp := c.path(s.File) + ".tmp"
		data := randomBytes(s.Seed, s.Len)
		if err := os.WriteFile(tmp, data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(tmp, c.path(s.File)); err != nil {
			return err
		}
		old := c.want[s.File]
		got, err := readAll(c.files[s.File][0])
		if err != nil {
			return err
		}
		if err := same("the replaced file through its old handle", got, old); err != nil {
			return err
		}
		c.want[s.File] = data
		if err := c.close(s.File); err != nil {
			return err
		}
		return c.open(s.File)
	case "remount", "crash":
		return c.again(s.Kind)
	}
	return fmt.Errorf("no such step")
}

// again takes the mount away under closed files, or kills the daemon after an
// fsync: both must lose nothing.
func (c *dataCase) again(kind string) error {
	if kind == "crash" {
		for f := range c.files {
			if err := c.files[f][0].Sync(); err != nil {
				return err
			}
		}
		c.place.crash()
		_ = c.closeAll() // handles of a dead mount
	} else {
		if err := c.closeAll(); err != nil {
			return err
		}
		c.place.remount()
	}
	for f := range c.files {
		if err := c.open(f); err != nil {
			return err
		}
	}
	return c.checkAll()
}

func (c *dataCase) read(s dataStep) error {
	buf := make([]byte, s.Len)
	n, err := c.files[s.File][s.Handle].ReadAt(buf, s.Off)
	if err != nil && err != io.EOF {
		return err
	}
	size := int64(len(c.want[s.File]))
	return same("read", buf[:n], c.want[s.File][min(s.Off, size):min(s.Off+s.Len, size)])
}

// mapped reads or writes through a mapping of the whole file.
func (c *dataCase) mapped(s dataStep) error {
	want := c.want[s.File]
	if len(want) == 0 {
		return nil
	}
	m, err := unix.Mmap(int(c.files[s.File][s.Handle].Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if s.Kind == "mapread" {
		err = same("mapping", m, want)
	} else {
		off := s.Off % int64(len(want))
		data := randomBytes(s.Seed, min(s.Len, int64(len(want))-off))
		copy(m[off:], data)
		copy(want[off:], data)
		if s.Seed%2 == 0 {
			err = unix.Msync(m, unix.MS_SYNC)
		}
	}
	if uerr := unix.Munmap(m); err == nil {
		err = uerr
	}
	return err
}

// copy copies a range from file src into s.File by copy_file_range.
func (c *dataCase) copy(s dataStep, src int) error {
	n := min(s.Len, max(0, int64(len(c.want[src]))-s.From))
	if n == 0 || src == s.File && s.Off < s.From+n && s.From < s.Off+n {
		return nil
	}
	data := bytes.Clone(c.want[src][s.From : s.From+n])
	c.grow(s.File, s.Off+n)
	copy(c.want[s.File][s.Off:], data)
	in, out := int(c.files[src][s.Handle].Fd()), int(c.files[s.File][s.Handle].Fd())
	from, to := s.From, s.Off
	for left := int(n); left > 0; {
		got, err := unix.CopyFileRange(in, &from, out, &to, left, 0)
		if err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("copy_file_range stops with %d bytes left", left)
		}
		left -= got
	}
	return nil
}

// holes walks the file by SEEK_DATA and SEEK_HOLE: what is called a hole must
// be zeros.
func (c *dataCase) holes(f int) error {
	fd := int(c.files[f][0].Fd())
	size := int64(len(c.want[f]))
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = size
		} else if err != nil {
			return err
		}
		if data < at || data > size || len(bytes.Trim(c.want[f][at:data], "\x00")) > 0 {
			return fmt.Errorf("SEEK_DATA from %d gives %d, and there is data between (size %d)", at, data, size)
		}
		if data == size {
			break
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil || hole <= data || hole > size {
			return fmt.Errorf("SEEK_HOLE from %d gives %d, %v (size %d)", data, hole, err, size)
		}
		at = hole
	}
	return nil
}

func (c *dataCase) checkSize(f int) error {
	var byPath, byHandle unix.Stat_t
	if err := unix.Stat(c.path(f), &byPath); err != nil {
		return err
	}
	if err := unix.Fstat(int(c.files[f][1].Fd()), &byHandle); err != nil {
		return err
	}
	if want := int64(len(c.want[f])); byPath.Size != want || byHandle.Size != want {
		return fmt.Errorf("size of file %d: by path %d, by handle %d, want %d", f, byPath.Size, byHandle.Size, want)
	}
	return nil
}

func (c *dataCase) checkAll() error {
	for f := range c.files {
		for h, file := range c.files[f] {
			got, err := readAll(file)
			if err != nil {
				return err
			}
			if err := same(fmt.Sprintf("file %d through handle %d", f, h), got, c.want[f]); err != nil {
				return err
			}
		}
	}
	return nil
}

func readAll(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, st.Size())
	n, err := f.ReadAt(buf, 0)
	if err == io.EOF {
		err = nil
	}
	return buf[:n], err
}

func same(what string, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	end := at
	for end < min(len(got), len(want)) && got[end] != want[end] {
		end++
	}
	return fmt.Errorf("%s: got %d bytes, want %d; they differ from %d to about %d: got %x, want %x",
		what, len(got), len(want), at, end, got[at:min(at+16, len(got))], want[at:min(at+16, len(want))])
}
