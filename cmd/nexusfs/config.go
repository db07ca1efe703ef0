package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Config is the whole configuration. Defaults are in code (defaultConfig);
// docs/CONFIG.md is the commented reference, which a test decodes. Command
// line flags win over -o options, those over the file.
type Config struct {
	Mount  MountConfig            `toml:"mount"`
	Log    LogConfig              `toml:"log"`
	Stores map[string]StoreConfig `toml:"stores"`
}

// MountConfig holds defaults for every mount.
type MountConfig struct {
	Options    string `toml:"options"`    // as given to -o
	Durability string `toml:"durability"` // relaxed or strict; "" for relaxed on a directory, strict on a database
	History    string `toml:"history"`    // off, 30v, 7d or 30v,7d
	Agent      string `toml:"agent"`      // declared agent name
	Task       string `toml:"task"`       // declared task name
	Metrics    string `toml:"metrics"`    // address of the Prometheus endpoint
}

// LogConfig says how the daemon logs.
type LogConfig struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// StoreConfig is a named store.
type StoreConfig struct {
	URL     string `toml:"url"`               // a directory, file:///directory, or postgres://user@host/database?zone=zone
	Options string `toml:"options,omitempty"` // as given to -o, for this store alone
}

func defaultConfig() *Config {
	return &Config{
		Mount:  MountConfig{History: defaultHistory().String()},
		Log:    LogConfig{Level: "info", Format: "text"},
		Stores: map[string]StoreConfig{},
	}
}

// storeName is what a named store may be called: no slash, so that a name is
// never taken for a path.
var storeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Validate names the first key that is wrong.
func (c *Config) Validate() error {
	var m mountOptions
	checks := []struct {
		key string
		err error
	}{
		{"mount.options", m.parse(c.Mount.Options)},
		{"mount.durability", oneOf(c.Mount.Durability, "", "relaxed", "strict")},
		{"mount.history", errorOf(parseHistory(c.Mount.History))},
		{"mount.agent", validLabel("agent", c.Mount.Agent)},
		{"mount.task", validLabel("task", c.Mount.Task)},
		{"log.level", errorOf(logLevel(c.Log.Level))},
		{"log.format", oneOf(c.Log.Format, "text", "json")},
	}
	for _, check := range checks {
		if check.err != nil {
			return fmt.Errorf("%s: %w", check.key, check.err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Stores)) {
		if err := c.Stores[name].validate(name); err != nil {
			return err
		}
	}
	return nil
}

func (s StoreConfig) validate(name string) error {
	if !storeName.MatchString(name) {
		return fmt.Errorf("stores.%s: a store's name has letters, digits, dot, dash and underscore, at most 63", escapeName(name))
	}
	if err := validStoreURL(s.URL); err != nil {
		return fmt.Errorf("stores.%s.url: %w", name, err)
	}
	var m mountOptions
	if err := m.parse(s.Options); err != nil {
		return fmt.Errorf("stores.%s.options: %w", name, err)
	}
	return nil
}

// validStoreURL refuses what is no store's URL. The configuration is a file that
// others may read: it must hold no password.
func validStoreURL(url string) error {
	if !isRemote(url) {
		_, err := storePath(url)
		return err
	}
	r, err := parseRemote(url)
	if err == nil && r.password != "" {
		err = errors.New("has a password, and this file may be read by others: write it into ~/.pgpass (of the user who mounts) and leave it out here")
	}
	return err
}

// storePath turns an embedded store's URL into the directory that it names.
func storePath(url string) (string, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case url == "":
		return "", errors.New("is empty: give the store's directory")
	case ok && scheme == "file":
		url = rest
	case ok:
		return "", fmt.Errorf("%s:// is not a kind of store that this version knows: give a directory, file:///directory, or postgres://user@host/database", escapeName(scheme))
	}
	if !filepath.IsAbs(url) {
		return "", fmt.Errorf("%s is not an absolute path: a named store is used from any directory", escapeName(url))
	}
	return filepath.Clean(url), nil
}

func errorOf[T any](_ T, err error) error { return err }

