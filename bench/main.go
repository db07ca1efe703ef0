// Command bench measures nexusfs against go-fuse's loopback example and the
// native filesystem, on one machine in one run, and prints markdown tables of
// medians, as ratios against the project's floors. `make bench` calls it.
//
// Usage:
//
//	go run ./bench [-what fsbench,...] [-rounds 5] [-workers 1,8] [-only a,b]
//
// What can be measured:
//
//	fsbench      the workloads of bench/fsbench, interleaved rounds
//	passthrough  hot reads of one blob on a read-only mount
//	work         go build, git clone/status/gc, tar x, rm -rf, wall time
//	strict       the strict level: latency against relaxed plus one flush, group commit
//	memory       resident memory idle, per cached inode, per open file, of a 20 GiB write
//	million      a directory of a million entries: create, list, mount time, bytes per inode
//
// Everything is made below -disk (on ext4) and -mem (a tmpfs) and removed at
// the end. Raw results go to -out as JSON lines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// config is what the flags say.
type config struct {
	what      []string
	rounds    int
	workers   []int
	only      string
	full      bool
	disk, mem string
	nexusfs   string
	loopback  string
	out       string
	inodes    int
	entries   int
	bigGiB    int
	ext4      bool
}

// measurements in the order in which they run.
var measurements = []struct {
	name string
	run  func(*bench) error
}{
	{"fsbench", (*bench).fsbench},
	{"passthrough", (*bench).passthrough},
	{"work", (*bench).work},
	{"strict", (*bench).strict},
	{"memory", (*bench).memory},
	{"million", (*bench).million},
}

func main() {
	c, err := parse()
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = run(ctx, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse() (config, error) {
	var c config
	var what, workers string
	flag.StringVar(&what, "what", "fsbench", "comma-separated: fsbench, passthrough, work, strict, memory, million, or all")
	flag.IntVar(&c.rounds, "rounds", 5, "interleaved rounds")
	flag.StringVar(&workers, "workers", "1,8", "concurrent workers of fsbench, one run each")
	flag.StringVar(&c.only, "only", "", "fsbench workloads to run (default all)")
	flag.BoolVar(&c.full, "full", false, "fsbench without -quick")
	flag.StringVar(&c.disk, "disk", os.TempDir(), "folder on the disk to measure")
	flag.StringVar(&c.mem, "mem", "/dev/shm", "folder on a tmpfs")
	flag.StringVar(&c.nexusfs, "nexusfs", os.Getenv("NEXUSFS_BIN"), "nexusfs binary (default: NEXUSFS_BIN, or build it)")
	flag.StringVar(&c.loopback, "loopback", "", "go-fuse's loopback example (default: install it)")
	flag.StringVar(&c.out, "out", "", "file for the raw results")
	flag.IntVar(&c.inodes, "inodes", 100_000, "files of the cached-inode measurement")
	flag.IntVar(&c.entries, "entries", 1_000_000, "entries of the large directory")
	flag.IntVar(&c.bigGiB, "big", 20, "GiB of the large write")
	flag.BoolVar(&c.ext4, "ext4", false, "run fsbench on the plain disk too")
	flag.Parse()
	for _, m := range measurements {
		if what == "all" || slices.Contains(strings.Split(what, ","), m.name) {
			c.what = append(c.what, m.name)
		}
	}
	if len(c.what) == 0 || flag.NArg() > 0 || c.rounds < 1 {
		return c, errors.New("nothing to measure: see -help")
	}
	for w := range strings.SplitSeq(workers, ",") {
		n, err := strconv.Atoi(w)
		if err != nil || n < 1 {
			return c, fmt.Errorf("-workers %s: not a list of numbers", workers)
		}
		c.workers = append(c.workers, n)
	}
	return c, nil
}

func run(ctx context.Context, c config) (err error) {
	b, err := newBench(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.describe()
	for _, m := range measurements {
		if !slices.Contains(c.what, m.name) {
			continue
		}
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}
