package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// runAt is run on a machine whose nodes are in a directory.
func runAt(t testing.TB, state, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, getenv: env("NEXUSFS_CONFIG", emptyConfig(t), "NEXUSFS_STATE", state)}
	code = a.run(args)
	return out.String(), errs.String(), code
}

// TestDumpAndLoadOfAZone: of a zone in a database, through its daemon and without
// one, with content in a directory and in S3. What is loaded is what was dumped.
func TestDumpAndLoadOfAZone(t *testing.T) {
	bucket, database := testBucket(t), testDatabase(t)
	src := richStore(t, 300)
	blobs := filepath.Join(t.TempDir(), "blobs")
	want := comparable(t, mustDump(t, src, "--hash"))
	zone := database("source")
	mustMigrate(t, src, zone, "--content", bucket("source"))
	dump := mustDump(t, zone, "--content", blobs)
	if got := strings.Replace(comparable(t, dump), `"zone":"source"`, `"zone":"default"`, 1); got != want {
		t.Errorf("the zone's dump differs from the store's:\n%s", firstDifference(got, want))
	}
	for _, tc := range []struct {
		name    string
		content string
		daemon  bool
	}{{"without a daemon", sharedDir(t), false}, {"through a daemon", sharedDir(t), true}, {"through a daemon, into S3", bucket("target"), true}} {
		t.Run(tc.name, func(t *testing.T) {
			to := database(strings.Map(func(r rune) rune {
				if r == ' ' || r == ',' {
					return '-'
				}
				return r
			}, tc.name))
			state := t.TempDir()
			if tc.daemon {
				_, state = zoneDaemon(t, to, tc.content)
			} else if err := openTestZone(t, to, tc.content, "").Close(); err != nil {
				t.Fatal(err)
			}
			if out, errs, code := runAt(t, state, dump, "load", to, "--content", blobs); code != 0 {
				t.Fatalf("load: %d %s%s", code, out, errs)
			}
			loaded, errs, code := runAt(t, state, "", "dump", to, "--hash")
			if code != 0 {
				t.Fatalf("dump: %d %s", code, errs)
			}
			head := func(s string) string { _, rest, _ := strings.Cut(s, "\n"); return rest } // it has the zone's name
			if got, want := head(comparable(t, loaded)), head(comparable(t, dump)); got != want {
				t.Errorf("the loaded tree differs:\n%s", firstDifference(got, want))
			}
			out, errs, code := runAt(t, state, dump, "load", to, "--content", blobs)
			if code != 0 || !strings.Contains(out, " 0 made, ") || !strings.Contains(out, " 0 replaced, 0 different, 0 failed") {
				t.Errorf("a second load: %d %s%s", code, out, errs)
			}
			if out, errs, code := runAt(t, state, "", "fsck", to); code != 0 {
				t.Errorf("fsck: %d %s%s", code, out, errs)
			}
			out, _, _ = runAt(t, state, "", "status", to, "--json")
			if daemon := !strings.Contains(out, `"pid": 0`); daemon != tc.daemon {
				t.Errorf("the daemon was asked: %v; %s", daemon, out)
			}
		})
	}
}
