package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// doctored runs doctor --json and returns the checks by name.
func doctored(t *testing.T, args ...string) (map[string]diagnosis, int) {
	t.Helper()
	out, errs, code := run(t, "", append([]string{"doctor", "--json"}, args...)...)
	found := map[string]diagnosis{}
	for line := range strings.Lines(out) {
		var d diagnosis
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if d.State != healthOK && d.State != healthWarn && d.State != healthFail || d.Found == "" || d.State != healthOK && d.Do == "" && len(d.Found) < 80 {
			t.Errorf("a check that says too little: %+v", d)
		}
		found[d.Check] = d
	}
	if len(found) < 7 {
		t.Errorf("only %d checks: %s", len(found), errs)
	}
	failed := 0
	for _, d := range found {
		if d.State == healthFail {
			failed++
		}
	}
	if (failed > 0) != (code == exitFailed) || code != 0 && code != exitFailed {
		t.Errorf("%d failures and code %d: %s", failed, code, errs)
	}
	return found, code
}

func TestDoctorOnStores(t *testing.T) {
	healthy := func(t *testing.T) string { return richStore(t, 3) }
	for _, tc := range []struct {
		name  string
		make  func(t *testing.T) string
		args  []string
		check string
		state health
		want  string
	}{
		{"healthy", healthy, nil, "database", healthOK, "was read and verified"},
		{"healthy, its directory", healthy, nil, "store", healthOK, "format 1"},
		{"a probe is written", healthy, []string{"--write"}, "database", healthOK, "stored, read and removed"},
		{"nothing outside of SQL", func(t *testing.T) string { return testStore(t, nil) }, nil, "database", healthOK, "no content outside"},
		{"none there", func(t *testing.T) string { return filepath.Join(t.TempDir(), "none") }, nil, "store", healthFail, "there is no store"},
		{"half a store", func(t *testing.T) string {
			dir := testStore(t, nil)
			if err := os.RemoveAll(filepath.Join(dir, "content")); err != nil {
				t.Fatal(err)
			}
			return dir
		}, nil, "store", healthFail, "half a store"},
		{"another product's content", func(t *testing.T) string {
			dir := testStore(t, nil)
			if err := os.WriteFile(filepath.Join(storeDir(dir).content(defaultZone), "format"), []byte("other\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, nil, "database", healthFail, "cannot be used"},
		{"damaged content", func(t *testing.T) string {
			dir := testStore(t, func(fs *meta.FS) { put(t, fs, meta.RootIno, "big", strings.Repeat("damage me ", 5000)) })
			seg := filepath.Join(storeDir(dir).content(defaultZone), "segments", "00000001.seg")
			data, err := os.ReadFile(seg)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(seg, data, 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, nil, "database", healthFail, "cannot be read"},
		{"readable for others", func(t *testing.T) string {
			dir := testStore(t, nil)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			return dir
		}, nil, "permissions", healthWarn, "mode 0755"},
		{"a killed daemon", func(t *testing.T) string {
			alive := testStore(t, nil)
			e := openTestEngine(t, alive)
			defer e.Close()
			killed := filepath.Join(t.TempDir(), "killed")
			if err := os.CopyFS(killed, os.DirFS(alive)); err != nil {
				t.Fatal(err)
			}
			return killed
		}, nil, "database", healthWarn, "did not end in order"},
		{"a command has it", func(t *testing.T) string {
			dir := testStore(t, nil)
			lock, err := lockExclusive(t.Context(), storeDir(dir), holder{PID: os.Getpid(), Role: "gc"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Release() })
			return dir
		}, nil, "lock", healthWarn, "nexusfs gc"},
		{"a daemon that is gone, its lock not", func(t *testing.T) string {
			dir := testStore(t, nil)
			lock, err := lockExclusive(t.Context(), storeDir(dir), holder{PID: os.Getpid(), Role: "mount", Mountpoint: "/nowhere"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Release() })
			return dir
		}, nil, "daemon", healthFail, "does not answer"},
		{"a daemon", func(t *testing.T) string {
			dir := testStore(t, nil)
			daemonWithoutMount(t, dir)
			return dir
		}, []string{"--write"}, "daemon", healthOK, "answered in"},
		{"content elsewhere", func(t *testing.T) string {
			dir := testStore(t, nil)
			if out, code := command(t, "migrate", dir, "--content", filepath.Join(t.TempDir(), "content")); code != 0 {
				t.Fatalf("migrate: %d %s", code, out)
			}
			return dir
		}, nil, "content-space", healthOK, "free of"},
		{"a migration's target", func(t *testing.T) string {
			dir := t.TempDir()
			if err := storeDir(dir).markMigrating(time.Now(), ""); err != nil {
				t.Fatal(err)
			}
			return dir
		}, nil, "store", healthFail, "has not come to its end"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			found, _ := doctored(t, append(tc.args, tc.make(t))...)
			if d := found[tc.check]; d.State != tc.state || !strings.Contains(d.Found, tc.want) {
				t.Errorf("check %s: %+v, want %s and %q", tc.check, d, tc.state, tc.want)
			}
		})
	}
}

// TestDoctorChangesNothing unless it may.
func TestDoctorChangesNothing(t *testing.T) {
	store := richStore(t, 1)
	before, err := os.ReadFile(storeDir(store).database())
	if err != nil {
		t.Fatal(err)
	}
	doctored(t, store)
	after, err := os.ReadFile(storeDir(store).database())
	if err != nil || string(before) != string(after) {
		t.Errorf("the database changed (%v)", err)
	}
}

// TestExamineNeverHangs: a check that never returns is a failed one.
func TestExamineNeverHangs(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	list := []examination{
		{"stuck", func(context.Context) diagnosis { <-stuck; return diagnosis{} }},
		{"next", func(context.Context) diagnosis { return fine("well") }},
	}
	var got []diagnosis
	failed, err := examine(t.Context(), list, time.Millisecond, func(d diagnosis) error { got = append(got, d); return nil })
	if err != nil || failed != 1 || len(got) != 2 || got[0].State != healthFail || got[1].State != healthOK {
		t.Errorf("%d failed, %v: %+v", failed, err, got)
	}
}

func TestSystemChecks(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "fuse.conf")
	if err := os.WriteFile(conf, []byte("# user_allow_other\n  user_allow_other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "fuse.conf")
	if err := os.WriteFile(plain, []byte("#user_allow_other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		got  diagnosis
		want health
		text string
	}{
		{"new kernel", kernelCheck("6.16.0-arch1"), healthOK, "passthrough and INC_EPOCH"},
		{"kernel without INC_EPOCH", kernelCheck("6.12.9"), healthOK, "INC_EPOCH (6.16)"},
		{"kernel without passthrough", kernelCheck("6.1.0-28-amd64"), healthWarn, "passthrough (6.9)"},
		{"next major kernel", kernelCheck("7.0.1"), healthOK, "passthrough"},
		{"old kernel", kernelCheck("5.10.0"), healthFail, "too old"},
		{"strange kernel", kernelCheck("x"), healthWarn, "not understood"},
		{"no fuse", fuseCheck("/does/not/exist"), healthFail, "modprobe fuse"},
		{"no device", fuseCheck("/dev/null"), healthFail, "not the kernel's fuse device"},
		{"others allowed", fuseConfCheck(conf, 1000), healthOK, "is set"},
		{"others not allowed", fuseConfCheck(plain, 1000), healthWarn, "not set"},
		{"others not allowed, root", fuseConfCheck(plain, 0), healthOK, "only root"},
		{"no fuse.conf", fuseConfCheck("/does/not/exist", 1000), healthWarn, "not set"},
		{"the clock was never set", clockCheck(time.Unix(0, 0)), healthFail, "1970"},
		{"the clock is sane", clockCheck(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)), healthOK, "2026"},
	} {
		if tc.got.State != tc.want || !strings.Contains(tc.got.Found, tc.text) {
			t.Errorf("%s: %+v, want %s and %q", tc.name, tc.got, tc.want, tc.text)
		}
	}
	for magic, good := range map[int64]bool{unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
		unix.NFS_SUPER_MAGIC: false, -int64(0x100000000 - unix.SMB2_SUPER_MAGIC): false, unix.TMPFS_MAGIC: false, unix.FUSE_SUPER_MAGIC: false, 12345: false} {
		if d := diskType(magic); (d.do == "") != good || d.name == "" {
			t.Errorf("filesystem %#x: %+v", magic, d)
		}
	}
}
