package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"nexusfs/meta"
)

// TestEveryVerbExplainsItself: a description and examples, --json where there
// is a result, and no flag without a description.
func TestEveryVerbExplainsItself(t *testing.T) {
	withoutJSON := map[string]bool{
		"mount": true, "umount": true, "cat": true, "man": true, "mount-helper": true, "store": true,
		"add": true, "remove": true, "create": true, "dump": true, // whose lines are JSON
	}
	root := (&app{}).root()
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			check(sub)
		}
		if cmd == root || !cmd.Runnable() && !cmd.HasSubCommands() {
			return // a help topic
		}
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s has no description or no example", cmd.CommandPath())
		}
		if cmd.Flags().Lookup("json") == nil && !withoutJSON[cmd.Name()] {
			t.Errorf("%s has no --json", cmd.CommandPath())
		}
	}
	check(root)
}

func TestHelpTopicsAreComplete(t *testing.T) {
	for _, code := range []int{exitOK, exitFailed, exitUsage, exitStore, exitMount, exitDaemon, exitMissing, exitSignal} {
		if !strings.Contains(exitCodesText, fmt.Sprintf("\n  %-4d ", code)) {
			t.Errorf("help exit-codes does not explain %d", code)
		}
	}
	for _, opt := range []string{"ro", "allow_other", "durability=", "history=", "agent=", "task=", "metrics=", "fsname=", "noexec", "sync"} {
		if !strings.Contains(optionsText, opt) {
			t.Errorf("help options does not explain %s", opt)
		}
	}
	for _, topic := range []string{"exit-codes", "options", "durability"} {
		if out, code := command(t, "help", topic); code != 0 || len(out) < 200 {
			t.Errorf("help %s: %d %q", topic, code, out)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		nil, {"nope"}, {"mount"}, {"mount", "a"}, {"status", "a", "b"}, {"log", "--nope"}, {"log", "--limit", "x"},
		{"stats", "--interval", "1ms"}, {"store", "nope"}, {"--config", "/does/not/exist", "store", "list"},
	} {
		out, code := command(t, args...)
		if code != exitUsage || out == "" {
			t.Errorf("%v: code %d, %q", args, code, out)
		}
	}
}

func TestManPagesAndCompletion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if out, code := command(t, "man", dir); code != 0 {
		t.Fatalf("man: %d %s", code, out)
	}
	for _, page := range []string{"nexusfs.1", "nexusfs-mount.1", "nexusfs-store-add.1", "nexusfs-exit-codes.1"} {
		if _, err := os.Stat(filepath.Join(dir, page)); err != nil && page != "nexusfs-exit-codes.1" {
			t.Error(err)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, code := command(t, "completion", shell); code != 0 || !strings.Contains(out, "nexusfs") {
			t.Errorf("completion %s: %d", shell, code)
		}
	}
}

func TestExitCodes(t *testing.T) {
	notThere := meta.E("lookup", 1, "x", meta.KindNotExist, nil)
	for _, tc := range []struct {
		name string
		err  error
		want int
	}{
		{"none", nil, exitOK},
		{"the parser's", errors.New("unknown flag"), exitUsage},
		{"classified", classify(errors.New("x")), exitFailed},
		{"not there", classify(fmt.Errorf("walk: %w", notThere)), exitMissing},
		{"interrupted", classify(context.Canceled), exitSignal},
		{"keeps its own", classify(fail(exitMount, "x")), exitMount},
		{"inside of another", fmt.Errorf("outer: %w", fail(exitStore, "x")), exitStore},
		{"joined", errors.Join(nil, fail(exitDaemon, "x")), exitDaemon},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%s: got %d, want %d", tc.name, got, tc.want)
		}
	}
	if got := errorText(&exitError{code: 1}); got != "" {
		t.Errorf("an error that was told already is told again: %q", got)
	}
}

func TestTableAlignsAndKeepsLongResults(t *testing.T) {
	var out strings.Builder
	tab := newTable(&out, "N", "NAME")
	tab.right[0] = true
	for i := range sampledRows + 10 {
		if err := tab.add(fmt.Sprint(i), "näme"); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != sampledRows+11 || lines[0] != "  N  NAME" || lines[1] != "  0  näme" || lines[sampledRows+10] != "1009  näme" {
		t.Errorf("%d lines, %q, %q, %q", len(lines), lines[0], lines[1], lines[len(lines)-1])
	}
}

func TestGCPace(t *testing.T) {
	for _, tc := range []struct {
		live uint64
		want int
	}{{0, gcMost}, {1 << 20, gcMost}, {8 << 20, 300}, {24 << 20, 100}, {1 << 30, gcShare}} {
		if got := gcPercent(tc.live); got != tc.want {
			t.Errorf("%d MiB live: got %d, want %d", tc.live>>20, got, tc.want)
		}
	}
}

// TestMemoryIsGivenBackWhenIdle: once after each busy time, not while busy.
func TestMemoryIsGivenBackWhenIdle(t *testing.T) {
	var sets, releases int
	g := gcTuner{set: func(int) { sets++ }, release: func() { releases++ }}
	allocs := uint64(0)
	look := func(n int, each uint64) {
		for range n {
			allocs += each
			g.look(8<<20, allocs)
		}
	}
	look(20, 0)
	if releases != 0 {
		t.Errorf("%d releases of a daemon that never did anything", releases)
	}
	look(20, 10<<20)
	if releases != 0 {
		t.Errorf("%d releases while busy", releases)
	}
	look(20, 1000)
	if releases != 1 {
		t.Errorf("%d releases of an idle daemon, want 1", releases)
	}
	look(20, 10<<20)
	look(20, 1000)
	if releases != 2 || sets != 1 {
		t.Errorf("%d releases, %d settings, want 2 and 1", releases, sets)
	}
}

// TestMetrics: every figure is there once, and a store that does not answer is
// a figure too.
func TestMetrics(t *testing.T) {
	e := openTestEngine(t, testStore(t, nil))
	defer e.Close()
	put(t, e.fs, meta.RootIno, "f", "x")
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newCollector(e.report, e.zone))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	if len(values) != len(figures())+1 || values["nexusfs_up"] != 1 || values["nexusfs_revision"] != 3 || values["nexusfs_operations_total"] != 2 {
		t.Errorf("%d metrics: %v", len(values), values)
	}
	broken := prometheus.NewPedanticRegistry()
	broken.MustRegister(newCollector(func(context.Context) (statusReport, error) { return statusReport{}, errors.New("no answer") }, "z"))
	families, err = broken.Gather()
	if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetGauge().GetValue() != 0 {
		t.Errorf("a store that does not answer: %v, %v", families, err)
	}
}

func TestRates(t *testing.T) {
	var old, now statusReport
	now.Operations.Committed, now.Operations.BytesWritten = 200, 4<<20
	now.Cache.AttrHits, now.Cache.NameMisses = 3, 1
	now.Revision, now.Durable = 210, 200
	r := ratesBetween(&old, &now, 2e9)
	if r.Operations != 100 || r.Written != 2<<20 || r.HitRatio != 0.75 || r.NotDurable != 10 {
		t.Errorf("rates: %+v", r)
	}
}
