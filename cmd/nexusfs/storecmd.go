package main

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

func storeVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "make stores and give them names",
		Long: `A named store is an entry of the configuration: users and fstab write NAME and
carry neither paths nor secrets. root's names are for everybody
(/etc/nexusfs/config.toml), a user's are in $XDG_CONFIG_HOME/nexusfs/config.toml.`,
		Example: "  nexusfs store add projects /srv/nexusfs/projects\n  nexusfs mount projects ./mnt",
		Args:    cobra.NoArgs,
		RunE:    a.bareGroup,
	}
	cmd.AddCommand(storeAdd(a), storeList(a), storeRemove(a), storeCreate(a))
	return cmd
}

func storeAdd(a *app) *cobra.Command {
	var options string
	cmd := &cobra.Command{
		Use:     "add NAME URL",
		Short:   "give a store a name",
		Long:    "add writes NAME and URL (a directory, or file:///directory) to the configuration. The store itself is not touched and need not exist yet.",
		Example: "  nexusfs store add projects /srv/nexusfs/projects\n  nexusfs store add team ./team -o allow_other,history=100v",
		Args:    cobra.ExactArgs(2),
		RunE: action(func(_ context.Context, args []string) error {
			name, url := args[0], args[1]
			if !storeHasScheme(url) {
				abs, err := filepath.Abs(url)
				if err != nil {
					return fail(exitUsage, "%s: %w", escapeName(url), err)
				}
				url = abs
			}
			entry := StoreConfig{URL: url, Options: options}
			if err := entry.validate(name); err != nil {
				return withCode(exitUsage, err)
			}
			f, err := readStoresFile(a.configWriteTo())
			if err != nil {
				return err
			}
			if _, ok := f.stores()[name]; ok {
				return fail(exitFailed, "there is a store named %s already: remove it first (nexusfs store remove %s)", name, name)
			}
			f.stores()[name] = entry
			if err := f.write(); err != nil {
				return err
			}
			a.printf("%s is %s (in %s)\n", name, escapeName(url), escapeName(f.path))
			return nil
		}),
	}
	cmd.Flags().StringVarP(&options, "options", "o", "", "mount `options` for this store")
	return cmd
}

func (a *app) configWriteTo() string { return writableConfig(a.configPath, a.getenv, os.Geteuid()) }

func storeHasScheme(url string) bool {
	for i, c := range url {
		if c == ':' {
			return i > 0 && len(url) > i+2 && url[i:i+3] == "://"
		}
		if c == '/' {
			return false
		}
	}
	return false
}

// namedStore is one line of store list.
type namedStore struct {
	Name    string `json:"name"`
	URL     string `json:"url"`
	Options string `json:"options,omitempty"`
	State   string `json:"state"`
	Mount   string `json:"mountpoint,omitempty"`
	PID     int    `json:"pid,omitempty"`
}

func storeList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list named stores and where they are mounted",
		Example: "  nexusfs store list",
		Args:    cobra.NoArgs,
		RunE: action(func(context.Context, []string) error {
			config, err := a.loadConfig()
			if err != nil {
				return err
			}
			list := []namedStore{}
			for _, name := range slices.Sorted(maps.Keys(config.Stores)) {
				list = append(list, a.describeStore(name, config.Stores[name]))
			}
			if asJSON {
				return a.printJSON(list)
			}
			t := newTable(a.stdout, "NAME", "STATE", "URL", "MOUNTPOINT")
			for _, s := range list {
				t.add(s.Name, s.State, escapeName(s.URL), escapeName(s.Mount))
			}
			return t.flush()
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// describeStore looks and changes nothing.
func (a *app) describeStore(name string, s StoreConfig) namedStore {
	out := namedStore{Name: name, URL: s.URL, Options: s.Options}
	if isRemote(s.URL) {
		return a.describeRemote(out)
	}
	path, err := storePath(s.URL)
	if err != nil {
		out.State = "unusable"
		return out
	}
	state, err := storeDir(path).inspect()
	switch {
	case err != nil:
		out.State = "unusable"
	case state == storeAbsent:
		out.State = "not made yet"
	default:
		out.State = "there"
		if by, held, err := probeLock(storeDir(path)); err == nil && held {
			out.State, out.PID, out.Mount = "in use", by.PID, by.Mountpoint
			if by.Role == "mount" {
				out.State = "mounted"
			}
		}
	}
	return out
}

// describeRemote says whether a database's zone is mounted here; the database
// itself is not asked.
func (a *app) describeRemote(out namedStore) namedStore {
	out.State = "database"
	r, err := parseRemote(out.URL)
	if err != nil {
		out.State = "unusable"
		return out
	}
	if nodes, err := a.nodesOf(r); err == nil && len(nodes) > 0 {
		out.State, out.PID, out.Mount = "mounted", nodes[0].by.PID, nodes[0].by.Mountpoint
	}
	return out
}

func storeRemove(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "forget a store's name; the store stays",
		Example: "  nexusfs store remove projects",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(_ context.Context, args []string) error {
			f, err := readStoresFile(a.configWriteTo())
			if err != nil {
				return err
			}
			if _, ok := f.stores()[args[0]]; !ok {
				return fail(exitMissing, "no store is named %s in %s", escapeName(args[0]), escapeName(f.path))
			}
			delete(f.stores(), args[0])
			if err := f.write(); err != nil {
				return err
			}
			a.printf("%s is no name any more; its data is untouched\n", args[0])
			return nil
		}),
	}
}

func storeCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "create STORE",
		Short:   "make an empty store without mounting it",
		Long:    "create makes a store in a directory that is missing or empty. mount does the same by itself.",
		Example: "  nexusfs store create /srv/nexusfs/projects",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(args[0])
			if err != nil {
				return err
			}
			if t.mount != nil {
				return fail(exitUsage, "%s is inside of a mount: give a directory outside", escapeName(args[0]))
			}
			if t.remote != nil {
				return fail(exitUsage, "a zone in a database is made by its first mount: nexusfs mount -o content=... %s MOUNTPOINT", shellQuote(args[0]))
			}
			if state, err := t.store.inspect(); err != nil || state == storeReady {
				if err == nil {
					err = fail(exitStore, "%s is a store already", escapeName(args[0]))
				}
				return err
			}
			if err := a.createStore(ctx, t); err != nil {
				return err
			}
			a.printf("made the store %s; mount it with: nexusfs mount %s MOUNTPOINT\n", escapeName(args[0]), shellQuote(args[0]))
			return nil
		}),
	}
}

// createStore opens the store once, which makes its database and its root.
func (a *app) createStore(ctx context.Context, t *target) error {
	d, now := t.store, time.Now()
	lock, err := openForMount(ctx, t, holder{PID: os.Getpid(), Role: "store create", Started: now, Version: versionString()})
	if err != nil {
		return err
	}
	defer lock.Release()
	log, err := a.commandLogger()
	if err != nil {
		return err
	}
	e, err := openEngine(ctx, engineOptions{dir: d, mount: mountOptions{History: defaultHistory()}, log: log})
	if err != nil {
		return err
	}
	if err := e.Close(); err != nil {
		return fail(exitStore, "closing the store: %w", err)
	}
	return d.markReady(defaultHistory())
}
