package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMountOf(t *testing.T) {
	mounts := []mountEntry{
		{Point: "/mnt/a", Source: "old", Root: "/"},
		{Point: "/mnt/a", Source: "a", Root: "/"},
		{Point: "/mnt/a/deep", Source: "deep", Root: "/"},
		{Point: "/srv/part", Source: "bind", Root: "/projects/x"},
	}
	for _, tc := range []struct{ path, source, inside string }{
		{"/mnt/a", "a", "/"},
		{"/mnt/a/b/c", "a", "/b/c"},
		{"/mnt/ab", "", ""},
		{"/mnt", "", ""},
		{"/mnt/a/deep/x", "deep", "/x"},
		{"/srv/part", "bind", "/projects/x"},
		{"/srv/part/f", "bind", "/projects/x/f"},
	} {
		m, inside, ok := mountOf(mounts, tc.path)
		if ok != (tc.source != "") || m.Source != tc.source || inside != tc.inside {
			t.Errorf("%s: got %q %q, want %q %q", tc.path, m.Source, inside, tc.source, tc.inside)
		}
	}
}

// TestRealPath: links in the way are followed, the last name is not, and what
// does not exist keeps its name.
func TestRealPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	layOut(t, dir, map[string]string{"real/file": "x"})
	for _, link := range [][2]string{{"real", "link"}, {"file", "real/last"}} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for given, want := range map[string]string{
		"link/file":         "real/file",
		"link/last":         "real/last",
		"link":              "link",
		"link/":             "real",
		"link/.":            "real",
		"link/..":           "",
		"link/gone/deeper":  "real/gone/deeper",
		"gone/../real/file": "real/file",
		"link/file@3":       "real/file@3",
		".":                 "",
	} {
		got, err := realPath(given)
		if err != nil || got != filepath.Join(dir, want) {
			t.Errorf("%s: got %s, %v, want %s", given, got, err, filepath.Join(dir, want))
		}
	}
}

func TestSplitVersion(t *testing.T) {
	for _, tc := range []struct {
		in, base string
		n        int64
		ok       bool
	}{
		{"/a/f@3", "/a/f", 3, true},
		{"/a/f@x@12", "/a/f@x", 12, true},
		{"/a/f@0", "", 0, false},
		{"/a/f@-1", "", 0, false},
		{"/a/f@+1", "", 0, false},
		{"/a/f@", "", 0, false},
		{"/a/@3", "", 0, false},
		{"@3", "", 0, false},
		{"/a@3/f", "", 0, false},
		{"/a/f@99999999999999999999", "", 0, false},
		{"/a/f", "", 0, false},
	} {
		base, n, ok := splitVersion(tc.in)
		if base != tc.base || n != tc.n || ok != tc.ok {
			t.Errorf("%s: got %q %d %v, want %q %d %v", tc.in, base, n, ok, tc.base, tc.n, tc.ok)
		}
	}
}

func FuzzSplitVersion(f *testing.F) {
	f.Add("/a/f@3")
	f.Add("@@1")
	f.Fuzz(func(t *testing.T, p string) {
		if base, n, ok := splitVersion(p); ok && (n <= 0 || base == "" || len(base) >= len(p)) {
			t.Errorf("%q splits into %q and %d", p, base, n)
		}
	})
}
