package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
)

func dumpVerb(a *app) *cobra.Command {
	var hash bool
	var content string
	cmd := &cobra.Command{
		Use:   "dump TARGET [PATH]",
		Short: "write names and attributes as JSON lines, for load and other programs",
		Long: `dump writes one JSON object per line for each name in TARGET (a store, a
mountpoint, or a path in a mount), or below PATH, which counts from there:
directories before what is in them. docs/DUMP.md has the format. nexusfs load
reads it, also into another store.

--hash adds the BLAKE3 of each file's content, which reads all of it. --content
DIR also writes the content of each file to DIR, as a file named by its hash;
what DIR has already is not written again. A dump of a mount that is being
changed is no snapshot: its first and last line say at which revision it began
and ended.`,
		Example: `  nexusfs dump ./mnt > tree.jsonl
  nexusfs dump ./mnt docs --hash | jq -r 'select(.type=="file") | .hash + "  " + .path'
  nexusfs dump projects --content ./blobs > projects.jsonl`,
		Args: cobra.RangeArgs(1, 2),
		RunE: action(func(ctx context.Context, args []string) error {
			t, err := a.resolve(args[0])
			if err != nil {
				return err
			}
			t.inside = filepath.Join("/", t.inside, argument(args, 1))
			q := pathArgs(t)
			q.Set("hash", strconv.FormatBool(hash && content == ""))
			return a.withClient(ctx, t, accessRead, "dump", func(c *client) error {
				if content == "" {
					return c.raw(ctx, "dump", q, a.stdout)
				}
				return a.dumpContent(ctx, c, q, content)
			})
		}),
	}
	cmd.Flags().BoolVar(&hash, "hash", false, "add the BLAKE3 of each file's content")
	cmd.Flags().StringVar(&content, "content", "", "write the content of files to this `directory`, by hash")
	return cmd
}

// dumpContent fetches the content of each file that the dump names, hashes it
// on the way and adds the hash to its line.
func (a *app) dumpContent(ctx context.Context, c *client, q url.Values, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(exitFailed, "content: %w", err)
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(c.raw(ctx, "dump", q, pw)) }()
	defer pr.Close()
	in, out := bufio.NewReaderSize(pr, 64<<10), bufio.NewWriterSize(a.stdout, 64<<10)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		e, _, _, err := parseEntry(line)
		if err != nil {
			return fail(exitDaemon, "a line of the dump: %w", err)
		}
		if e.Type == "file" && !e.End && e.Dump == 0 {
			if line, err = fetchContent(ctx, c, e, line, dir); err != nil {
				return errors.Join(fmt.Errorf("%s: %w", escapeName(string(e.Path)), err), out.Flush())
			}
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
}

// fetchContent stores one file's content under its hash and returns its line
// with the hash, and with the size that was read: the file may be changing.
func fetchContent(ctx context.Context, c *client, e *dumpEntry, line []byte, dir string) ([]byte, error) {
	tmp, err := os.CreateTemp(dir, ".part-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	defer tmp.Close()
	h := newContentHash()
	n := counter{w: io.MultiWriter(tmp, h)}
	if *e.Size > 0 {
		if err := c.raw(ctx, "read", url.Values{"ino": {strconv.FormatUint(e.Ino, 10)}}, &n); err != nil {
			return nil, err
		}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	name := contentName(dir, sum)
	if _, err := os.Stat(name); err != nil {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return nil, err
		}
		if err := os.Rename(tmp.Name(), name); err != nil {
			return nil, err
		}
	}
	old := strconv.AppendInt([]byte(`,"size":`), *e.Size, 10)
	line = bytes.Replace(line, old, strconv.AppendInt([]byte(`,"size":`), n.n, 10), 1)
	return fmt.Appendf(bytes.TrimSuffix(line, []byte("}\n")), ",\"hash\":\"%s\"}\n", sum), nil
}

// contentName is where a content directory has the bytes of a hash.
func contentName(dir, hash string) string { return filepath.Join(dir, hash[:2], hash) }

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
