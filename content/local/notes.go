package local

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nexusfs/meta"
)

// A note lies in a writer's folder and names places there that another writer
// wants freed: one a line, "PLACE SEGMENT OFFSET SIZE ID". It is whole or not
// there.

// leaveNote leaves a note for the holder of a folder, durably: once it is
// there the caller may forget the blobs.
func (s *Store) leaveNote(writer int64, blobs []meta.Blob) error {
	tmp := s.files.tempPath()
	if err := writeDurably(tmp, encodeNote(blobs)); err != nil {
		return errors.Join(err, removeIfThere(tmp))
	}
	dir := filepath.Join(folderPath(s.opts.Dir, writer), "notes")
	_, token, _ := strings.Cut(s.lock.token, " ")
	name := fmt.Sprintf("%04d-%s-%d", s.writer, token, s.notes.Add(1))           // never there before
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) { // the holder may have just begun
		return errors.Join(err, removeIfThere(tmp))
	}
	// gofail: var contentBeforeNote struct{}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return errors.Join(err, removeIfThere(tmp))
	}
	// gofail: var contentAfterNote struct{}
	return s.syncer.SyncDir(dir)
}

// workOff frees what the notes in a held folder name. A stop in between leaves
// the note, and freeing again does nothing.
func (s *Store) workOff(f *folder) error {
	dir := filepath.Join(f.dir, "notes")
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // another call of this process had it
		}
		if err != nil {
			return err
		}
		blobs, err := decodeNote(text)
		if err != nil {
			s.log.Warn("a note of places to free cannot be read; fsck finds what it named", "path", path, "err", err)
		}
		for _, b := range blobs {
			if writerOf(b.Segment) != f.writer {
				continue
			}
			if err := s.freeIn(f, b); err != nil {
				return err
			}
		}
		// gofail: var contentBeforeNoteRemove struct{}
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func encodeNote(blobs []meta.Blob) []byte {
	var out bytes.Buffer
	for _, b := range blobs {
		fmt.Fprintf(&out, "%d %d %d %d %s\n", b.Place, b.Segment, b.Offset, b.Size, hex.EncodeToString(b.ID[:]))
	}
	return out.Bytes()
}

// decodeNote returns what it can read, and an error if that is not all.
func decodeNote(text []byte) (blobs []meta.Blob, err error) {
	for in := bufio.NewScanner(bytes.NewReader(text)); in.Scan(); {
		var b meta.Blob
		var id string
		n, serr := fmt.Sscanf(in.Text(), "%d %d %d %d %s", &b.Place, &b.Segment, &b.Offset, &b.Size, &id)
		raw, herr := hex.DecodeString(id)
		if n != 5 || serr != nil || herr != nil || len(raw) != len(b.ID) || b.Size <= 0 || b.Size > meta.BlobMax {
			err = fmt.Errorf("%q is no place", clip(in.Bytes()))
			continue
		}
		copy(b.ID[:], raw)
		blobs = append(blobs, b)
	}
	return blobs, err
}
