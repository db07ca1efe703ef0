package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const loopbackModule = "github.com/hanwen/go-fuse/v2/example/loopback@v2.12.1"

// bench is one run: its binaries, scratch folders and the mounts that stand.
type bench struct {
	config
	ctx       context.Context
	disk, mem string // scratch folders of this run
	fsbenchAt string
	raw       io.Writer
	undo      []func() error // in reverse at the end
}

func newBench(ctx context.Context, c config) (b *bench, err error) {
	b = &bench{config: c, ctx: ctx, raw: io.Discard}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.disk, err = b.scratch(c.disk); err != nil {
		return b, err
	}
	if b.mem, err = b.scratch(c.mem); err != nil {
		return b, err
	}
	if c.out != "" {
		f, err := os.Create(c.out)
		if err != nil {
			return b, err
		}
		b.raw = f
		b.undo = append([]func() error{f.Close}, b.undo...)
	}
	return b, b.build()
}

func (b *bench) scratch(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "nexusfs-bench-")
	if err != nil {
		return "", err
	}
	b.undo = append(b.undo, func() error { return os.RemoveAll(dir) })
	return dir, nil
}

// build makes the three binaries. It runs in the module's root.
func (b *bench) build() error {
	b.fsbenchAt = filepath.Join(b.disk, "fsbench")
	if err := b.command("bench/fsbench", "go", "build", "-o", b.fsbenchAt, ".").Run(); err != nil {
		return fmt.Errorf("build fsbench (start this in the module's root): %w", err)
	}
	if b.nexusfs == "" {
		b.nexusfs = filepath.Join(b.disk, "nexusfs")
		if err := b.command(".", "go", "build", "-o", b.nexusfs, "./cmd/nexusfs").Run(); err != nil {
			return fmt.Errorf("build nexusfs: %w", err)
		}
	}
	if b.loopback == "" {
		b.loopback = filepath.Join(b.disk, "loopback")
		cmd := b.command(".", "go", "install", loopbackModule)
		cmd.Env = append(os.Environ(), "GOBIN="+b.disk)
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("install the loopback example: %w", err)
		}
	}
	for _, p := range []*string{&b.nexusfs, &b.loopback} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// command prepares a command whose errors the user sees.
func (b *bench) command(dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	return cmd
}

func (b *bench) close() error {
	var errs []error
	for i := len(b.undo) - 1; i >= 0; i-- {
		errs = append(errs, b.undo[i]())
	}
	b.undo = nil
	return errors.Join(errs...)
}

// mounted is a filesystem served by a child of this process.
type mounted struct {
	dir string
	cmd *exec.Cmd
}

// mount starts a FUSE daemon and returns when dir is another filesystem.
func (b *bench) mount(dir string, argv ...string) (*mounted, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	before, err := device(dir)
	if err != nil {
		return nil, err
	}
	m := &mounted{dir: dir, cmd: exec.Command(argv[0], argv[1:]...)}
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	for range 30_000 {
		if now, err := device(dir); err == nil && now != before {
			return m, nil
		}
		if m.gone() {
			return nil, fmt.Errorf("%s ended: %s", strings.Join(argv, " "), stderr.String())
		}
		time.Sleep(time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("%s does not serve", argv[0]), m.unmount())
}

func (m *mounted) gone() bool {
	pid, err := syscall.Wait4(m.cmd.Process.Pid, nil, syscall.WNOHANG, nil)
	return err != nil || pid != 0
}

func device(dir string) (uint64, error) {
	var st syscall.Stat_t
	err := syscall.Stat(dir, &st)
	return st.Dev, err
}

// unmount ends the daemon by SIGTERM, which unmounts.
func (m *mounted) unmount() error {
	err := exec.Command("umount", m.dir).Run()
	if err != nil {
		err = exec.Command("fusermount3", "-u", m.dir).Run()
	}
	if werr := m.cmd.Wait(); err == nil {
		err = werr
	}
	return err
}

// mountLoopback serves backing through go-fuse's example.
func (b *bench) mountLoopback(dir, backing string) (*mounted, error) {
	if err := os.MkdirAll(backing, 0o755); err != nil {
		return nil, err
	}
	return b.mount(dir, b.loopback, "-allow-other", dir, backing)
}

// mountNexusfs serves a store on the disk.
func (b *bench) mountNexusfs(dir, store string, args ...string) (*mounted, error) {
	return b.mount(dir, append([]string{b.nexusfs, "mount", store, dir}, args...)...)
}

// keep unmounts m at the end of the run.
func (b *bench) keep(m *mounted, err error) (*mounted, error) {
	if err == nil {
		b.undo = append(b.undo, m.unmount)
	}
	return m, err
}

// record writes one raw result.
func (b *bench) record(v any) {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = b.raw.Write(append(line, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: raw result:", err)
	}
}

// describe prints on what all this is measured.
func (b *bench) describe() {
	var uts syscall.Utsname
	_ = syscall.Uname(&uts)
	release := make([]byte, 0, len(uts.Release))
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	fmt.Printf("%s, %s/%s, %d cores, Linux %s, %s; disk %s, memory %s\n\n",
		time.Now().Format("2006-01-02 15:04"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), release, runtime.Version(), b.config.disk, b.config.mem)
}
