package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"nexusfs/meta"
)

func TestParseTime(t *testing.T) {
	zone := time.FixedZone("here", 2*3600)
	now := time.Date(2025, 11, 22, 10, 0, 0, 0, zone)
	for _, tc := range []struct {
		text string
		end  bool
		want string // in UTC; "" is an error
	}{
		{"2025-11-20T08:30:00Z", false, "2025-11-20T08:30:00Z"},
		{"2025-11-20T08:30:00.000000001+02:00", true, "2025-11-20T06:30:00.000000001Z"},
		{"2025-11-20", false, "2025-11-19T22:00:00Z"},
		{"2025-11-20", true, "2025-11-20T21:59:59.999999999Z"},
		{"2h", false, "2025-11-22T06:00:00Z"},
		{"90m", true, "2025-11-22T06:30:00Z"},
		{"1h30m", false, "2025-11-22T06:30:00Z"},
		{"3d", false, "2025-11-19T08:00:00Z"},
		{"1w", false, "2025-11-15T08:00:00Z"},
		{"30v", false, ""}, {"-2h", false, ""}, {"yesterday", false, ""}, {"2025-13-01", false, ""}, {"12", false, ""}, {"", false, ""},
	} {
		got, err := parseTime(tc.text, now, tc.end)
		if text := got.UTC().Format(time.RFC3339Nano); (err != nil) != (tc.want == "") || err == nil && text != tc.want {
			t.Errorf("%q (end %v): %s, %v, want %q", tc.text, tc.end, text, err, tc.want)
		}
	}
	for text, want := range map[string]int64{"9999-01-01T00:00:00Z": 1<<63 - 2, "0001-01-01T00:00:00Z": -1 << 63} {
		at, err := parseTime(text, now, false)
		if err != nil || clampedNano(at) != want {
			t.Errorf("%s: %d, %v", text, clampedNano(at), err)
		}
	}
}

// recordsAt is a history whose records have these times; 0: no record.
type recordsAt struct {
	meta.History
	times []int64
}

func (h recordsAt) Records(_ context.Context, f meta.RecordFilter, fn func(*meta.Record) bool) error {
	for i, ns := range h.times {
		if rev := meta.Rev(i + 1); rev > f.Since && rev <= f.Until && ns != 0 && !fn(&meta.Record{Rev: rev, Time: ns}) {
			break
		}
	}
	return nil
}

func TestLastBefore(t *testing.T) {
	for _, tc := range []struct {
		times []int64
		ns    int64
		want  meta.Rev
	}{
		{nil, 5, 0},
		{[]int64{1, 2, 3, 4}, 1, 0},
		{[]int64{1, 2, 3, 4}, 3, 2},
		{[]int64{1, 2, 3, 4}, 9, 4},
		{[]int64{1, 2, 2, 2, 3}, 2, 1},
		{[]int64{1, 2, 2, 2, 3}, 3, 4},
		{[]int64{0, 0, 0, 7, 8}, 8, 4},       // pruned
		{[]int64{1, 2, 0, 0, 0, 0, 9}, 9, 2}, // taken back
		{[]int64{1, 0, 0, 0}, 9, 1},
	} {
		got, err := lastBefore(t.Context(), recordsAt{times: tc.times}, meta.Rev(len(tc.times)), tc.ns)
		if err != nil || got != tc.want {
			t.Errorf("last before %d of %v: %d, %v, want %d", tc.ns, tc.times, got, err, tc.want)
		}
	}
}

func TestLogByTime(t *testing.T) {
	var at time.Time
	store := testStore(t, func(fs *meta.FS) {
		put(t, fs, meta.RootIno, "first", "1")
		at = time.Now()
		put(t, fs, meta.RootIno, "second", "2")
	})
	border := at.Format(time.RFC3339Nano)
	for _, tc := range []struct {
		args []string
		want string // names in their order
	}{
		{[]string{store, "--since-time", "1h"}, "init create/first write/first create/second write/second"},
		{[]string{store, "--since-time", border}, "create/second write/second"},
		{[]string{store, "--until-time", border}, "write/first create/first init"},
		{[]string{store, "--until-time", "1h"}, ""},
		{[]string{store, "--since-time", border, "--until-time", border}, ""},
		{[]string{store, "--since-time", border, "--since", "4"}, "write/second"},
		{[]string{store, "--since-time", "1h", "-n", "2"}, "init create/first"},
		{[]string{"/first", "-s", store, "--since-time", "1h"}, "create/first write/first"},
		{[]string{"/first", "-s", store, "--since-time", border}, ""},
		{[]string{store, "--until-time", time.Now().Format(time.DateOnly), "-n", "1"}, "write/second"},
	} {
		out, code := command(t, append([]string{"log", "--brief"}, tc.args...)...)
		var got []string
		for line := range strings.Lines(out) {
			var rev int
			var day, clock, op, path string
			fmt.Sscan(line, &rev, &day, &clock, &op, &path)
			got = append(got, strings.TrimSuffix(op+path, "/"))
		}
		if code != 0 || strings.Join(got, " ") != tc.want {
			t.Errorf("log %v: code %d, %q, want %q", tc.args, code, got, tc.want)
		}
	}
	if out, code := command(t, "log", store, "--follow", "--until-time", "1h"); code != exitUsage {
		t.Errorf("--follow to a time: %d %s", code, out)
	}
}

