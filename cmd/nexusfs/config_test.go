package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReferenceConfigIsTheDefaults: docs/CONFIG.md shows every key with its
// default.
func TestReferenceConfigIsTheDefaults(t *testing.T) {
	text, err := os.ReadFile("../../docs/CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```toml\n")
	block, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/CONFIG.md has no toml block")
	}
	got := &Config{}
	if err := decodeConfig([]byte(block), got); err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Stores = nil // the reference shows one in comments
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/CONFIG.md against the defaults in code (-code +doc):\n%s", diff)
	}
	for _, key := range []string{"options", "durability", "history", "agent", "task", "metrics", "level", "format", "url"} {
		if !strings.Contains(block, key) {
			t.Errorf("docs/CONFIG.md does not show the key %s", key)
		}
	}
}

func env(kv ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == key {
				return kv[i+1]
			}
		}
		return ""
	}
}

func TestConfigErrorsNameTheKey(t *testing.T) {
	for _, tc := range []struct{ name, text, says string }{
		{"unknown key", "[mount]\ncolour = \"red\"", "mount.colour"},
		{"not toml", "mount = = ", "expected"},
		{"durability", "[mount]\ndurability = \"some\"", "mount.durability"},
		{"history", "[mount]\nhistory = \"x\"", "mount.history"},
		{"options", "[mount]\noptions = \"nope\"", "mount.options"},
		{"level", "[log]\nlevel = \"loud\"", "log.level"},
		{"store's name", "[stores.\"a/b\"]\nurl = \"/x\"", "stores.a/b"},
		{"store's url", "[stores.a]\nurl = \"relative\"", "stores.a.url"},
		{"store of another kind", "[stores.a]\nurl = \"s3://bucket\"", "s3://"},
		{"no url", "[stores.a]\noptions = \"ro\"", "stores.a.url"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(file, []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := loadConfig(file, env())
			if exitCode(err) != exitUsage || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v (exit %d), want exit 2, the file and %q", err, exitCode(err), tc.says)
			}
		})
	}
	if _, err := loadConfig("/nonexistent/config.toml", env()); exitCode(err) != exitUsage {
		t.Errorf("a file that was named and is missing: %v", err)
	}
}

func TestNamedStores(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sub", "config.toml")
	run := func(args ...string) (string, int) {
		var out strings.Builder
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: env("NEXUSFS_CONFIG", file)}
		code := a.run(args)
		return out.String(), code
	}
	if out, code := run("store", "add", "work", filepath.Join(dir, "s"), "-o", "ro,history=5v"); code != 0 {
		t.Fatalf("store add: %d %s", code, out)
	}
	if out, code := run("store", "add", "work", "/elsewhere"); code != exitFailed || !strings.Contains(out, "already") {
		t.Errorf("adding a name twice: %d %s", code, out)
	}
	if out, code := run("store", "add", "a/b", "/x"); code != exitUsage {
		t.Errorf("a name with a slash: %d %s", code, out)
	}
	out, code := run("store", "list", "--json")
	if code != 0 || !strings.Contains(out, `"work"`) || !strings.Contains(out, `"not made yet"`) {
		t.Errorf("store list: %d %s", code, out)
	}
	c, err := loadConfig(file, env())
	if err != nil || c.Stores["work"] != (StoreConfig{URL: filepath.Join(dir, "s"), Options: "ro,history=5v"}) {
		t.Errorf("configuration: %+v, %v", c, err)
	}
	if out, code := run("store", "remove", "work"); code != 0 {
		t.Errorf("store remove: %d %s", code, out)
	}
	if out, code := run("store", "remove", "work"); code != exitMissing {
		t.Errorf("removing it twice: %d %s", code, out)
	}
}

// TestStoreAddKeepsTheRest: other keys of the file survive.
func TestStoreAddKeepsTheRest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	before := "[mount]\nagent = \"me\"\n\n[stores.old]\nurl = \"/old\"\n"
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: new(strings.Builder), stderr: new(strings.Builder), getenv: env("NEXUSFS_CONFIG", file)}
	if code := a.run([]string{"store", "add", "new", "file:///new"}); code != 0 {
		t.Fatalf("store add: %d", code)
	}
	c, err := loadConfig(file, env())
	if err != nil || c.Mount.Agent != "me" || c.Stores["old"].URL != "/old" || c.Stores["new"].URL != "file:///new" {
		t.Errorf("after adding: %+v, %v", c, err)
	}
}

func TestConfigFiles(t *testing.T) {
	for _, tc := range []struct {
		name, explicit string
		env            func(string) string
		want           []string
	}{
		{"user", "", env("XDG_CONFIG_HOME", "/x"), []string{systemConfig, "/x/nexusfs/config.toml"}},
		{"home", "", env("HOME", "/home/u"), []string{systemConfig, "/home/u/.config/nexusfs/config.toml"}},
		{"nothing set", "", env(), []string{systemConfig}},
		{"relative is ignored", "", env("XDG_CONFIG_HOME", "x"), []string{systemConfig}},
		{"flag", "/f", env("NEXUSFS_CONFIG", "/e"), []string{"/f"}},
		{"environment", "", env("NEXUSFS_CONFIG", "/e", "HOME", "/h"), []string{"/e"}},
	} {
		if diff := cmp.Diff(tc.want, configFiles(tc.explicit, tc.env)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
	if got := writableConfig("", env("HOME", "/h"), 0); got != systemConfig {
		t.Errorf("root writes to %s", got)
	}
	if got := writableConfig("", env("HOME", "/h"), 1000); got != "/h/.config/nexusfs/config.toml" {
		t.Errorf("a user writes to %s", got)
	}
}
