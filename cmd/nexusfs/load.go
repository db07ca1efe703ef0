package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
)

func loadVerb(a *app) *cobra.Command {
	var f loadFlags
	cmd := &cobra.Command{
		Use:   "load TARGET [DIR]",
		Short: "make a tree from JSON lines, of dump or of another system's export",
		Long: `load reads lines as nexusfs dump writes them from standard input, or from --from
FILE, and makes the tree that they describe in TARGET (a store, a mountpoint, or
a path in a mount), or below DIR, which counts from there and is made when it is
missing. Other programs may write the lines: a path is enough, docs/DUMP.md says
what stands for what is left out.

The content of files comes from --content DIR, which has each file under its
hash, as dump --content writes it, or under its path. It is checked against the
line's hash. A file that has bytes and no content there is an error, unless
--sparse makes it of zeros.

What is there already and equals its line is left alone, so the same load can be
run again. What differs is named and left alone too, unless --overwrite makes it
like its line; old content stays as a version. Lines that cannot be loaded are
named by their number and left out. load ends with code 1 when anything differs
or could not be loaded.`,
		Example: `  nexusfs dump ./mnt --content ./blobs > tree.jsonl
  nexusfs load /srv/other --content ./blobs < tree.jsonl
  nexusfs load ./mnt imported --from export.jsonl --content /mnt/old --overwrite`,
		Args: cobra.RangeArgs(1, 2),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(args[0])
			if err != nil {
				return err
			}
			t.inside = filepath.Join("/", t.inside, argument(args, 1))
			return a.load(ctx, t, f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.from, "from", "", "read the lines from this `file`")
	fl.StringVar(&f.content, "content", "", "`directory` with the content of files, by hash or by path")
	fl.BoolVar(&f.sparse, "sparse", false, "files without content become zeros of their size")
	fl.BoolVar(&f.overwrite, "overwrite", false, "make what differs like its line")
	fl.BoolVar(&f.json, "json", false, "one JSON object per line that differs or fails, then one with the sums")
	return cmd
}

type loadFlags struct {
	from, content           string
	sparse, overwrite, json bool
}

func (a *app) load(ctx context.Context, t *target, f loadFlags) error {
	in := a.stdin
	if f.from != "" {
		file, err := os.Open(f.from)
		if err != nil {
			return fail(exitUsage, "%w", err)
		}
		defer file.Close()
		in = file
	}
	feed := loadFeed{app: a}
	if f.content != "" {
		root, err := os.OpenRoot(f.content) // a line's path never leads out of it
		if err != nil {
			return fail(exitUsage, "content: %w", err)
		}
		defer root.Close()
		feed.content = root
	}
	q := pathArgs(t)
	q.Set("overwrite", strconv.FormatBool(f.overwrite))
	q.Set("sparse", strconv.FormatBool(f.sparse))
	return a.withClient(ctx, t, accessWrite, "load", func(c *client) error { return a.sendLoad(ctx, c, q, &feed, in, f.json) })
}

// sendLoad sends the frames and prints what comes back meanwhile.
func (a *app) sendLoad(ctx context.Context, c *client, q url.Values, feed *loadFeed, in io.Reader, asJSON bool) error {
	pr, pw := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := feed.send(pw, in)
		pw.CloseWithError(err)
		sent <- err
	}()
	show := func(item loadItem) error {
		if asJSON {
			return a.printLine(mustJSON(item))
		}
		a.printf("line %d: %s: %s: %s\n", item.Line, escapeName(string(item.Path)), item.Did, escapeName(item.Text))
		return nil
	}
	var end loadEnd
	err := c.upload(ctx, "load", q, pr, streamSink{item: func(raw json.RawMessage) error {
		var item loadItem
		if err := json.Unmarshal(raw, &item); err != nil {
			return err
		}
		return show(item)
	}}, &end)
	pr.Close()
	serr := <-sent
	for _, item := range feed.problems {
		if err := show(item); err != nil {
			return err
		}
	}
	end.Failed += int64(len(feed.problems))
	end.Lines += int64(len(feed.problems))
	if serr != nil && !errors.Is(serr, io.ErrClosedPipe) {
		return withCode(exitFailed, fmt.Errorf("%w; the lines before are loaded", serr))
	}
	if err != nil {
		return err
	}
	if asJSON {
		if err := a.printLine(mustJSON(end)); err != nil {
			return err
		}
	} else {
		a.printf("%d lines: %d made, %d the same, %d replaced, %d different, %d failed\n",
			end.Lines, end.Created, end.Same, end.Replaced, end.Differ, end.Failed)
	}
	if end.Differ+end.Failed > 0 {
		return fail(exitFailed, "%d of %d lines were not loaded: see above", end.Differ+end.Failed, end.Lines)
	}
	return nil
}

