package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const mib = 1 << 20

// resident reads a field of /proc/PID/status in bytes: VmRSS now, VmHWM the
// highest since it was reset.
func resident(pid int, field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no " + field)
}

// resetPeak makes VmHWM start again at the present.
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// settled waits until the daemon has been idle for a moment and returns its RSS.
func settled(pid int) (int64, error) {
	time.Sleep(2 * time.Second)
	return resident(pid, "VmRSS")
}

func (b *bench) limit(what string, got, most float64, unit string) {
	mark := ""
	if got > most {
		mark = " **MISS**"
	}
	b.record(map[string]any{"memory": what, "value": got, "limit": most, "unit": unit})
	fmt.Printf("- %s: %.1f %s (at most %g)%s\n", what, got, unit, most, mark)
}

// memory measures the daemon's resident memory.
func (b *bench) memory() error {
	fmt.Println("Memory of the daemon")
	fmt.Println()
	for _, step := range []func() error{b.idleAndInodes, b.openFiles, b.bigWrite} {
		if err := step(); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

func (b *bench) idleAndInodes() error {
	dir, store := filepath.Join(b.disk, "mem"), filepath.Join(b.disk, "mem.store")
	m, err := b.mountNexusfs(dir, store)
	if err != nil {
		return err
	}
	idle, err := settled(m.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.limit("idle, fresh mount", float64(idle)/mib, 60, "MiB")
	for i := range b.inodes {
		d := filepath.Join(dir, fmt.Sprintf("d%04d", i/500))
		if i%500 == 0 {
			if err := os.Mkdir(d, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%06d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	if err := m.unmount(); err != nil {
		return err
	}
	if m, err = b.mountNexusfs(dir, store); err != nil {
		return err
	}
	defer m.unmount()
	before, err := settled(m.cmd.Process.Pid)
	if err != nil {
		return err
	}
	find := b.command(dir, "find", ".", "-ls")
	find.Stdout = io.Discard
	if err := find.Run(); err != nil {
		return err
	}
	after, err := settled(m.cmd.Process.Pid)
	if err != nil {
		return err
	}
	count := b.inodes + b.inodes/500
	b.limit(fmt.Sprintf("per cached inode after find -ls of %d", count), float64(after-before)/float64(count), 500, "bytes")
	return nil
}

func (b *bench) openFiles() error {
	const files = 10_000
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files + 1000, Max: files + 1000}); err != nil {
		return err
	}
	dir := filepath.Join(b.disk, "mof")
	m, err := b.mountNexusfs(dir, dir+".store")
	if err != nil {
		return err
	}
	defer m.unmount()
	before, err := settled(m.cmd.Process.Pid)
	if err != nil {
		return err
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	for i := range files {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return err
		}
		open = append(open, f)
		if _, err := f.WriteString("some bytes"); err != nil {
			return err
		}
	}
	after, err := settled(m.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.limit("10,000 open files, growth", float64(after-before)/mib, 60, "MiB")
	for _, f := range open {
		if err := f.Close(); err != nil {
			return err
		}
	}
	open = nil
	return nil
}

func (b *bench) bigWrite() error {
	dir := filepath.Join(b.disk, "mbw")
	m, err := b.mountNexusfs(dir, dir+".store")
	if err != nil {
		return err
	}
	defer m.unmount()
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return err
	}
	buf := make([]byte, 2*mib)
	for i := range buf {
		buf[i] = byte(i * 2654435761 >> 11)
	}
	start := time.Now()
	for i := range b.bigGiB << 10 {
		copy(buf[i%mib:], strconv.Itoa(i)) // no two pieces are alike
		if _, err := f.Write(buf[i*37%mib:][:mib]); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	rate := float64(b.bigGiB<<10) / time.Since(start).Seconds()
	peak, err := resident(m.cmd.Process.Pid, "VmHWM")
	if err != nil {
		return err
	}
	b.limit(fmt.Sprintf("highest while %d GiB are written at %.0f MiB/s", b.bigGiB, rate), float64(peak)/mib, 256, "MiB")
	return os.Remove(filepath.Join(dir, "big"))
}