func TestPurgeRecursive(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprint("daemon ", daemon), func(t *testing.T) {
			store := testStore(t, func(fs *meta.FS) { purgeTreeStore(t, fs) })
			if daemon {
				daemonWithoutMount(t, store)
			}
			for _, tc := range []struct {
				args []string
				code int
				want string
			}{
				{[]string{"purge", "-r", "-s", store, "tree/file"}, exitUsage, "not a directory"},
				{[]string{"purge", "-r", "--all", store}, exitUsage, "exclude"},
				{[]string{"purge", "-r", "-s", store, "tree"}, 0, "let go"},
				{[]string{"cat", "-s", store, "tree/file"}, 0, "new"},
				{[]string{"cat", "-s", store, "tree/file@1"}, exitMissing, ""},
				{[]string{"cat", "-s", store, "tree/sub/file@1"}, exitMissing, ""},
				{[]string{"cat", "-s", store, "tree/gone"}, exitMissing, ""},
				{[]string{"cat", "-s", store, "tree/deleted/inside"}, exitMissing, ""},
				{[]string{"cat", "-s", store, "other/file@1"}, 0, "old"},
				{[]string{"cat", "-s", store, "other/gone"}, 0, "precious"},
				{[]string{"cat", "-s", store, "other/moved"}, 0, "moved away"}, // deleted elsewhere
				{[]string{"cat", "-s", store, "other/stays"}, 0, "moved and there"},
				{[]string{"log", store, "-n", "1"}, 0, `{"recursive":1}`},
				{[]string{"log", "-s", store, "tree/file"}, 0, "create"},
				{[]string{"fsck", store}, 0, "is whole"},
			} {
				if out, code := command(t, tc.args...); code != tc.code || !strings.Contains(out, tc.want) {
					t.Errorf("%v: code %d, want %d; %q, want it to contain %q", tc.args, code, tc.code, out, tc.want)
				}
			}
		})
	}
}

// purgeTreeStore makes two directories with versions and deleted names, some of
// which went from the one to the other, and deleted directories that have held
// each other.
func purgeTreeStore(t *testing.T, fs *meta.FS) {
	ctx, c := t.Context(), meta.Caller{}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := func(parent meta.Ino, name string) meta.Ino {
		a, err := fs.Mkdir(ctx, c, parent, name, 0o755, 0)
		ok(err)
		return a.Ino
	}
	tree, other := dir(meta.RootIno, "tree"), dir(meta.RootIno, "other")
	sub, deleted := dir(tree, "sub"), dir(tree, "deleted")
	for _, d := range []meta.Ino{tree, sub, other} {
		put(t, fs, d, "file", "old")
		put(t, fs, d, "file", "new")
	}
	for _, d := range []meta.Ino{tree, other} {
		put(t, fs, d, "gone", "precious")
		ok(fs.Unlink(ctx, c, d, "gone"))
	}
	put(t, fs, deleted, "inside", "deep")
	ok(fs.Unlink(ctx, c, deleted, "inside"))
	ok(fs.Rmdir(ctx, c, tree, "deleted"))
	put(t, fs, tree, "moved", "moved away")
	put(t, fs, tree, "stays", "moved and there")
	for _, name := range []string{"moved", "stays"} {
		ok(fs.Rename(ctx, c, tree, name, other, name, 0))
	}
	ok(fs.Unlink(ctx, c, other, "moved"))
	a := dir(tree, "a")
	dir(a, "b")
	ok(fs.Rename(ctx, c, a, "b", tree, "b", 0))
	b, err := fs.Lookup(ctx, tree, "b")
	ok(err)
	ok(fs.Rename(ctx, c, tree, "a", b.Ino, "a", 0))
	ok(fs.Rmdir(ctx, c, b.Ino, "a"))
	ok(fs.Rmdir(ctx, c, tree, "b"))
}
