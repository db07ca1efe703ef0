package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// layOut makes files (or, with a trailing slash, directories) below dir.
func layOut(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(full, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInspectStore(t *testing.T) {
	const ready = `{"product":"nexusfs","version":1,"state":"ready"}`
	cases := []struct {
		name  string
		files map[string]string // nil: the directory is missing
		want  storeState
		says  string // of a refusal
	}{
		{"missing", nil, storeAbsent, ""},
		{"empty", map[string]string{}, storeAbsent, ""},
		{"a fresh disk", map[string]string{"lost+found/": ""}, storeAbsent, ""},
		{"only a lock", map[string]string{"lock": ""}, storeAbsent, ""},
		{"killed while the first file was written", map[string]string{"lock": "", tempPrefix + "123": "{"}, storeAbsent, ""},
		{"whole", map[string]string{"format": ready, "meta.db": "", "content/": ""}, storeReady, ""},
		{"creation was cut short", map[string]string{"format": `{"product":"nexusfs","version":1,"state":"new"}`}, storeNew, ""},
		{"somebody's files", map[string]string{"thesis.tex": "x"}, 0, "thesis.tex"},
		{"a name with an escape", map[string]string{"a\x1bb": "x"}, 0, `a\x1bb`},
		{"another product", map[string]string{"format": `{"product":"otherfs"}`}, 0, "another product"},
		{"no JSON", map[string]string{"format": "x"}, 0, "another product"},
		{"newer", map[string]string{"format": `{"product":"nexusfs","version":9,"state":"ready"}`}, 0, "newer"},
		{"no database", map[string]string{"format": ready, "content/": ""}, 0, "meta.db"},
		{"no content", map[string]string{"format": ready, "meta.db": ""}, 0, "content"},
		{"no format", map[string]string{"meta.db": "x", "content/": ""}, 0, "half a store"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			if tc.files != nil {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			layOut(t, dir, tc.files)
			got, err := storeDir(dir).inspect()
			if tc.says == "" && (err != nil || got != tc.want) {
				t.Errorf("got %v, %v, want %v", got, err, tc.want)
			}
			if tc.says != "" && (exitCode(err) != exitStore || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("got %v (exit %d), want exit 3 and %q", err, exitCode(err), tc.says)
			}
		})
	}
}

func TestFormatMark(t *testing.T) {
	d := storeDir(t.TempDir())
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := d.markNew(made, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.markReady(historyPolicy{Versions: 5}); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(d.file("format"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.markReady(historyPolicy{Versions: 5}); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(d.file("format"))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the mark is written again though nothing changed (%v)", err)
	}
	mark, err := d.readMark()
	if err != nil || mark.State != "ready" || mark.History != "5v" || !mark.Created.Equal(made) {
		t.Errorf("mark: %+v, %v", mark, err)
	}
}

func TestReplaceFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	if err := replaceFile(filepath.Join(dir, "a"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(filepath.Join(dir, "taken"), []byte("1"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 {
		t.Errorf("left in the directory: %v, %v", names, err)
	}
}
