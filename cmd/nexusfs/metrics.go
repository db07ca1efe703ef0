package main

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// figure is one metric: how it is called and where it is in a report.
type figure struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*statusReport) float64
}

// figures is the table of everything that /metrics shows of the filesystem.
func figures() []figure {
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	f := func(name, help string, kind prometheus.ValueType, get func(*statusReport) int64) figure {
		return figure{name, help, kind, func(s *statusReport) float64 { return float64(get(s)) }}
	}
	return []figure{
		f("revision", "Newest operation.", gauge, func(s *statusReport) int64 { return int64(s.Revision) }),
		f("durable_revision", "Newest operation that survives a loss of power.", gauge, func(s *statusReport) int64 { return int64(s.Durable) }),
		f("failed", "1 when the disk refused a sync and changes are refused.", gauge, func(s *statusReport) int64 { return oneIf(s.Failed != "") }),
		f("read_only", "1 for a read-only mount.", gauge, func(s *statusReport) int64 { return oneIf(s.ReadOnly) }),
		f("staged_bytes", "Memory held by content that is not committed.", gauge, func(s *statusReport) int64 { return s.StagedBytes }),
		f("staged_files", "Files with such content.", gauge, func(s *statusReport) int64 { return s.StagedFiles }),
		f("open_handles", "Open file handles.", gauge, func(s *statusReport) int64 { return s.OpenHandles }),
		f("files", "Inodes with a name.", gauge, func(s *statusReport) int64 { return s.Files }),
		f("bytes", "Bytes held by current content.", gauge, func(s *statusReport) int64 { return s.Bytes }),
		f("history_bytes", "Bytes held by history alone.", gauge, func(s *statusReport) int64 { return s.Reclaim }),
		f("disk_free_bytes", "Free space of the store's disk.", gauge, func(s *statusReport) int64 { return s.Disk.Free }),
		f("disk_total_bytes", "Size of the store's disk.", gauge, func(s *statusReport) int64 { return s.Disk.Total }),
		f("operations_total", "Committed operations.", counter, func(s *statusReport) int64 { return s.Operations.Committed }),
		f("commits_total", "Transactions that committed them.", counter, func(s *statusReport) int64 { return s.Operations.Batches }),
		f("conflicts_total", "Operations whose belief was wrong and that were tried again.", counter, func(s *statusReport) int64 { return s.Operations.Conflicts }),
		f("barriers_total", "Flushes that made operations durable.", counter, func(s *statusReport) int64 { return s.Operations.Barriers }),
		f("read_bytes_total", "Bytes read from files.", counter, func(s *statusReport) int64 { return s.Operations.BytesRead }),
		f("written_bytes_total", "Bytes written to files.", counter, func(s *statusReport) int64 { return s.Operations.BytesWritten }),
		f("history_pruned_total", "Rows of history let go.", counter, func(s *statusReport) int64 { return s.Operations.HistoryPruned }),
		f("blobs_freed_total", "Blobs freed.", counter, func(s *statusReport) int64 { return s.Operations.BlobsFreed }),
		f("cache_attrs", "Cached attributes.", gauge, func(s *statusReport) int64 { return int64(s.Cache.Attrs) }),
		f("cache_names", "Cached names.", gauge, func(s *statusReport) int64 { return int64(s.Cache.Names) }),
		f("cache_attr_hits_total", "Attributes found in the cache.", counter, func(s *statusReport) int64 { return s.Cache.AttrHits }),
		f("cache_attr_misses_total", "Attributes read from the store.", counter, func(s *statusReport) int64 { return s.Cache.AttrMisses }),
		f("cache_name_hits_total", "Names found in the cache.", counter, func(s *statusReport) int64 { return s.Cache.NameHits }),
		f("cache_name_misses_total", "Names read from the store.", counter, func(s *statusReport) int64 { return s.Cache.NameMisses }),
		f("content_segments", "Pack segments.", gauge, func(s *statusReport) int64 { return s.Content.Segments }),
		f("content_segment_bytes", "Bytes of pack segments on the disk.", gauge, func(s *statusReport) int64 { return s.Content.SegmentBytes }),
		f("content_files", "Blobs that are files of their own.", gauge, func(s *statusReport) int64 { return s.Content.Files }),
		f("content_file_bytes", "Bytes of those files.", gauge, func(s *statusReport) int64 { return s.Content.FileBytes }),
		f("content_unsynced_bytes", "Bytes stored and not synced.", gauge, func(s *statusReport) int64 { return s.Content.Unsynced }),
		f("content_puts_total", "Blobs stored.", counter, func(s *statusReport) int64 { return s.Content.Puts }),
		f("content_put_bytes_total", "Bytes of blobs stored.", counter, func(s *statusReport) int64 { return s.Content.PutBytes }),
		f("content_reads_total", "Reads from blobs.", counter, func(s *statusReport) int64 { return s.Content.Reads }),
		f("content_read_bytes_total", "Bytes read from blobs.", counter, func(s *statusReport) int64 { return s.Content.ReadBytes }),
		f("content_damaged_total", "Reads that met damaged content.", counter, func(s *statusReport) int64 { return s.Content.Damaged }),
		f("database_bytes", "Size of the database.", gauge, func(s *statusReport) int64 { return s.Database.FileBytes }),
		f("database_log_bytes", "Size of the database's log.", gauge, func(s *statusReport) int64 { return s.Database.LogBytes }),
		f("database_inodes", "Inode rows, unnamed ones included.", gauge, func(s *statusReport) int64 { return s.Database.Inodes }),
		f("database_records", "Operation records.", gauge, func(s *statusReport) int64 { return s.Database.Records }),
	}
}

func oneIf(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// fsCollector reads one report per scrape.
type fsCollector struct {
	report func(context.Context) (statusReport, error)
	table  []figure
	descs  []*prometheus.Desc
	up     *prometheus.Desc
}

func newCollector(report func(context.Context) (statusReport, error), zone string) *fsCollector {
	labels := prometheus.Labels{"zone": zone}
	c := &fsCollector{report: report, table: figures(), up: prometheus.NewDesc("nexusfs_up", "1 when the store answers.", nil, labels)}
	for _, f := range c.table {
		c.descs = append(c.descs, prometheus.NewDesc("nexusfs_"+f.name, f.help, nil, labels))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *fsCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.up
	for _, d := range c.descs {
		ch <- d
	}
}

// scrapeLimit bounds how long a scrape waits for the store.
const scrapeLimit = 5 * time.Second

// Collect implements prometheus.Collector.
func (c *fsCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	s, err := c.report(ctx)
	ch <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, float64(oneIf(err == nil)))
	if err != nil {
		return
	}
	for i, f := range c.table {
		ch <- prometheus.MustNewConstMetric(c.descs[i], f.kind, f.value(&s))
	}
}

// metricsServer serves /metrics.
func metricsServer(e *engine) *http.Server {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		newCollector(e.report, e.zone),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}
