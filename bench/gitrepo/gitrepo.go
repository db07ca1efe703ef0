// Package gitrepo writes a git history as a fast-import stream: the same for
// the same numbers, so that measurements and tests agree on what they clone.
// It is used by the benchmark and by the tests only.
package gitrepo

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
)

// Write writes a stream for `git fast-import` that makes a branch main with
// the given number of files and commits: the first commit holds all files,
// each later one changes up to eight of them. Contents look like text, 200 to
// about 6,000 bytes.
func Write(w io.Writer, files, commits int) error {
	out := bufio.NewWriterSize(w, 1<<20)
	rnd := rand.New(rand.NewPCG(20, 24))
	for c := range commits {
		fmt.Fprintf(out, "commit refs/heads/main\ncommitter a <a@example.org> %d +0000\n", 1_700_000_000+c*60)
		message := fmt.Sprintf("change %d\n", c)
		fmt.Fprintf(out, "data %d\n%s", len(message), message)
		if c == 0 {
			for f := range files {
				writeFile(out, rnd, f, c)
			}
			continue
		}
		for range 1 + rnd.IntN(8) {
			writeFile(out, rnd, rnd.IntN(files), c)
		}
	}
	fmt.Fprintln(out, "done")
	return out.Flush()
}

// Path names file f: about 100 files to a directory.
func Path(f int) string {
	d := f / 100
	return fmt.Sprintf("src/part%02d/module%03d/file%03d.txt", d%20, d, f%100)
}

func writeFile(out *bufio.Writer, rnd *rand.Rand, f, commit int) {
	var text []byte
	lines := 5 + rnd.IntN(120)
	for i := range lines {
		text = fmt.Appendf(text, "line %d of file %d in commit %d: %016x %08x\n", i, f, commit, rnd.Uint64(), rnd.Uint32())
	}
	fmt.Fprintf(out, "M 100644 inline %s\ndata %d\n%s\n", Path(f), len(text), text)
}
