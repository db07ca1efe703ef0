package local

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A segment's number, as it stands in meta.Blob, says whose it is: the bits
// from segmentBits on are the writer, those below the number in the file's name.
const (
	segmentBits = 40
	maxWriters  = 1 << 16
)

// writerOf returns whose a segment is.
func writerOf(segment int64) int64 { return segment >> segmentBits }

// inFolder returns a segment's number in its writer's folder.
func inFolder(segment int64) int64 { return segment & (1<<segmentBits - 1) }

// folderPath names the folder of a writer; writer 0 has the store's own.
func folderPath(root string, writer int64) string {
	if writer == 0 {
		return root
	}
	return filepath.Join(root, fmt.Sprintf("w%04d", writer))
}

// folderWriter is the reverse of folderPath, without writer 0.
func folderWriter(name string) (int64, bool) {
	digits, ok := strings.CutPrefix(name, "w")
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, ok && err == nil && n > 0 && n < maxWriters && name == fmt.Sprintf("w%04d", n)
}

// writers lists who has or had a folder in the store, ascending; 0 always has.
func writers(root string) ([]int64, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	out := []int64{0}
	for _, name := range names {
		if n, ok := folderWriter(name); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// segmentPath names the file of a segment, whoever's it is.
func segmentPath(root string, segment int64) string {
	return filepath.Join(folderPath(root, writerOf(segment)), "segments", fmt.Sprintf("%08d.seg", inFolder(segment)))
}

// filesPath names the directory of the blob files whose leaf records are in a segment.
func filesPath(root string, segment int64) string {
	return filepath.Join(folderPath(root, writerOf(segment)), "files", fmt.Sprintf("%08d", inFolder(segment)))
}
