package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// storeDir is an embedded store's directory:
//
//	format       what this directory is: product and version
//	lock         flock: exclusive by the daemon, shared by commands that read
//	meta.db      SQLite, with -wal and -shm beside it
//	content/     blobs, by zone, unless they are elsewhere
//	control.sock the daemon's socket
//	daemon.log   in background mode
type storeDir string

func (d storeDir) file(name string) string { return filepath.Join(string(d), name) }

func (d storeDir) database() string { return d.file("meta.db") }
func (d storeDir) log() string      { return d.file("daemon.log") }

// content is where the blobs of a zone are, unless the mark names another place.
func (d storeDir) content(zone string) string { return filepath.Join(string(d), "content", zone) }
func (d storeDir) session() string            { return d.file("session") }

// contentAt is where the store's blobs are.
func (d storeDir) contentAt() (string, error) {
	mark, err := d.readMark()
	if err != nil || mark.Content != "" {
		return mark.Content, err
	}
	return d.content(defaultZone), nil
}

const (
	formatProduct = "nexusfs"
	formatVersion = 1
	defaultZone   = "default"
)

// formatMark is the content of the file format. State is "new" until the
// database exists: only then may a missing database be made. It is "migrating"
// until everything is there that is copied into the store, and "moving" while
// its content goes to another place.
type formatMark struct {
	Product string    `json:"product"`
	Version int       `json:"version"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	History string    `json:"history,omitempty"` // what the last mount kept; gc without a daemon keeps to it
	Remote  *remote   `json:"remote,omitempty"`  // of a node: the zone that it mounts
	Content string    `json:"content,omitempty"` // where the blobs are; empty: in the directory content
	Moving  string    `json:"moving,omitempty"`  // where they are on their way to
}

// storeState is what a directory turned out to be.
type storeState uint8

const (
	storeReady     storeState = iota
	storeNew                  // marked, never opened: a creation that was cut short
	storeAbsent               // missing or empty: mount may make a store here
	storeMigrating            // the target of a migration that has not come to its end
	storeMoving               // its content is on its way to another place
)

// inspect looks at the directory and changes nothing. An error is a sentence
// with exitStore.
func (d storeDir) inspect() (storeState, error) {
	state, err := d.inspectTarget()
	if err == nil && state == storeMoving {
		return 0, d.movingError()
	}
	if err == nil && state == storeMigrating {
		return 0, fail(exitStore, "the migration into %s has not come to its end: run it again (nexusfs migrate FROM %s), or remove the directory", escapeName(string(d)), shellQuote(string(d)))
	}
	return state, err
}

// inspectTarget is inspect for migrate, which goes on with its own target.
func (d storeDir) inspectTarget() (storeState, error) {
	entries, err := os.ReadDir(string(d))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return storeAbsent, nil
	case errors.Is(err, syscall.ENOTDIR):
		return 0, fail(exitStore, "%s is a file, not a store: give a directory", escapeName(string(d)))
	case err != nil:
		return 0, fail(exitStore, "store: %w", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	if names["format"] {
		return d.inspectMarked(names)
	}
	if names["meta.db"] || names["content"] {
		return 0, fail(exitStore, "%s is half a store: it has %s and no file `format`; restore the directory whole from a backup, or give another one", escapeName(string(d)), have(names, "meta.db", "content"))
	}
	for name := range names {
		if name != "lost+found" && name != "lock" && !strings.HasPrefix(name, tempPrefix) {
			return 0, fail(exitStore, "%s is not a nexusfs store and not empty (it holds %q): give an empty directory or one that does not exist yet", escapeName(string(d)), name)
		}
	}
	return storeAbsent, nil
}

func (d storeDir) inspectMarked(names map[string]bool) (storeState, error) {
	mark, err := d.readMark()
	if err != nil {
		return 0, err
	}
	if mark.Version > formatVersion {
		return 0, fail(exitStore, "the store %s has format %d and this nexusfs knows up to %d: use a newer nexusfs", escapeName(string(d)), mark.Version, formatVersion)
	}
	switch mark.State {
	case "new":
		return storeNew, nil
	case "migrating":
		return storeMigrating, nil
	case "moving":
		return storeMoving, nil
	}
	for _, part := range []string{"meta.db", "content"} {
		if !names[part] && mark.Remote == nil && (part != "content" || mark.Content == "") {
			return 0, fail(exitStore, "%s is half a store: `%s` is missing; restore the directory whole from a backup", escapeName(string(d)), part)
		}
	}
	return storeReady, nil
}

func have(names map[string]bool, parts ...string) string {
	parts = slices.DeleteFunc(parts, func(p string) bool { return !names[p] })
	s := ""
	for i, p := range parts {
		if i > 0 {
			s += " and "
		}
		s += "`" + p + "`"
	}
	return s
}

// begin makes the directory, empty but for its lock, so that it can be locked.
func (d storeDir) begin() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return storeWriteError(d, err)
	}
	return nil
}

func (d storeDir) readMark() (formatMark, error) {
	var mark formatMark
	data, err := os.ReadFile(d.file("format"))
	if err != nil {
		return mark, fail(exitStore, "store: %w", err)
	}
	if err := json.Unmarshal(data, &mark); err != nil || mark.Product != formatProduct {
		return mark, fail(exitStore, "%s is not a nexusfs store: its file `format` belongs to another product", escapeName(string(d)))
	}
	return mark, nil
}

// markNew writes the file format of a store that is being made. The caller
// holds the lock.
func (d storeDir) markNew(now time.Time, r *remote) error {
	return d.writeMark(formatMark{Product: formatProduct, Version: formatVersion, State: "new", Created: now.UTC(), Remote: r})
}

func (d storeDir) movingError() error {
	mark, err := d.readMark()
	if err != nil {
		return err
	}
	return fail(exitStore, "the content of %s is on its way to %s: run that again until it has come to its end (nexusfs migrate %s --content %s)",
		escapeName(string(d)), escapeName(mark.Moving), shellQuote(string(d)), shellQuote(mark.Moving))
}

// markMigrating writes the file format of a migration's target, whose blobs go
// to content ("": into the directory). The caller holds the lock.
func (d storeDir) markMigrating(now time.Time, content string) error {
	return d.writeMark(formatMark{Product: formatProduct, Version: formatVersion, State: "migrating", Created: now.UTC(), Content: content})
}

// markMoving says that the store's blobs go to another place.
func (d storeDir) markMoving(to string) error {
	mark, err := d.readMark()
	if err != nil {
		return err
	}
	mark.State, mark.Moving = "moving", to
	return d.writeMark(mark)
}

// markMoved says that they are there.
func (d storeDir) markMoved() error {
	mark, err := d.readMark()
	if err != nil {
		return err
	}
	mark.State, mark.Content, mark.Moving = "ready", mark.Moving, ""
	return d.writeMark(mark)
}

// markReady says that the store is whole, and what is kept of its history. The
// caller holds the lock. Nothing is written when it is said already, so that a
// store on a full disk can be mounted.
func (d storeDir) markReady(history historyPolicy) error {
	mark, err := d.readMark()
	if err != nil {
		return err
	}
	if mark.State == "ready" && mark.History == history.String() {
		return nil
	}
	mark.State, mark.History = "ready", history.String()
	return d.writeMark(mark)
}

func (d storeDir) writeMark(mark formatMark) error {
	data, err := json.MarshalIndent(mark, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(d.file("format"), append(data, '\n'), 0o600); err != nil {
		return storeWriteError(d, err)
	}
	left, err := filepath.Glob(d.file(tempPrefix + "*"))
	if err != nil {
		return err
	}
	for _, name := range left { // of somebody who was killed: the lock is ours
		if err := os.Remove(name); err != nil {
			return storeWriteError(d, err)
		}
	}
	return nil
}

// storeWriteError says what to do about a disk that takes nothing.
func storeWriteError(d storeDir, err error) error {
	dir := escapeName(string(d))
	switch {
	case errors.Is(err, syscall.EROFS):
		return fail(exitStore, "the store %s is on a read-only disk, and nexusfs has to write there: %w", dir, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fail(exitStore, "the disk of the store %s is full: free some space and try again: %w", dir, err)
	case errors.Is(err, fs.ErrPermission):
		return fail(exitStore, "the store %s is not yours to write: use its owner's account, or another directory: %w", dir, err)
	}
	return fail(exitStore, "store %s: %w", dir, err)
}