// oneOf refuses what is not allowed; "" may be, and is not told.
func oneOf(s string, allowed ...string) error {
	if !slices.Contains(allowed, s) {
		allowed = slices.DeleteFunc(allowed, func(a string) bool { return a == "" })
		return fmt.Errorf("%s is not understood: give %s", escapeName(s), strings.Join(allowed, " or "))
	}
	return nil
}

// systemConfig is everybody's file; root's `store add` writes to it.
const systemConfig = "/etc/nexusfs/config.toml"

// configFiles lists the files to read in order; explicit alone when given.
func configFiles(explicit string, getenv func(string) string) []string {
	if explicit == "" {
		explicit = getenv("NEXUSFS_CONFIG")
	}
	if explicit != "" {
		return []string{explicit}
	}
	files := []string{systemConfig}
	if user := userConfig(getenv); user != "" {
		files = append(files, user)
	}
	return files
}

func userConfig(getenv func(string) string) string {
	dir := getenv("XDG_CONFIG_HOME")
	if home := getenv("HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".config")
	}
	if !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Join(dir, "nexusfs", "config.toml")
}

// loadConfig reads the files, later ones over earlier ones. Only a file that
// was named explicitly must exist.
func loadConfig(explicit string, getenv func(string) string) (*Config, error) {
	c := defaultConfig()
	files := configFiles(explicit, getenv)
	for _, file := range files {
		data, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist) && explicit == "":
			continue
		case errors.Is(err, fs.ErrPermission) && explicit == "" && file != systemConfig:
			continue // HOME is another user's, as after sudo or su
		case err != nil:
			return nil, fail(exitUsage, "configuration: %w", err)
		}
		if err := decodeConfig(data, c); err != nil {
			return nil, fail(exitUsage, "configuration %s: %w", file, err)
		}
	}
	if err := c.Validate(); err != nil {
		return nil, fail(exitUsage, "configuration %s: %w", strings.Join(files, ", "), err)
	}
	return c, nil
}

// decodeConfig lays a file over c. Keys that are not known are errors.
func decodeConfig(data []byte, c *Config) error {
	md, err := toml.NewDecoder(bytes.NewReader(data)).Decode(c)
	if err != nil {
		return err
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("key %s is not known: see docs/CONFIG.md", unknown[0])
	}
	return nil
}

// writableConfig is the file that store add and store remove change.
func writableConfig(explicit string, getenv func(string) string, uid int) string {
	files := configFiles(explicit, getenv)
	if uid == 0 {
		return files[0]
	}
	return files[len(files)-1]
}

// storesFile is a config file as far as store add and remove touch it: every
// other key is kept as it was read.
type storesFile struct {
	path string
	tree map[string]any
}

func readStoresFile(path string) (*storesFile, error) {
	f := &storesFile{path: path, tree: map[string]any{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fail(exitUsage, "configuration: %w", err)
	}
	if err := decodeConfig(data, defaultConfig()); err != nil {
		return nil, fail(exitUsage, "configuration %s: %w", path, err)
	}
	return f, toml.Unmarshal(data, &f.tree)
}

func (f *storesFile) stores() map[string]any {
	s, ok := f.tree["stores"].(map[string]any)
	if !ok {
		s = map[string]any{}
		f.tree["stores"] = s
	}
	return s
}

// write replaces the file atomically; a symbolic link to it stays a link.
func (f *storesFile) write() error {
	path := f.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(exitFailed, "configuration: %w", err)
	}
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(f.tree); err != nil {
		return fail(exitFailed, "configuration %s: %w", path, err)
	}
	if err := replaceFile(path, b.Bytes(), 0o644); err != nil {
		return fail(exitFailed, "configuration: %w", err)
	}
	return nil
}

// tempPrefix begins the names of files that are being written. Who was killed
// while he wrote the first file of a store leaves one.
const tempPrefix = ".nexusfs-tmp-"

// replaceFile writes data under a temporary name, makes it durable and renames
// it, so that path holds the old bytes or the new ones, never a part.
func replaceFile(path string, data []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Chmod(mode); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
