package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nexusfs/bench/gitrepo"
)

const (
	repoFiles   = 20_000
	repoCommits = 2_000
	tarFiles    = 20_000
)

// workStep is one piece of real work, timed on every target.
type workStep struct {
	name   string
	limits []workLimit // any one that holds is enough
	script string
}

// workLimit is a bound as a multiple of another target's time.
type workLimit struct {
	target string
	factor float64
}

var (
	asExt4     = []workLimit{{native, 2}, {onTmpfs, 1.1}}
	asLoopback = []workLimit{{onTmpfs, 1.25}}
)

// workSteps run in this order in a fresh folder; $FIX holds the fixtures, $SRC
// a clone of this repository.
var workSteps = []workStep{
	{"go build ./...", asExt4, `cd src && GOCACHE=$PWD/../gocache GOFLAGS=-buildvcs=false go build ./...`},
	{"git clone", asExt4, `git clone -q origin.git clone`},
	{"git status", asExt4, `git -C clone status --porcelain`},
	{"git gc", asExt4, `git -C clone gc -q`},
	{"tar x, 20,000 files", asLoopback, `mkdir t && tar xf $FIX/files.tar -C t`},
	{"rm -rf of them", asLoopback, `rm -rf t`},
}

// work times real work on ext4, on the loopback over tmpfs and on nexusfs.
func (b *bench) work() error {
	fixtures, err := b.workFixtures()
	if err != nil {
		return err
	}
	lt, err := b.keep(b.mountLoopback(filepath.Join(b.disk, "wlt"), filepath.Join(b.mem, "wlt")))
	if err != nil {
		return err
	}
	nx, err := b.keep(b.mountNexusfs(filepath.Join(b.disk, "wnx"), filepath.Join(b.disk, "wnx.store")))
	if err != nil {
		return err
	}
	plain := filepath.Join(b.disk, "wplain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		return err
	}
	targets := [][2]string{{native, plain}, {onTmpfs, lt.dir}, {ours, nx.dir}}
	times := map[string][]float64{} // by step and target, seconds
	for round := range b.rounds {
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			if err := b.workOnce(fixtures, t[0], t[1], times); err != nil {
				return fmt.Errorf("on %s: %w", t[0], err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: work round %d of %d done\n", round+1, b.rounds)
	}
	b.workTable(times)
	return nil
}

// workFixtures makes, on the disk, the repository and the archive that the
// steps unpack.
func (b *bench) workFixtures() (string, error) {
	dir := filepath.Join(b.disk, "fixtures")
	repo := filepath.Join(dir, "origin.git")
	if err := b.command(".", "git", "init", "-q", "--bare", "-b", "main", repo).Run(); err != nil {
		return "", err
	}
	imp := b.command(repo, "git", "fast-import", "--quiet", "--done")
	in, err := imp.StdinPipe()
	if err != nil {
		return "", err
	}
	if err := imp.Start(); err != nil {
		return "", err
	}
	err = errors.Join(gitrepo.Write(in, repoFiles, repoCommits), in.Close(), imp.Wait())
	if err != nil {
		return "", err
	}
	files := filepath.Join(dir, "files")
	if err := writeFiles(files, tarFiles); err != nil {
		return "", err
	}
	tar := b.command(files, "tar", "cf", filepath.Join(dir, "files.tar"), ".")
	return dir, tar.Run()
}

// writeFiles makes n files of a source tree's sizes, 100 to a directory.
func writeFiles(dir string, n int) error {
	rnd := rand.New(rand.NewPCG(1, 2))
	src := rand.NewChaCha8([32]byte{2})
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		f, err := os.Create(filepath.Join(d, fmt.Sprintf("f%05d", i)))
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, src, int64(rnd.ExpFloat64()*6000))
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// workOnce does all steps in a fresh folder of one target.
func (b *bench) workOnce(fixtures, label, dir string, times map[string][]float64) error {
	dir = filepath.Join(dir, "work")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if out, err := exec.CommandContext(b.ctx, "sh", "-ec", fmt.Sprintf("git clone -q . %s/src && cp -r %s/origin.git %s/ && sync", dir, fixtures, dir)).CombinedOutput(); err != nil {
		return fmt.Errorf("prepare: %w: %s", err, out)
	}
	for _, s := range workSteps {
		if b.only != "" && !strings.Contains(","+b.only+",", ","+strings.Fields(s.name)[0]+",") {
			continue
		}
		cmd := exec.CommandContext(b.ctx, "sh", "-ec", s.script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "FIX="+fixtures)
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", s.name, err, out)
		}
		took := time.Since(start).Seconds()
		times[s.name+"\x00"+label] = append(times[s.name+"\x00"+label], took)
		b.record(map[string]any{"work": s.name, "label": label, "seconds": took})
	}
	return nil
}

func (b *bench) workTable(times map[string][]float64) {
	fmt.Printf("Real work, wall seconds, medians of %d rounds; `go build` with an empty GOCACHE on the target, git with %d files and %d commits\n\n",
		b.rounds, repoFiles, repoCommits)
	fmt.Println("| work | ext4 | loopback on tmpfs | nexusfs | limit | |\n|---|---|---|---|---|---|")
	for _, s := range workSteps {
		at := func(label string) float64 { return median(slices.Clone(times[s.name+"\x00"+label])) }
		if at(ours) == 0 {
			continue
		}
		limit := 0.0
		for _, l := range s.limits {
			limit = max(limit, l.factor*at(l.target))
		}
		mark := ""
		if at(ours) > limit {
			mark = "**MISS**"
		}
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.2f | %s |\n", s.name, at(native), at(onTmpfs), at(ours), limit, mark)
	}
	fmt.Println()
}
