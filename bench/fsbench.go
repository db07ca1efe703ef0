package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// sample is one line of fsbench.
type sample struct {
	Label    string  `json:"label"`
	Workload string  `json:"workload"`
	Workers  int     `json:"workers"`
	Ops      int     `json:"ops"`
	Errors   int     `json:"errors"`
	OpsPerS  float64 `json:"ops_per_s"`
	P50us    float64 `json:"p50_us"`
	Skipped  string  `json:"skipped"`
	Error    string  `json:"first_error"`
	Round    int     `json:"round"`
}

// floor is what a workload must reach, as a ratio of the loopback's ops/s.
type floor struct {
	base     string // label of the loopback that counts
	one, all float64
}

const (
	onTmpfs = "loopback-tmpfs"
	onExt4  = "loopback-ext4"
	ours    = "nexusfs"
	native  = "ext4"
)

// floors in the order of the table.
var floors = []struct {
	workload string
	floor
}{
	{"mkdir", floor{onTmpfs, 0.7, 0.8}},
	{"create-empty", floor{onTmpfs, 0.7, 0.8}},
	{"create-shared-dir", floor{onTmpfs, 0.7, 0.8}},
	{"create-4k", floor{onTmpfs, 0.6, 0.6}},
	{"rename", floor{onTmpfs, 1.0, 0.8}},
	{"unlink", floor{onTmpfs, 0.8, 0.6}},
	{"rmdir", floor{onTmpfs, 0.8, 0.6}},
	{"rm-tree", floor{onTmpfs, 0.8, 0.6}},
	{"chmod", floor{onTmpfs, 0.5, 0.6}},
	{"xattr-set", floor{onTmpfs, 0.5, 0.6}},
	{"open-read-4k-hot", floor{onTmpfs, 2, 1.5}},
	{"grep-hot", floor{onTmpfs, 2, 1.5}},
	{"stat-hot", floor{onTmpfs, 0, 0}},
	{"stat-missing", floor{onTmpfs, 5, 5}},
	{"stat-cold", floor{onTmpfs, 1.2, 1.2}},
	{"walk-stat", floor{onTmpfs, 1.2, 1.2}},
	{"readdir-names", floor{onTmpfs, 1.2, 1.2}},
	{"readdir-stat-hot", floor{onTmpfs, 1.2, 1.2}},
	{"readdir-stat-cold", floor{onTmpfs, 1.2, 1.2}},
	{"untar", floor{onTmpfs, 0.8, 0.6}},
	{"grep-cold", floor{onTmpfs, 0.8, 0.6}},
	{"open-read-4k-cold", floor{onTmpfs, 0.8, 0.6}},
	{"git-like", floor{onTmpfs, 0.6, 0.5}},
	{"posix-lock", floor{onTmpfs, 0.9, 0.9}},
	{"seq-write", floor{onExt4, 0.8, 0.6}},
	{"seq-read-cold", floor{onExt4, 0.8, 0.8}},
	{"seq-read-hot", floor{onExt4, 0.45, 0.45}},
	{"rand-read-4k-cold", floor{onExt4, 0.5, 0.3}},
	{"overwrite-fsync-4k", floor{onExt4, 0.6, 0.6}},
	{"append-fsync-4k", floor{onExt4, 0.6, 0.6}},
}

