package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestP8AppendLosesNoLine: many processes append to one file without locks;
// every line is there once and whole.
func TestP8AppendLosesNoLine(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "log")
		write(t, p, nil)
		const procs, lines = 8, 300
		parallel(procs, func(i int) {
			if res := harness.Try(harness.HelperCmd("append-lines", p, strconv.Itoa(i), strconv.Itoa(lines))); res.Err != nil {
				t.Errorf("%v %s", res.Err, res.Stderr)
			}
		})
		data, err := os.ReadFile(p)
		must(t, err)
		got := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		sort.Strings(got)
		var want []string
		for i := range procs {
			for n := range lines {
				want = append(want, appendedLine(i, n))
			}
		}
		sort.Strings(want)
		if len(got) != len(want) {
			t.Errorf("got %d lines, want %d", len(got), len(want))
		}
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("line %d: got %.80q, want %.80q", i, got[i], want[i])
			}
		}
	})
}

func appendedLine(writer, n int) string {
	return fmt.Sprintf("writer %d line %04d %s", writer, n, strings.Repeat(string(rune('a'+writer)), n%200))
}

// helperAppendLines PATH WRITER N appends N lines, each by one write(2),
// opening the file anew for every tenth.
func helperAppendLines(args []string) error {
	writer, _ := strconv.Atoi(args[1])
	n, _ := strconv.Atoi(args[2])
	var f *os.File
	for i := range n {
		if i%10 == 0 {
			if f != nil {
				if err := f.Close(); err != nil {
					return err
				}
			}
			var err error
			if f, err = os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND, 0); err != nil {
				return err
			}
		}
		if _, err := f.WriteString(appendedLine(writer, i) + "\n"); err != nil {
			return err
		}
	}
	return f.Close()
}

// TestExclusiveCreateHasOneWinner: of many processes that create one name with
// O_EXCL exactly one wins, the others get EEXIST, round after round.
func TestExclusiveCreateHasOneWinner(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		const procs, rounds = 6, 200
		wins := make([]string, procs)
		parallel(procs, func(i int) {
			res := harness.Try(harness.HelperCmd("excl-create", dir, strconv.Itoa(rounds)))
			if res.Err != nil {
				t.Errorf("%v %s", res.Err, res.Stderr)
			}
			wins[i] = res.Stdout
		})
		winner := map[string]int{}
		for _, w := range wins {
			for _, name := range strings.Fields(w) {
				winner[name]++
			}
		}
		for i := range rounds {
			if n := winner[strconv.Itoa(i)]; n != 1 {
				t.Errorf("name %d has %d winners", i, n)
			}
		}
	})
}

// helperExclCreate DIR N creates the names 0..N-1 and prints those it won.
func helperExclCreate(args []string) error {
	n, _ := strconv.Atoi(args[1])
	for i := range n {
		f, err := os.OpenFile(filepath.Join(args[0], strconv.Itoa(i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Println(i)
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// TestRmdirAgainstCreate: either the directory is gone and the create failed
// with ENOENT, or the file is there and rmdir failed with ENOTEMPTY.
func TestRmdirAgainstCreate(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		for i := range 200 {
			d := mkdir(t, filepath.Join(dir, strconv.Itoa(i)))
			var rm, cr error
			parallel(2, func(who int) {
				if who == 0 {
					rm = unix.Rmdir(d)
				} else {
					cr = os.WriteFile(filepath.Join(d, "f"), []byte("x"), 0o644)
				}
			})
			switch {
			case rm == nil && errors.Is(cr, unix.ENOENT) && !exists(d):
			case cr == nil && errors.Is(rm, unix.ENOTEMPTY) && exists(filepath.Join(d, "f")):
			default:
				t.Fatalf("round %d: rmdir %v, create %v, directory there %v", i, rm, cr, exists(d))
			}
		}
	})
}

// TestOneRenameWins: two move one file to two names.
func TestOneRenameWins(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		for i := range 200 {
			src := filepath.Join(dir, "src")
			write(t, src, []byte(strconv.Itoa(i)))
			var errs [2]error
			parallel(2, func(who int) { errs[who] = os.Rename(src, filepath.Join(dir, fmt.Sprint("dst", who))) })
			wins := 0
			for who, err := range errs {
				dst := filepath.Join(dir, fmt.Sprint("dst", who))
				if err == nil {
					wins++
					wantContent(t, dst, []byte(strconv.Itoa(i)))
					must(t, os.Remove(dst))
				} else {
					wantErrno(t, "the losing rename", err, unix.ENOENT)
				}
			}
			if wins != 1 {
				t.Fatalf("round %d: %d renames won: %v", i, wins, errs)
			}
		}
		wantNames(t, dir)
	})
}

// TestLinkAgainstUnlink: a link to a file whose only name goes either wins
// with nlink 1, or gets ENOENT.
func TestLinkAgainstUnlink(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		for i := range 200 {
			write(t, a, []byte("x"))
			var ln, rm error
			parallel(2, func(who int) {
				if who == 0 {
					ln = os.Link(a, b)
				} else {
					rm = os.Remove(a)
				}
			})
			must(t, rm)
			if ln == nil {
				if st := stat(t, b); st.Nlink != 1 {
					t.Fatalf("round %d: nlink %d", i, st.Nlink)
				}
				must(t, os.Remove(b))
			} else {
				wantErrno(t, "link of a file that goes", ln, unix.ENOENT)
			}
			wantNames(t, dir)
		}
	})
}

