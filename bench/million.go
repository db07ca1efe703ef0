package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// million measures a directory of a million entries and the store under it.
func (b *bench) million() error {
	dir, store := filepath.Join(b.disk, "mil"), filepath.Join(b.disk, "mil.store")
	m, err := b.mountNexusfs(dir, store)
	if err != nil {
		return err
	}
	fmt.Printf("A directory of %d entries\n\n", b.entries)
	big := filepath.Join(dir, "big")
	if err := os.Mkdir(big, 0o755); err != nil {
		return errors.Join(err, m.unmount())
	}
	if err := b.fillDirectory(big); err != nil {
		return errors.Join(err, m.unmount())
	}
	if err := b.createRatio(dir, big); err != nil {
		return errors.Join(err, m.unmount())
	}
	if err := m.unmount(); err != nil {
		return err
	}
	if err := b.bytesPerInode(store); err != nil {
		return err
	}
	start := time.Now()
	if m, err = b.mountNexusfs(dir, store); err != nil {
		return err
	}
	defer m.unmount()
	b.limit("mount until it serves", time.Since(start).Seconds(), 1, "s")
	if err := b.listing(m.cmd.Process.Pid, big); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// fillDirectory creates the entries, empty, each once, and says how fast.
func (b *bench) fillDirectory(dir string) error {
	start := time.Now()
	for i := range b.entries {
		if err := createEmpty(dir, fmt.Sprintf("entry-%07d", i)); err != nil {
			return err
		}
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
	}
	fmt.Printf("- created at %.0f per second\n", float64(b.entries)/time.Since(start).Seconds())
	return nil
}

func createEmpty(dir, name string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// createRatio compares creating in the full directory with creating in an
// empty one, in turns.
func (b *bench) createRatio(root, big string) error {
	const files = 2000
	var full, empty []float64
	for round := range b.rounds {
		fresh := filepath.Join(root, fmt.Sprint("fresh", round))
		if err := os.Mkdir(fresh, 0o755); err != nil {
			return err
		}
		for _, t := range []struct {
			dir  string
			list *[]float64
		}{{fresh, &empty}, {big, &full}} {
			start := time.Now()
			for i := range files {
				if err := createEmpty(t.dir, fmt.Sprintf("extra-%d-%d", round, i)); err != nil {
					return err
				}
			}
			*t.list = append(*t.list, time.Since(start).Seconds())
		}
	}
	b.limit("creating in it against an empty one", ratio(median(full), median(empty)), 1.3, "x")
	return nil
}

// bytesPerInode divides the size of the database files by the entries.
func (b *bench) bytesPerInode(store string) error {
	files, err := filepath.Glob(filepath.Join(store, "meta.db*"))
	if err != nil {
		return err
	}
	var total int64
	for _, p := range files {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		total += info.Size()
	}
	b.limit("SQLite file per inode", float64(total)/float64(b.entries), 700, "bytes")
	return nil
}

// listing reads the directory in pieces, as ls -f does.
func (b *bench) listing(pid int, dir string) error {
	if _, err := settled(pid); err != nil {
		return err
	}
	if err := resetPeak(pid); err != nil {
		return err
	}
	before, err := resident(pid, "VmRSS")
	if err != nil {
		return err
	}
	start := time.Now()
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	n := 0
	for {
		names, err := d.Readdirnames(10_000)
		n += len(names)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	took := time.Since(start).Seconds()
	peak, err := resident(pid, "VmHWM")
	if err != nil {
		return err
	}
	if n < b.entries {
		return fmt.Errorf("listed %d of %d entries", n, b.entries)
	}
	fmt.Printf("- listed at %.0f entries per second\n", float64(n)/took)
	b.limit("listing it adds", float64(peak-before)/mib, 64, "MiB")
	return nil
}
