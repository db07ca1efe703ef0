package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// mountOptions is what -o, the flags of mount and the config file decide.
type mountOptions struct {
	ReadOnly   bool
	AllowOther bool
	Kernel     []string // handed to the kernel: nodev, noexec ...
	Durability string   // relaxed or strict; "": as the kind of store has it
	Content    string   // of a database's zone: where its content lies; "": as the zone says
	History    historyPolicy
	Agent      string
	Task       string
	Metrics    string // address of the Prometheus endpoint; "" for none
	Source     string // what the mount table shows; "" for the store
}

// ignoredOptions are for mount(8), systemd and fstab's readers; a filesystem
// accepts them without a meaning of its own.
var ignoredOptions = []string{
	"defaults", "rw", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner",
	"group", "default_permissions", "nonempty", "async", "atime", "noatime", "relatime", "norelatime",
	"nodiratime", "diratime", "nostrictatime", "nolazytime", "nomand", "loud", "silent", "uhelper",
	"helper", "comment", "subtype", "blkdev", "iversion", "noiversion",
}

// kernelOptions are flags of the mount itself.
var kernelOptions = []string{"dev", "nodev", "suid", "nosuid", "exec", "noexec"}

// refusedOption is the sentence for options that deserve one of their own.
func refusedOption(name string) string {
	switch name {
	case "remount":
		return "a nexusfs mount cannot be remounted: umount it and mount it again with the new options"
	case "allow_root":
		return "allow_root is not supported: use allow_other, which default_permissions guards"
	case "context", "fscontext", "defcontext", "rootcontext":
		return name + "= is not supported: label the files themselves (security.selinux is stored as any attribute)"
	case "bind", "move", "rbind":
		return name + " is for mount(8) itself: call mount without -t nexusfs"
	}
	return ""
}

// parse adds the options of one -o argument. Later ones win.
func (m *mountOptions) parse(arg string) error {
	for _, opt := range splitOptions(arg) {
		if err := m.set(opt); err != nil {
			return err
		}
	}
	return nil
}

// splitOptions splits at commas outside of double quotes; `\,` is a comma in a
// value, and what follows history= and looks like a piece of it stays with it.
func splitOptions(arg string) []string {
	var out []string
	var cur strings.Builder
	quoted := false
	flush := func() {
		s := cur.String()
		cur.Reset()
		if _, _, more := historyItem(s); more && len(out) > 0 && strings.HasPrefix(out[len(out)-1], "history=") {
			out[len(out)-1] += "," + s
			return
		}
		if s != "" {
			out = append(out, s)
		}
	}
	for i := 0; i < len(arg); i++ {
		switch c := arg[i]; {
		case c == '\\' && i+1 < len(arg) && (arg[i+1] == ',' || arg[i+1] == '\\'):
			i++
			cur.WriteByte(arg[i])
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			flush()
		default:
			cur.WriteByte(c)
		}
	}
	flush()
	return out
}

func (m *mountOptions) set(opt string) error {
	name, value, hasValue := strings.Cut(opt, "=")
	switch name {
	case "ro":
		m.ReadOnly = true
		return nil
	case "rw":
		m.ReadOnly = false
		return nil
	case "allow_other":
		m.AllowOther = true
		return nil
	case "sync", "dirsync":
		m.Durability = "strict"
		return nil
	}
	switch {
	case slices.Contains(kernelOptions, name) && !hasValue:
		m.kernelFlag(name)
	case slices.Contains(ignoredOptions, name), strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"):
	case refusedOption(name) != "":
		return fail(exitUsage, "%s", refusedOption(name))
	case hasValue:
		return m.setValue(name, value)
	default:
		return unknownOption(opt)
	}
	return nil
}

// kernelFlag sets a flag and drops its opposite, so that the last one wins.
func (m *mountOptions) kernelFlag(name string) {
	base := strings.TrimPrefix(name, "no")
	m.Kernel = slices.DeleteFunc(m.Kernel, func(o string) bool {
		return o == name || o == base || o == "no"+base
	})
	m.Kernel = append(m.Kernel, name)
}

func (m *mountOptions) setValue(name, value string) error {
	var err error
	switch name {
	case "durability":
		err = validDurability(value)
		m.Durability = value
	case "history":
		m.History, err = parseHistory(value)
	case "agent":
		err = validLabel(name, value)
		m.Agent = value
	case "task":
		err = validLabel(name, value)
		m.Task = value
	case "metrics":
		m.Metrics = value
	case "content":
		m.Content, err = contentURL(value)
	case "fsname", "source":
		err = validLabel(name, value)
		m.Source = value
	default:
		return unknownOption(name + "=" + value)
	}
	return withCode(exitUsage, err)
}

// contentURL checks where the content of a zone in a database is to lie.
func contentURL(s string) (string, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case ok && scheme == "s3" && rest != "":
		return s, nil
	case ok && scheme == "file":
		s = rest
	case ok:
		return "", fmt.Errorf("content=%s:// is not a kind of content store that this version knows: give a directory, or s3://bucket/prefix", escapeName(scheme))
	}
	if !filepath.IsAbs(s) {
		return "", fmt.Errorf("content=%s is not an absolute path: every machine that mounts the zone finds it there", escapeName(s))
	}
	return filepath.Clean(s), nil
}

func unknownOption(opt string) error {
	return fail(exitUsage, "mount option %q is not known: `nexusfs help options` lists them", opt)
}

func validDurability(s string) error {
	if s != "relaxed" && s != "strict" {
		return fmt.Errorf("durability=%s is not understood: give relaxed or strict", escapeName(s))
	}
	return nil
}

// validLabel bounds what users declare: it is stored with every operation.
func validLabel(name, s string) error {
	switch {
	case len(s) > 255:
		return fmt.Errorf("%s is longer than 255 bytes: choose a shorter name", name)
	case !plainName(s):
		return fmt.Errorf("%s=%s has characters that cannot be printed: choose a plain name", name, escapeName(s))
	}
	return nil
}
