package local

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"nexusfs/meta"
)

// fileCounts is what an orderly end leaves for the next start, in the file
// "counts". It is gone while the store is open: after an unclean stop the
// files are counted anew, in the background.
type fileCounts struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

func (f *files) countsPath() string { return filepath.Join(f.dir, "counts") }

// loadCounts takes over the counts of an orderly end.
func (f *files) loadCounts(readOnly bool) error {
	var c fileCounts
	text, err := os.ReadFile(f.countsPath())
	if err != nil || json.Unmarshal(text, &c) != nil {
		f.stale.Store(true)
	}
	f.count.Store(c.Files)
	f.bytes.Store(c.Bytes)
	if readOnly {
		return nil
	}
	if err := os.Remove(f.countsPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// saveCounts leaves the counts for the next start.
func (f *files) saveCounts() error {
	if f.stale.Load() {
		return nil
	}
	tmp := f.tempPath()
	if err := writeCounts(tmp, fileCounts{f.count.Load(), f.bytes.Load()}); err != nil {
		return err
	}
	return os.Rename(tmp, f.countsPath())
}

func writeCounts(path string, c fileCounts) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// countAll adds what was stored before an unclean stop to the counts, until
// quit is closed. If files were removed meanwhile the sum may be off by them,
// and the next start counts again.
func (f *files) countAll(quit <-chan struct{}) {
	if !f.stale.Load() {
		return
	}
	errQuit := errors.New("quit")
	frees := f.frees.Load()
	err := f.walk(func(b meta.Blob) error {
		select {
		case <-quit:
			return errQuit
		default:
		}
		if b.Segment < f.before.Segment || b.Segment == f.before.Segment && b.Offset < f.before.Offset {
			f.count.Add(1)
			f.bytes.Add(b.Size)
		}
		return nil
	})
	if err == nil && f.frees.Load() == frees {
		f.stale.Store(false)
	}
}
