package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// table prints aligned columns. Cells hold text that is safe for a terminal.
// Widths come from the first rows, so that a long result needs little memory.
type table struct {
	w     io.Writer
	right []bool // columns of numbers
	rows  [][]string
	width []int // set once the first rows were printed
	err   error
}

// sampledRows decide how wide the columns are.
const sampledRows = 1000

func newTable(w io.Writer, head ...string) *table {
	t := &table{w: w, right: make([]bool, len(head))}
	t.rows = append(t.rows, head)
	return t
}

// add appends a row of as many cells as the head has.
func (t *table) add(cells ...string) error {
	if t.width != nil {
		t.print(cells)
		return t.err
	}
	t.rows = append(t.rows, cells)
	if len(t.rows) > sampledRows {
		t.flush()
	}
	return t.err
}

func (t *table) flush() error {
	if t.width == nil {
		t.width = make([]int, len(t.right))
		for _, row := range t.rows {
			for i, cell := range row {
				t.width[i] = max(t.width[i], utf8.RuneCountInString(cell))
			}
		}
		for _, row := range t.rows {
			t.print(row)
		}
		t.rows = nil
	}
	return t.err
}

func (t *table) print(cells []string) {
	var b strings.Builder
	for i, cell := range cells {
		pad := strings.Repeat(" ", max(t.width[i]-utf8.RuneCountInString(cell), 0))
		if i > 0 {
			b.WriteString("  ")
		}
		if t.right[i] {
			b.WriteString(pad + cell)
		} else {
			b.WriteString(cell + pad)
		}
	}
	if _, err := fmt.Fprintln(t.w, strings.TrimRight(b.String(), " ")); err != nil && t.err == nil {
		t.err = err
	}
}

// humanBytes writes a size in binary units.
func humanBytes(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

// humanTime writes a time in the user's zone, to the second.
func humanTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// who writes an actor in one cell: the attested, then what is declared.
func (a actorInfo) String() string {
	s := fmt.Sprintf("uid %d", a.UID)
	if a.Exe != "" {
		s += " " + escapeName(filepath.Base(a.Exe))
	}
	if a.PID != 0 {
		s += fmt.Sprintf("[%d]", a.PID)
	}
	if a.Agent != "" {
		s += " agent=" + escapeName(a.Agent)
	}
	if a.Task != "" {
		s += " task=" + escapeName(a.Task)
	}
	return s
}

// shellQuote makes a path safe to paste into a shell.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	if !plainName(s) {
		return "$'" + strings.ReplaceAll(escapeName(s), "'", `\'`) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
