package main

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountEntry is a nexusfs mount as the kernel's mount table shows it.
type mountEntry struct {
	Point  string
	Source string
	Root   string // which part of the zone is mounted: "/", a directory for a bind mount
}

// mountOf finds the mount that holds path (absolute, clean) and the path
// within its zone ("/" for the zone's root). The newest of the deepest wins.
func mountOf(mounts []mountEntry, path string) (m mountEntry, inside string, ok bool) {
	for _, e := range mounts {
		if rest, in := below(e.Point, path); in && len(e.Point) >= len(m.Point) {
			m, inside, ok = e, filepath.Join("/", e.Root, rest), true
		}
	}
	return m, inside, ok
}

// below returns path relative to dir as an absolute path.
func below(dir, path string) (string, bool) {
	if dir == "/" {
		return path, true
	}
	rest, ok := strings.CutPrefix(path, dir)
	switch {
	case !ok, rest != "" && rest[0] != '/':
		return "", false
	case rest == "":
		return "/", true
	}
	return rest, true
}

// realPath makes path absolute and resolves symbolic links in everything but
// the last component, as far as the directories exist: what is deleted, or
// behind a dead mount, keeps the name that it was given.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fail(exitUsage, "%s: %w", escapeName(path), err)
	}
	if base := filepath.Base(path); abs == "/" || strings.HasSuffix(path, "/") || base == "." || base == ".." {
		return realDir(abs), nil
	}
	return filepath.Join(realDir(filepath.Dir(abs)), filepath.Base(abs)), nil
}

// realDir resolves the longest part of a path that exists.
func realDir(dir string) string {
	if dir == "/" {
		return dir
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return filepath.Join(realDir(filepath.Dir(dir)), filepath.Base(dir))
}

// storeOfMount asks a mount which store it shows.
func storeOfMount(point string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Getxattr(point, "user.nexusfs.store", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