// loadFeed turns lines into frames (control_load.go).
type loadFeed struct {
	app      *app
	content  *os.Root // nil: there is no content
	problems []loadItem
}

// Bounds of a line, and of content that is read before it is sent.
const (
	loadLineMax  = 16 << 20
	loadReadOnce = 4 << 20
)

func (f *loadFeed) send(w io.Writer, in io.Reader) error {
	out := bufio.NewWriterSize(w, 256<<10)
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), loadLineMax)
	n := int64(0)
	for lines.Scan() {
		n++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := f.frame(out, n, line); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w (a line has at most %s)", n+1, err, humanBytes(loadLineMax))
	}
	return out.Flush()
}

func (f *loadFeed) frame(out *bufio.Writer, n int64, line []byte) error {
	if f.content != nil {
		if e, clean, _, err := parseEntry(line); err == nil && e.Type == "file" {
			if file := f.find(e, clean); file != nil {
				defer file.Close()
				return f.withContent(out, n, line, e, file)
			}
		}
	}
	return writeFrame(out, n, -1, "-", line, nil)
}

func writeFrame(out *bufio.Writer, n, size int64, hash string, line []byte, content io.Reader) error {
	out.Write(strconv.AppendInt(nil, n, 10)) // a bufio.Writer keeps its first error
	out.WriteByte(' ')
	out.Write(strconv.AppendInt(nil, size, 10))
	out.WriteByte(' ')
	out.WriteString(hash)
	out.WriteByte('\n')
	out.Write(line)
	if err := out.WriteByte('\n'); err != nil || content == nil {
		return err
	}
	got, err := io.Copy(out, content)
	if err == nil && got != size {
		err = fmt.Errorf("line %d: its content changed while it was read: run the same command again", n)
	}
	return err
}

// find opens the content of a line: by its hash, or by its path.
func (f *loadFeed) find(e *dumpEntry, clean string) *os.File {
	names := []string{clean}
	if e.Hash != "" {
		names = []string{contentName("", e.Hash), e.Hash, clean}
	}
	for _, name := range names {
		if file, err := f.content.Open(name); err == nil {
			if fi, err := file.Stat(); err == nil && fi.Mode().IsRegular() {
				return file
			}
			file.Close()
		}
	}
	return nil
}

// withContent sends a line with its content, when that has the line's hash.
func (f *loadFeed) withContent(out *bufio.Writer, n int64, line []byte, e *dumpEntry, file *os.File) error {
	h := newContentHash()
	var data bytes.Buffer
	size, err := io.Copy(io.MultiWriter(h, &limitedBuffer{&data, loadReadOnce}), file)
	if err != nil {
		return fmt.Errorf("line %d: content: %w", n, err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if e.Hash != "" && sum != e.Hash {
		f.problems = append(f.problems, loadItem{Line: n, Path: e.Path, Did: "failed",
			Text: fmt.Sprintf("its content in %s has the hash %s, not the line's", f.content.Name(), sum)})
		return nil
	}
	if size <= loadReadOnce {
		return writeFrame(out, n, size, sum, line, &data)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return writeFrame(out, n, size, sum, line, io.LimitReader(file, size))
}

// limitedBuffer keeps the first bytes of what is written and drops the rest.
type limitedBuffer struct {
	b    *bytes.Buffer
	most int
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), max(0, l.most-l.b.Len()))])
	return len(p), nil
}
