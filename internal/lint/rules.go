package lint

// Room is a part of the tree and what its shipped code may import of the
// module itself. The longest Dir that fits a package counts.
type Room struct {
	Dir     string   // of the module: "meta"; packages below belong to it
	Imports []string // packages of the module, without the module's name
	Test    []string // what its tests may import besides
	Tests   bool     // nothing of it is shipped: it may use test support everywhere
	Reason  string
}

// Door is an outside library and the only packages that may import it.
type Door struct {
	Library string   // import path or a prefix of it
	Dirs    []string // of the module; packages below too
	Test    []string // whose tests may import it besides
	Reason  string
}

// Rules is everything that Check looks at.
type Rules struct {
	Module    string
	Rooms     []Room
	Doors     []Door
	StdOnly   []string // packages whose shipped code imports the standard library alone
	ErrnoFile string   // the one file of shipped code that may name syscall.Errno
	Limits    Limits
}

// Limits bound sizes in lines. Above Long it is reported, above Max it fails.
type Limits struct {
	LongFunc, MaxFunc int
	LongFile, MaxFile int
}

// Nexusfs returns the rules of this module.
func Nexusfs() Rules {
	return Rules{
		Module:    "nexusfs",
		StdOnly:   []string{"meta"},
		ErrnoFile: "fusefs/errno.go",
		Limits:    Limits{LongFunc: 70, MaxFunc: 100, LongFile: 600, MaxFile: 700},
		Rooms:     rooms(),
		Doors:     doors(),
	}
}

// rooms is the star: everything knows meta, nothing knows a sibling.
func rooms() []Room {
	const star = "a room knows meta, never a sibling: only cmd/nexusfs wires two"
	return []Room{
		{Dir: "meta", Reason: "the leaf: it declares what it needs, others implement it"},
		{Dir: "fusefs", Imports: []string{"meta"}, Reason: star},
		{Dir: "sqlssot", Imports: []string{"meta", "sqlssot"}, Reason: star + "; dialects share what is above them"},
		{Dir: "content", Imports: []string{"meta", "content"}, Reason: star + "; drivers share hashing and verification"},
		{Dir: "hooks", Imports: []string{"meta", "hooks"}, Reason: star},
		{Dir: "reconcile", Imports: []string{"meta", "reconcile"}, Reason: star},
		{Dir: "raftnode", Imports: []string{"meta", "raftnode"}, Reason: star},
		{
			Dir:     "cmd/nexusfs",
			Imports: []string{"meta", "fusefs", "sqlssot", "content", "hooks", "reconcile", "raftnode"},
			Reason:  "the only place that knows two rooms",
		},
		{
			Dir: "integration", Imports: []string{"integration", "internal"}, Test: []string{"bench", "cmd"}, Tests: true,
			Reason: "black box: it knows the product by its command line",
		},
		{
			Dir: "integration/inprocess", Imports: []string{"meta", "sqlssot", "content", "fusefs", "integration"}, Test: []string{"bench"},
			Reason: "runs the rooms in one process, without a kernel",
		},
		{Dir: "bench", Imports: []string{"bench", "integration"}, Reason: "measures the product from outside"},
		{Dir: "internal", Imports: []string{"internal"}, Reason: "tools of the build and of tests; no room's shipped code needs them"},
	}
}

// doors: each outside library has one.
func doors() []Door {
	return []Door{
		{Library: "github.com/hanwen/go-fuse", Dirs: []string{"fusefs"}, Test: []string{"integration", "bench"}, Reason: "the kernel's protocol ends in fusefs; tests use its posixtest and its loopback"},
		{Library: "github.com/jackc/pgx", Dirs: []string{"sqlssot/postgres"}, Reason: "one SQL dialect, one package"},
		{Library: "zombiezen.com/go/sqlite", Dirs: []string{"sqlssot/sqlite"}, Test: []string{"sqlssot"}, Reason: "one SQL dialect, one package"},
		{Library: "modernc.org", Dirs: []string{"sqlssot/sqlite"}, Reason: "the engine under zombiezen's API"},
		{Library: "github.com/zeebo/blake3", Dirs: []string{"content"}, Reason: "names of blobs are content's business"},
		{Library: "github.com/minio/minio-go", Dirs: []string{"content/s3"}, Reason: "one kind of bucket, one package"},
		{Library: "go.etcd.io/raft", Dirs: []string{"raftnode"}, Reason: "consensus is raftnode's business; others see announcements, reads and locks"},
		{Library: "go.etcd.io/bbolt", Dirs: []string{"raftnode/kv"}, Reason: "one file format, one package"},
		{Library: "google.golang.org/grpc", Dirs: []string{"raftnode/transport"}, Reason: "nodes talk to nodes in one place"},
		{Library: "google.golang.org/protobuf", Dirs: []string{"raftnode"}, Reason: "Raft's entries and messages are protocol buffers"},
		{Library: "github.com/spf13", Dirs: []string{"cmd/nexusfs"}, Reason: "the command line"},
		{Library: "github.com/BurntSushi/toml", Dirs: []string{"cmd/nexusfs"}, Reason: "the configuration"},
		{Library: "github.com/schollz/progressbar", Dirs: []string{"cmd/nexusfs"}, Reason: "what a terminal shows"},
		{Library: "github.com/dustin/go-humanize", Dirs: []string{"cmd/nexusfs"}, Reason: "what a terminal shows"},
		{Library: "github.com/prometheus", Dirs: []string{"cmd/nexusfs"}, Reason: "cmd binds the rooms' figures to metrics"},
		{Library: "golang.org/x/term", Dirs: []string{"cmd/nexusfs"}, Reason: "what a terminal shows"},
		{Library: "golang.org/x/sync", Dirs: []string{"cmd/nexusfs", "integration", "bench"}, Reason: "cmd starts what runs in the background"},
		{Library: "golang.org/x/sys", Dirs: []string{"cmd/nexusfs", "fusefs", "content", "sqlssot", "raftnode", "integration", "bench"}, Reason: "system calls that the standard library lacks; not in meta"},
		{Library: "pgregory.net/rapid", Dirs: []string{"sqlssot/ssottest", "content/contenttest", "integration"}, Test: []string{"meta", "fusefs", "sqlssot", "content", "raftnode", "cmd/nexusfs"}, Reason: "random tests"},
		{Library: "github.com/anishathalye/porcupine", Dirs: []string{"integration"}, Test: []string{"meta", "sqlssot", "raftnode"}, Reason: "checks concurrent histories"},
		{Library: "github.com/google/go-cmp", Dirs: []string{"sqlssot/ssottest", "content/contenttest", "integration"}, Test: []string{""}, Reason: "differences in tests"},
		{Library: "go.etcd.io/gofail", Dirs: nil, Reason: "a build tool: failpoints are comments in the work tree"},
	}
}
