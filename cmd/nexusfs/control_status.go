package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"time"

	"nexusfs/meta"
)

// statusReport is what `nexusfs status --json` shows, and .nexusfs/status in a
// mount. Its own fields stand over meta.Status's of the same names.
type statusReport struct {
	meta.Status
	PID      int            `json:"pid"` // 0: not mounted
	Mounted  bool           `json:"mounted"`
	Store    string         `json:"store"`                    // directory, or URL of a database
	NodeDir  string         `json:"node_directory,omitempty"` // of a database: this mount's, on this machine
	Source   string         `json:"source,omitempty"`
	Started  time.Time      `json:"started,omitzero"`
	History  string         `json:"history"`
	Agent    string         `json:"declared_agent,omitempty"`
	Task     string         `json:"declared_task,omitempty"`
	Version  string         `json:"version"`
	Memory   int64          `json:"memory_bytes,omitempty"` // resident, of the daemon
	Files    int64          `json:"files"`                  // inodes with a name
	Bytes    int64          `json:"bytes"`
	Reclaim  int64          `json:"history_bytes"` // held by history alone
	Disk     diskReport     `json:"disk"`
	Content  contentReport  `json:"content"`
	Database databaseReport `json:"database"`
	Usage    *struct{}      `json:"usage,omitempty"` // hides meta.Status's: it is Files, Bytes and Reclaim
}

type diskReport struct {
	Total int64 `json:"total_bytes"`
	Free  int64 `json:"free_bytes"`
}

type contentReport struct {
	Segments     int64 `json:"segments"`
	SegmentBytes int64 `json:"segment_bytes"`
	Files        int64 `json:"files"`
	FileBytes    int64 `json:"file_bytes"`
	Unsynced     int64 `json:"unsynced_bytes"`
	Puts         int64 `json:"puts"`
	PutBytes     int64 `json:"put_bytes"`
	Reads        int64 `json:"reads"`
	ReadBytes    int64 `json:"read_bytes"`
	Damaged      int64 `json:"damaged_reads"`
}

type databaseReport struct {
	FileBytes int64 `json:"file_bytes"`
	LogBytes  int64 `json:"log_bytes"`
	Inodes    int64 `json:"inodes"`
	Records   int64 `json:"records"`
}

// report collects the figures of this moment.
func (e *engine) report(ctx context.Context) (statusReport, error) {
	s := e.fs.Status()
	space, err := e.content.Space(ctx)
	if err != nil {
		return statusReport{}, err
	}
	out := statusReport{
		Status: s, Store: e.storeName(), Source: e.options.Source, History: e.options.History.String(),
		Agent: e.options.Agent, Task: e.options.Task, Version: versionString(),
		Files: s.Usage.Inodes, Bytes: s.Usage.Bytes, Reclaim: s.Usage.HistoryBytes,
		Disk: diskReport{space.Total, space.Free},
		Content: contentReport{
			s.Content.Segments, s.Content.SegmentBytes, s.Content.Files, s.Content.FileBytes, s.Content.UnsyncedBytes,
			s.Content.Puts, s.Content.PutBytes, s.Content.Reads, s.Content.ReadBytes, s.Content.Damaged,
		},
		Database: databaseReport{s.Store.FileBytes, s.Store.LogBytes, s.Store.Inodes, s.Store.Records},
	}
	if e.remote != nil {
		out.NodeDir = string(e.dir)
	}
	if e.mountpoint != "" {
		out.PID, out.Mounted, out.Started, out.Memory = os.Getpid(), true, e.started.UTC(), residentBytes(uint32(os.Getpid()))
	}
	return out, nil
}

// storeName is the store as users name it.
func (e *engine) storeName() string {
	if e.remote != nil {
		return e.remote.display()
	}
	return string(e.dir)
}

// statusJSON is the file .nexusfs/status.
func (e *engine) statusJSON(ctx context.Context) ([]byte, error) {
	r, err := e.report(ctx)
	if err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	return append(data, '\n'), err
}

// status answers `nexusfs status` and `nexusfs stats`.
func (c *control) status(ctx context.Context, _ *http.Request) (statusReport, error) {
	return c.engine.report(ctx)
}
