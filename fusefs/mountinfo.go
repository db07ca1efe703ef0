package fusefs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// MountPoint is a mount of nexusfs as a path inside it finds it.
type MountPoint struct {
	Path   string // where it is mounted
	Source string // what the table of mounts shows as its source
	Rel    string // the path in question, from the root of the mounted zone: "/a/b"
}

// mountEntry is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	device string // "0:52"
	root   string // what part of the filesystem is mounted: "/", a folder for a bind mount
	path   string
	fstype string
	source string
}

func (e *mountEntry) ours() bool { return e.fstype == fsType }

// FindMount returns the mount of nexusfs that a path lies in. The path need not
// exist. An error says that the path is on another filesystem.
func FindMount(path string) (MountPoint, error) {
	table, err := readMounts()
	if err != nil {
		return MountPoint{}, err
	}
	full, err := resolve(path)
	if err != nil {
		return MountPoint{}, err
	}
	e := innermost(table, full)
	if e == nil || !e.ours() {
		return MountPoint{}, fmt.Errorf("%s is not in a mount of nexusfs", path)
	}
	rel := strings.TrimPrefix(full, strings.TrimSuffix(e.path, "/"))
	return MountPoint{Path: e.path, Source: e.source, Rel: filepath.Join("/", e.root, rel)}, nil
}

// Mounts lists the mounts of nexusfs that this process sees.
func Mounts() ([]MountPoint, error) {
	table, err := readMounts()
	if err != nil {
		return nil, err
	}
	var out []MountPoint
	for i := range table {
		if table[i].ours() {
			out = append(out, MountPoint{Path: table[i].path, Source: table[i].source, Rel: table[i].root})
		}
	}
	return out, nil
}

func readMounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	defer f.Close()
	table, err := parseMounts(f)
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	return table, nil
}

// parseMounts reads mountinfo. Lines that it does not understand are left out.
func parseMounts(r io.Reader) ([]mountEntry, error) {
	var table []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		left, right, found := strings.Cut(lines.Text(), " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !found || len(before) < 6 || len(after) < 2 {
			continue
		}
		table = append(table, mountEntry{
			device: before[2], root: unescape(before[3]), path: unescape(before[4]),
			fstype: unescape(after[0]), source: unescape(after[1]),
		})
	}
	return table, lines.Err()
}

// unescape undoes the octal escapes of mountinfo: blank, tab, newline and
// backslash are \040, \011, \012 and \134.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			out = append(out, (s[i+1]-'0')<<6|(s[i+2]-'0')<<3|(s[i+3]-'0'))
			i += 3
			continue
		}
		out = append(out, s[i])
	}
	return string(out)
}

func octal(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '7' {
			return false
		}
	}
	return s[0] <= '3'
}

// innermost returns the mount that a path lies in: the longest mountpoint
// above it, and of several at one place the last, which hides the others.
func innermost(table []mountEntry, path string) *mountEntry {
	var best *mountEntry
	for i := range table {
		e := &table[i]
		under := e.path == "/" || path == e.path || strings.HasPrefix(path, e.path+"/")
		if under && (best == nil || len(e.path) >= len(best.path)) {
			best = e
		}
	}
	return best
}

// maxLinks is how many symbolic links in a row are followed.
const maxLinks = 40

// resolve makes a path absolute and follows symbolic links as far as the path
// exists. It does not touch the last component's own filesystem, which may be
// a dead mount.
func resolve(path string) (string, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", path, err)
	}
	for range maxLinks {
		dir, base := filepath.Split(full)
		if base == "" {
			return full, nil
		}
		if target, err := os.Readlink(full); err == nil {
			if !filepath.IsAbs(target) {
				target = filepath.Join(dir, target)
			}
			full = filepath.Clean(target)
			continue
		}
		parent, err := resolveParent(filepath.Clean(dir))
		if err != nil {
			return "", err
		}
		return filepath.Join(parent, base), nil
	}
	return "", fmt.Errorf("finding %s: too many symbolic links", path)
}

// resolveParent follows the links of a directory, or of the part of it that exists.
func resolveParent(dir string) (string, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real, nil
	}
	if dir == "/" {
		return dir, nil
	}
	return resolve(dir)
}
