package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"nexusfs/meta"
)

func deletedVerb(a *app) *cobra.Command {
	var f storeFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "deleted [DIR]",
		Short: "list what was deleted in a directory and can be restored",
		Long: `deleted lists the names of DIR that are gone and whose last content is still
kept, newest first. DIR may be deleted itself.`,
		Example: "  nexusfs deleted ./mnt/docs\n  nexusfs restore ./mnt/docs/report.txt",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			dir := argument(args, 0)
			if dir == "" && f.store == "" {
				dir = "."
			}
			t, err := f.resolve(a, dir)
			if err != nil {
				return err
			}
			return a.withClient(ctx, t, accessRead, "deleted", func(c *client) error {
				return a.printDeleted(ctx, c, t, asJSON)
			})
		}),
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object per line")
	return cmd
}

func (a *app) printDeleted(ctx context.Context, c *client, t *target, asJSON bool) error {
	tab := newTable(a.stdout, "DELETED", "SIZE", "VERSION", "REVISION", "NAME")
	tab.right[1], tab.right[2], tab.right[3] = true, true, true
	err := c.stream(ctx, http.MethodGet, "deleted", pathArgs(t), streamSink{item: func(raw json.RawMessage) error {
		if asJSON {
			return a.printLine(raw)
		}
		var d deletedInfo
		if err := json.Unmarshal(raw, &d); err != nil {
			return err
		}
		name := escapeName(string(d.Name))
		if d.Type == "directory" {
			name += "/"
		}
		return tab.add(humanTime(d.Time), humanBytes(d.Size), strconv.FormatInt(d.Version, 10), strconv.FormatInt(int64(d.Rev), 10), name)
	}}, nil)
	if err != nil || asJSON {
		return err
	}
	return tab.flush()
}

// deletedInfo is one name that ended.
type deletedInfo struct {
	Name    bytesName `json:"name"`
	Ino     meta.Ino  `json:"ino"`
	Type    string    `json:"type"`
	Rev     meta.Rev  `json:"rev"`
	Time    time.Time `json:"time"`
	Size    int64     `json:"size"`
	Version int64     `json:"version,omitempty"`
}

// deleted is the store's side.
func (c *control) deleted(ctx context.Context, r *http.Request, s *sender) (struct{}, error) {
	var end struct{}
	at, err := c.find(ctx, r.FormValue("path"))
	if err != nil {
		return end, err
	}
	a, err := c.engine.fs.GetAttr(ctx, at.ino)
	if err != nil {
		return end, err
	}
	if !a.IsDir() {
		return end, fail(exitFailed, "%s is not a directory: `nexusfs versions` lists what is kept of a file", escapeName(r.FormValue("path")))
	}
	list, err := c.engine.history.Deleted(ctx, at.ino, deletedLimit)
	if err != nil {
		return end, err
	}
	for _, d := range list {
		info := deletedInfo{bytesName(d.Name), d.Ino, typeName(d.Type), d.End, time.Unix(0, d.Time).UTC(), d.Size, d.Version}
		if err := s.item(info); err != nil {
			return end, err
		}
	}
	return end, nil
}

// typeName names a file type as find(1) and stat(1) do.
func typeName(mode uint32) string {
	switch mode & meta.ModeType {
	case meta.ModeRegular:
		return "file"
	case meta.ModeDir:
		return "directory"
	case meta.ModeSymlink:
		return "symlink"
	case meta.ModeFifo:
		return "fifo"
	case meta.ModeSocket:
		return "socket"
	case meta.ModeBlock:
		return "block device"
	case meta.ModeChar:
		return "character device"
	}
	return "unknown"
}