// TestCrossingRenamesMakeNoLoop: mv a b/a against mv b a/b, and three at once.
func TestCrossingRenamesMakeNoLoop(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		for i := range 150 {
			root := mkdir(t, filepath.Join(dir, strconv.Itoa(i)))
			p := func(s string) string { return filepath.Join(root, s) }
			for _, n := range []string{"a", "b", "c"} {
				mkdir(t, p(n))
			}
			moves := [][2]string{{"a", "b/a"}, {"b", "c/b"}, {"c", "a/c"}}
			errs := make([]error, 3)
			parallel(3, func(who int) { errs[who] = os.Rename(p(moves[who][0]), p(moves[who][1])) })
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
					t.Fatalf("round %d: %v", i, err)
				}
			}
			found := map[string]bool{}
			must(t, filepath.WalkDir(root, func(q string, d os.DirEntry, err error) error {
				found[filepath.Base(q)] = true
				return err
			}))
			if won == 3 || !found["a"] || !found["b"] || !found["c"] {
				t.Fatalf("round %d: %d renames won, reachable %v", i, won, found)
			}
		}
	})
}

// TestRenameOverWhileOpening: readers of a file that is replaced all the time
// always find it, and always one whole version of it.
func TestRenameOverWhileOpening(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		version := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, 1000+i*37%9000) }
		write(t, p, version(0))
		var done atomic.Bool
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for !done.Load() {
					data, err := os.ReadFile(p)
					if err != nil {
						t.Errorf("a replaced file: %v", err)
						return
					}
					if len(data) == 0 || !bytes.Equal(data, bytes.Repeat(data[:1], len(data))) {
						t.Errorf("a mixture of versions, or nothing: %d bytes", len(data))
						return
					}
				}
			})
		}
		for i := range 300 {
			tmp := filepath.Join(dir, "tmp")
			write(t, tmp, version(i))
			must(t, os.Rename(tmp, p))
		}
		done.Store(true)
		wg.Wait()
		wantContent(t, p, version(299))
	})
}

// TestConcurrentTreeWork lets eight workers make, move and remove trees in one
// shared directory; what is left must be consistent and removable.
func TestConcurrentTreeWork(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		parallel(8, func(w int) {
			for i := range 40 {
				d := filepath.Join(dir, fmt.Sprintf("d%d", (w+i)%4))
				_ = os.MkdirAll(filepath.Join(d, "sub"), 0o755)
				_ = os.WriteFile(filepath.Join(d, "sub", strconv.Itoa(w)), pattern(uint64(i), 3000), 0o644)
				_ = os.Rename(filepath.Join(d, "sub"), filepath.Join(dir, fmt.Sprintf("d%d", (w+i+1)%4), "moved"))
				_, _ = os.ReadDir(d)
				if i%5 == 0 {
					_ = os.RemoveAll(d)
				}
			}
		})
		must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			_, err = d.Info()
			return err
		}))
	})
}
