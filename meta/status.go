package meta

import "context"

// Status describes a running filesystem, for `nexusfs status` and metrics.
type Status struct {
	Zone       string `json:"zone"`
	Mountpoint string `json:"mountpoint"`
	Node       string `json:"node"`
	PID        int    `json:"pid"`
	Session    int64  `json:"session"`
	Epoch      int64  `json:"epoch"`
	ReadOnly   bool   `json:"read_only"`
	Durability string `json:"durability"` // "relaxed" or "strict"
	Failed     string `json:"failed,omitempty"`
	Shared     bool   `json:"shared"`         // other daemons may change the zone: the kernel keeps nothing for longer than a moment
	Peers      int64  `json:"peers"`          // other live daemons
	Lost       *Loss  `json:"lost,omitempty"` // the newest loss that this daemon went on after (P15)

	Revision Rev `json:"revision"`         // newest operation
	Durable  Rev `json:"durable_revision"` // newest that survives a loss of power

	StagedBytes int64 `json:"staged_bytes"` // memory held by content that is not committed
	StagedFiles int64 `json:"staged_files"`
	OpenFiles   int64 `json:"open_files"`   // inodes with open handles
	OpenHandles int64 `json:"open_handles"` // handles

	Cache      CacheStatus      `json:"cache"`
	Operations OperationsStatus `json:"operations"`
	Usage      Usage            `json:"usage"`
	Content    ContentStats     `json:"content"`
	Store      StoreStats       `json:"store"`
}

// CacheStatus counts what is cached and how often that helped.
type CacheStatus struct {
	Attrs      int   `json:"attrs"`
	AttrHits   int64 `json:"attr_hits"`
	AttrMisses int64 `json:"attr_misses"`
	Names      int   `json:"names"`
	NameHits   int64 `json:"name_hits"`
	NameMisses int64 `json:"name_misses"`
	Extents    int64 `json:"extents"`
}

// OperationsStatus counts since the start.
type OperationsStatus struct {
	Committed     int64 `json:"committed"`
	Batches       int64 `json:"batches"`
	Conflicts     int64 `json:"conflicts"`
	Barriers      int64 `json:"barriers"`
	BytesRead     int64 `json:"bytes_read"`
	BytesWritten  int64 `json:"bytes_written"`
	HistoryPruned int64 `json:"history_pruned"`
	BlobsFreed    int64 `json:"blobs_freed"`
}

// Status returns the figures of this moment. Usage and Store are zero when the
// store does not answer.
func (fs *FS) Status() Status {
	ctx, n, own := context.Background(), &fs.counters, fs.session.Load()
	s := Status{
		Zone: fs.o.Zone, Mountpoint: fs.o.Mountpoint, Node: fs.o.Node, PID: fs.pid(),
		Session: own.number, Epoch: own.epoch, Lost: fs.losses.last.Load(), ReadOnly: fs.o.ReadOnly, Durability: "relaxed",
		Revision: Rev(fs.head.Load()), Durable: fs.sync.durable(),
		Shared: fs.Shared(), Peers: fs.peers.others.Load(),
		StagedBytes: fs.nodes.staged.Load(), StagedFiles: fs.nodes.dirty.Load(),
		Operations: OperationsStatus{
			Committed: n.ops.Load(), Batches: n.batches.Load(), Conflicts: n.conflicts.Load(), Barriers: n.barriers.Load(),
			BytesRead: n.bytesRead.Load(), BytesWritten: n.bytesWritten.Load(),
			HistoryPruned: n.versionsPruned.Load(), BlobsFreed: n.blobsFreed.Load(),
		},
		Cache: CacheStatus{
			AttrHits: n.attrHits.Load(), AttrMisses: n.attrMisses.Load(),
			NameHits: n.nameHits.Load(), NameMisses: n.nameMisses.Load(), Extents: fs.nodes.mapped.Load(),
		},
		Content: fs.o.Content.Stats(),
	}
	if fs.o.Strict {
		s.Durability = "strict"
	}
	if e := fs.failed.Load(); e != nil {
		s.Failed = e.Error()
	}
	s.Cache.Attrs, s.Cache.Names = fs.cache.sizes()
	fs.nodes.all(func(n *node) bool {
		if n.handles > 0 {
			s.OpenFiles++
			s.OpenHandles += int64(n.handles)
		}
		return false
	})
	s.Usage, _ = fs.o.Store.Usage(ctx)
	s.Store, _ = fs.o.Upkeep.Stats(ctx)
	return s
}
