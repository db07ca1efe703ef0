package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

var strictOps = []string{"mkdir", "create-empty", "rename"}

// strict compares the latency of the strict level with the relaxed one plus a
// flush of the disk, and shows what group commit gives many callers.
func (b *bench) strict() error {
	relaxed, err := b.keep(b.mountNexusfs(filepath.Join(b.disk, "sr"), filepath.Join(b.disk, "sr.store")))
	if err != nil {
		return err
	}
	strict, err := b.keep(b.mountNexusfs(filepath.Join(b.disk, "ss"), filepath.Join(b.disk, "ss.store"), "--durability", "strict"))
	if err != nil {
		return err
	}
	saved := b.only
	b.only = "mkdir,create-empty,rename"
	defer func() { b.only = saved }()
	var all []sample
	var flush []float64
	for round := range b.rounds {
		for _, run := range []struct {
			label, dir string
			workers    int
		}{{"relaxed", relaxed.dir, 1}, {"strict", strict.dir, 1}, {"strict", strict.dir, 32}} {
			got, err := b.fsbenchOnce(run.label, run.dir, run.workers, round)
			if err != nil {
				return err
			}
			all = append(all, got...)
		}
		f, err := flushP50(b.disk)
		if err != nil {
			return err
		}
		flush = append(flush, f)
	}
	b.strictTable(all, median(flush))
	return nil
}

func (b *bench) strictTable(all []sample, flush float64) {
	p50 := func(label, workload string) float64 {
		var list []float64
		for _, s := range all {
			if s.Label == label && s.Workload == workload && s.Workers == 1 {
				list = append(list, s.P50us)
			}
		}
		return median(list)
	}
	fmt.Printf("Strict level, p50 in us, medians of %d rounds; F = p50 of a 4 KiB overwrite + fdatasync on the same disk = %.0f us\n\n", b.rounds, flush)
	fmt.Println("| operation | relaxed | strict | limit 1.5 x (relaxed + F) | |\n|---|---|---|---|---|")
	for _, op := range strictOps {
		r, s := p50("relaxed", op), p50("strict", op)
		mark := ""
		if s > 1.5*(r+flush) {
			mark = "**MISS**"
		}
		fmt.Printf("| %s | %.0f | %.0f | %.0f | %s |\n", op, r, s, 1.5*(r+flush), mark)
	}
	one, many := ops(all, "strict", "mkdir", 1), ops(all, "strict", "mkdir", 32)
	mark := ""
	if many < 6*one {
		mark = " **MISS**"
	}
	fmt.Printf("\nmkdir at the strict level: %.0f ops/s by 1 worker, %.0f by 32: %.1f x (at least 6)%s\n\n", one, many, ratio(many, one), mark)
}

// flushP50 measures one flush into written blocks, in microseconds.
func flushP50(dir string) (float64, error) {
	const size, block, rounds = 1 << 20, 4096, 400
	path := filepath.Join(dir, "flush")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return 0, err
	}
	var took []float64
	buf := make([]byte, block)
	for i := range rounds {
		start := time.Now()
		if _, err := f.WriteAt(buf, int64(i*37%(size/block))*block); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(start).Nanoseconds())/1e3)
	}
	return median(took), nil
}

// passthroughSize makes a file of one blob that has a file of its own: from 1 MiB
// to less than 4 MiB (content/DESIGN.md).
const passthroughSize = 3 << 20

// passthrough reads one file of one blob again and again, on a read-only mount
// and through the loopback on ext4.
func (b *bench) passthrough() error {
	const size = passthroughSize
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 2654435761 >> 13)
	}
	dir, store := filepath.Join(b.disk, "pt"), filepath.Join(b.disk, "pt.store")
	m, err := b.mountNexusfs(dir, store)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "blob"), data, 0o644), m.unmount()); err != nil {
		return err
	}
	if _, err := b.keep(b.mountNexusfs(dir, store, "-o", "ro")); err != nil {
		return err
	}
	lo, err := b.keep(b.mountLoopback(filepath.Join(b.disk, "ptl"), filepath.Join(b.disk, "ptl.back")))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(lo.dir, "blob"), data, 0o644); err != nil {
		return err
	}
	var theirs, oursRate []float64
	for range b.rounds {
		for _, t := range []struct {
			path string
			list *[]float64
		}{{filepath.Join(lo.dir, "blob"), &theirs}, {filepath.Join(dir, "blob"), &oursRate}} {
			rate, err := hotRead(t.path, time.Second)
			if err != nil {
				return err
			}
			*t.list = append(*t.list, rate)
		}
	}
	got, want := median(oursRate), median(theirs)
	mark := ""
	if got < 0.9*want {
		mark = " **MISS**"
	}
	fmt.Printf("Hot reads of a 3 MiB file on a read-only mount: %.0f MiB/s, loopback on ext4 %.0f MiB/s: %.2f (at least 0.9)%s\n\n", got, want, ratio(got, want), mark)
	return nil
}

// hotRead reads a file whole, over and over, and returns MiB/s.
func hotRead(path string, budget time.Duration) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	var total int64
	start := time.Now()
	for time.Since(start) < budget {
		for off := int64(0); off < passthroughSize; {
			n, err := f.ReadAt(buf, off)
			if err != nil {
				return 0, err
			}
			off += int64(n)
			total += int64(n)
		}
	}
	return float64(total) / (1 << 20) / time.Since(start).Seconds(), nil
}
