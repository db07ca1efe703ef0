package campaign

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// object is a file, directory or link of the ledger. Objects are never
// changed, only replaced, so that states can share them.
type object struct {
	kind  byte // f, d, l
	mode  uint32
	data  []byte // content, or a link's target
	xattr string // value of user.x; "" for none
}

// state is what a worker's folder holds: names to objects, by number, so that
// hard links are one object.
type state struct {
	names   map[string]int
	objects map[int]object
}

func newState() state { return state{map[string]int{}, map[int]object{}} }

func (s state) clone() state { return state{maps.Clone(s.names), maps.Clone(s.objects)} }

// with returns a copy in which change was made.
func (s state) with(change func(state)) state {
	c := s.clone()
	change(c)
	return c
}

// set replaces one object.
func (s state) set(id int, change func(*object)) {
	o := s.objects[id]
	change(&o)
	s.objects[id] = o
}

// drop removes a name, and its object with the last one.
func (s state) drop(name string) {
	id := s.names[name]
	delete(s.names, name)
	if !slices.Contains(slices.Collect(maps.Values(s.names)), id) {
		delete(s.objects, id)
	}
}

// pick returns a random name of a kind, "" when there is none.
func (s state) pick(rnd *rand.Rand, kind byte) string {
	var list []string
	for name, id := range s.names {
		if s.objects[id].kind == kind {
			list = append(list, name)
		}
	}
	if len(list) == 0 {
		return ""
	}
	slices.Sort(list)
	return list[rnd.IntN(len(list))]
}

func (s state) hasNothingIn(dir string) bool {
	for name := range s.names {
		if filepath.Dir(name) == dir {
			return false
		}
	}
	return true
}

// compare checks a folder against the state.
func (s state) compare(dir string) error {
	seen := map[int]uint64{}
	found := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		id, ok := s.names[rel]
		if !ok {
			return fmt.Errorf("%s is there and should not be", rel)
		}
		found++
		ino, err := s.objects[id].compare(p)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		if other, ok := seen[id]; ok && other != ino {
			return fmt.Errorf("%s: a hard link became a file of its own", rel)
		}
		seen[id] = ino
		return nil
	})
	if err == nil && found != len(s.names) {
		for name := range s.names {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("%s is missing: %w", name, err)
			}
		}
	}
	return err
}

func (o object) compare(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, err
	}
	kind := map[uint32]byte{unix.S_IFREG: 'f', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l'}[st.Mode&unix.S_IFMT]
	if kind != o.kind || kind != 'l' && st.Mode&0o7777 != o.mode {
		return 0, fmt.Errorf("is %c with mode %o, want %c with %o", kind, st.Mode&0o7777, o.kind, o.mode)
	}
	if kind == 'l' {
		target, err := os.Readlink(path)
		if err == nil && target != string(o.data) {
			err = fmt.Errorf("leads to %q, want %q", target, o.data)
		}
		return st.Ino, err
	}
	if kind == 'f' {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		if !bytes.Equal(data, o.data) {
			return 0, fmt.Errorf("has %d bytes with wrong content, want %d (%s)", len(data), len(o.data), firstDifference(data, o.data))
		}
	}
	value := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, "user.x", value)
	if errors.Is(err, unix.ENODATA) {
		n, err = 0, nil
	}
	if err == nil && string(value[:n]) != o.xattr {
		err = fmt.Errorf("user.x is %q, want %q", value[:n], o.xattr)
	}
	return st.Ino, err
}

func firstDifference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("the first difference is at %d", i)
		}
	}
	return "one is a prefix of the other"
}

// operation is one entry of the ledger.
type operation struct {
	kind    string
	text    string
	allowed []state // in which a crash during do may leave the folder; the last one is acknowledged
	do      func() error
}

// worker works on a folder of its own.
type worker struct {
	dir     string
	rnd     *rand.Rand
	acked   state
	pending *operation // under way or failed; nil: everything was acknowledged
	next    int        // number for the next new name
	done    int
	recent  []string // texts of the last operations
}

func newWorker(dir string, seed uint64) *worker {
	return &worker{dir: dir, rnd: rand.New(rand.NewPCG(seed, 3)), acked: newState()}
}

func (w *worker) path(name string) string { return filepath.Join(w.dir, name) }

// run does operations until one fails; that error is returned.
func (w *worker) run() error {
	for {
		op := w.choose()
		if op == nil {
			continue
		}
		if err := w.perform(op); err != nil {
			return err
		}
	}
}

func (w *worker) perform(op *operation) error {
	w.pending = op
	w.recent = append(w.recent, op.text)
	w.recent = w.recent[max(0, len(w.recent)-12):]
	if err := op.do(); err != nil {
		return fmt.Errorf("%s: %w", op.text, err)
	}
	w.acked, w.pending = op.allowed[len(op.allowed)-1], nil
	w.done++
	return nil
}

// verify compares the folder with what the ledger allows and goes on from what
// it finds. It says what became of the operation that was under way: "there",
// "absent", or "begun" when only its first system call is there.
func (w *worker) verify() (string, error) {
	if w.pending == nil {
		return "there", w.acked.compare(w.dir)
	}
	var errs []error
	for i := len(w.pending.allowed) - 1; i >= 0; i-- {
		s := w.pending.allowed[i]
		err := s.compare(w.dir)
		if err == nil {
			last := len(w.pending.allowed) - 1
			w.acked, w.pending = s, nil
			switch i {
			case last:
				return "there", nil
			case 0:
				return "absent", nil
			}
			return "begun", nil
		}
		errs = append(errs, fmt.Errorf("not the state after part %d: %w", i, err))
	}
	return "", fmt.Errorf("the operation under way, %s, is neither there nor absent:\n%w", w.pending.text, errors.Join(errs...))
}

// empty removes everything and starts an empty ledger.
func (w *worker) empty() error {
	entries, err := os.ReadDir(w.dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(w.path(e.Name())))
	}
	w.acked = newState()
	return err
}
