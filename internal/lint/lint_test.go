package lint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestModuleKeepsItsRules(t *testing.T) {
	findings, err := Check("../..", Nexusfs())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Report {
			t.Log(f)
		} else {
			t.Error(f)
		}
	}
}

func TestEveryRuleHasAReason(t *testing.T) {
	for _, r := range rooms() {
		if r.Reason == "" {
			t.Errorf("room %s has no reason", r.Dir)
		}
	}
	for _, d := range doors() {
		if d.Reason == "" {
			t.Errorf("door of %s has no reason", d.Library)
		}
	}
}

// TestPlantedMistakes makes sure that the rules bite: each file is planted
// alone into an empty tree and must be found.
func TestPlantedMistakes(t *testing.T) {
	long := "// Package p is long.\npackage p\nfunc f() {\n" + strings.Repeat("\tprintln()\n", 120) + "}\n"
	cases := []struct {
		name, file, source, want string
	}{
		{"sibling", "fusefs/x.go", `import _ "nexusfs/sqlssot/sqlite"`, "never a sibling"},
		{"sibling in a test", "content/local/x_test.go", `import _ "nexusfs/sqlssot/sqlite"`, "never a sibling"},
		{"meta outside the standard library", "meta/x.go", `import _ "golang.org/x/sys/unix"`, "standard library only"},
		{"meta to a room", "meta/x.go", `import _ "nexusfs/fusefs"`, "the leaf"},
		{"go-fuse beside its door", "cmd/nexusfs/x.go", `import _ "github.com/hanwen/go-fuse/v2/fuse"`, "whose door is"},
		{"blake3 beside its door", "sqlssot/sqlite/x.go", `import _ "github.com/zeebo/blake3"`, "whose door is"},
		{"sqlite beside its door", "hooks/x.go", `import _ "zombiezen.com/go/sqlite"`, "whose door is"},
		{"raft beside its door", "cmd/nexusfs/x.go", `import _ "go.etcd.io/raft/v3"`, "whose door is"},
		{"bbolt beside its door", "raftnode/x.go", `import _ "go.etcd.io/bbolt"`, "whose door is"},
		{"a library without a door", "fusefs/x.go", `import _ "example.com/left-pad"`, "has no door"},
		{"a package without a room", "util/x.go", `import _ "nexusfs/meta"`, "no room"},
		{"test support in shipped code", "content/local/x.go", `import _ "nexusfs/content/contenttest"`, "test support"},
		{"errno outside its file", "meta/x.go", "import \"syscall\"\nvar e syscall.Errno", "syscall.Errno belongs"},
		{"init", "hooks/x.go", "func init() {}", "init does work"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			source := "// Package p is planted.\npackage p\n" + tc.source + "\n"
			expectFinding(t, tc.file, source, tc.want)
		})
	}
	t.Run("long function", func(t *testing.T) { expectFinding(t, "meta/x.go", long, "function f has 122 lines") })
	t.Run("no package comment", func(t *testing.T) { expectFinding(t, "meta/x.go", "package p\n", "no comment") })
}

func expectFinding(t *testing.T, file, source, want string) {
	t.Helper()
	root := t.TempDir()
	name := filepath.Join(root, file)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	findings, err := Check(root, Nexusfs())
	if err != nil {
		t.Fatal(err)
	}
	if len(findings) != 1 || findings[0].Report || !strings.Contains(findings[0].Text, want) {
		t.Errorf("got findings %v, want one with %q", findings, want)
	}
}