// fsbench runs interleaved rounds over all targets and prints the table.
func (b *bench) fsbench() error {
	targets, err := b.fsbenchTargets()
	if err != nil {
		return err
	}
	var all []sample
	for round := range b.rounds {
		for _, workers := range b.workers {
			for i := range targets {
				t := targets[(i+round)%len(targets)] // no target is always first
				got, err := b.fsbenchOnce(t[0], t[1], workers, round)
				if err != nil {
					return err
				}
				all = append(all, got...)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d done\n", round+1, b.rounds)
	}
	b.fsbenchTable(all)
	return nil
}

// fsbenchTargets mounts what is compared: label and directory.
func (b *bench) fsbenchTargets() ([][2]string, error) {
	tmpfs, err := b.keep(b.mountLoopback(filepath.Join(b.disk, "lt"), filepath.Join(b.mem, "lt")))
	if err != nil {
		return nil, err
	}
	ext4, err := b.keep(b.mountLoopback(filepath.Join(b.disk, "le"), filepath.Join(b.disk, "le.back")))
	if err != nil {
		return nil, err
	}
	nx, err := b.keep(b.mountNexusfs(filepath.Join(b.disk, "nx"), filepath.Join(b.disk, "nx.store")))
	if err != nil {
		return nil, err
	}
	targets := [][2]string{{onTmpfs, tmpfs.dir}, {onExt4, ext4.dir}, {ours, nx.dir}}
	if b.ext4 {
		plain := filepath.Join(b.disk, "plain")
		if err := os.Mkdir(plain, 0o755); err != nil {
			return nil, err
		}
		targets = append(targets, [2]string{native, plain})
	}
	return targets, nil
}

func (b *bench) fsbenchOnce(label, dir string, workers, round int) ([]sample, error) {
	args := []string{"-dir", dir, "-workers", strconv.Itoa(workers), "-label", label}
	if !b.full {
		args = append(args, "-quick")
	}
	if b.only != "" {
		args = append(args, "-only", b.only)
	}
	out, err := b.command(".", b.fsbenchAt, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("fsbench on %s: %w", label, err)
	}
	var samples []sample
	for line := range bytes.Lines(out) {
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("fsbench on %s: %w", label, err)
		}
		s.Round = round
		samples = append(samples, s)
		b.record(s)
		if s.Skipped != "" || s.Error != "" {
			fmt.Fprintf(os.Stderr, "bench: %s on %s, %d workers: %s%s (%d errors)\n", s.Workload, label, workers, s.Skipped, s.Error, s.Errors)
		}
	}
	return samples, nil
}

// ops returns the median ops/s of a workload, 0 when it was not measured.
func ops(all []sample, label, workload string, workers int) float64 {
	var list []float64
	for _, s := range all {
		if s.Label == label && s.Workload == workload && s.Workers == workers && s.Skipped == "" && s.OpsPerS > 0 {
			list = append(list, s.OpsPerS)
		}
	}
	return median(list)
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	n := len(list)
	return (list[n/2] + list[(n-1)/2]) / 2
}

// fsbenchTable prints one row per workload: nexusfs as a ratio of the loopback
// that counts, the floor, and the ratio to the other loopback.
func (b *bench) fsbenchTable(all []sample) {
	fmt.Printf("fsbench, medians of %d rounds, relaxed level; ratios of nexusfs's ops/s to the loopback's\n\n", b.rounds)
	fmt.Print("| workload |")
	for _, w := range b.workers {
		fmt.Printf(" nexusfs ops/s, %d | of tmpfs | of ext4 | floor | |", w)
	}
	fmt.Print("\n|---|")
	for range b.workers {
		fmt.Print("---|---|---|---|---|")
	}
	fmt.Println()
	misses := 0
	for _, f := range floors {
		row := fmt.Sprintf("| %s |", f.workload)
		measured := false
		for _, w := range b.workers {
			got := ops(all, ours, f.workload, w)
			want := f.one
			if w > 1 {
				want = f.all
			}
			lt, le := ratio(got, ops(all, onTmpfs, f.workload, w)), ratio(got, ops(all, onExt4, f.workload, w))
			base := lt
			if f.base == onExt4 {
				base = le
			}
			mark := ""
			if got > 0 && want > 0 && base < want {
				mark = "**MISS**"
				misses++
			}
			measured = measured || got > 0
			row += fmt.Sprintf(" %.0f | %.2f | %.2f | %s %.2f | %s |", got, lt, le, short(f.base), want, mark)
		}
		if measured {
			fmt.Println(row)
		}
	}
	fmt.Printf("\n%d figures below their floor\n\n", misses)
}

func short(base string) string {
	if base == onExt4 {
		return "ext4"
	}
	return "tmpfs"
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
