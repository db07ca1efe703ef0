package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// historyPolicy is the value of -o history=: which versions are kept (P26).
type historyPolicy struct {
	Off      bool
	MaxAge   time.Duration // 0: no age limit
	Versions int           // newest versions of a file; 0: no count limit
}

// defaultHistory keeps 7 days or 30 versions, whichever is less.
func defaultHistory() historyPolicy {
	return historyPolicy{MaxAge: 7 * 24 * time.Hour, Versions: 30}
}

// parseHistory reads off, 30v, 7d or 30v,7d; hours (12h) and weeks (2w) too.
func parseHistory(s string) (historyPolicy, error) {
	var p historyPolicy
	if s == "off" {
		p.Off = true
		return p, nil
	}
	for _, item := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == '+' }) {
		n, unit, ok := historyItem(item)
		if !ok {
			return p, historyError(s)
		}
		switch {
		case unit == 'v' && p.Versions == 0:
			p.Versions = n
		case unit != 'v' && p.MaxAge == 0:
			p.MaxAge = time.Duration(n) * historyUnit(unit)
		default:
			return p, historyError(s)
		}
	}
	if p == (historyPolicy{}) {
		return p, historyError(s)
	}
	return p, nil
}

func historyError(s string) error {
	return fmt.Errorf("history=%s is not understood: give off, a number of versions (30v), an age (7d, 12h, 2w), or both (30v,7d)", escapeName(s))
}

// historyItem splits "30v"; it also tells the option parser which pieces
// behind a comma still belong to history=.
func historyItem(s string) (n int, unit byte, ok bool) {
	if len(s) < 2 {
		return 0, 0, false
	}
	unit = s[len(s)-1]
	if unit != 'v' && historyUnit(unit) == 0 {
		return 0, 0, false
	}
	n, err := strconv.Atoi(s[:len(s)-1])
	if err != nil || n <= 0 || n > 100_000 {
		return 0, 0, false
	}
	return n, unit, true
}

func historyUnit(unit byte) time.Duration {
	switch unit {
	case 'h':
		return time.Hour
	case 'd':
		return 24 * time.Hour
	case 'w':
		return 7 * 24 * time.Hour
	}
	return 0
}

// String writes the policy as parseHistory reads it.
func (p historyPolicy) String() string {
	if p.Off {
		return "off"
	}
	var parts []string
	if p.Versions > 0 {
		parts = append(parts, strconv.Itoa(p.Versions)+"v")
	}
	switch {
	case p.MaxAge == 0:
	case p.MaxAge%(24*time.Hour) == 0:
		parts = append(parts, strconv.Itoa(int(p.MaxAge/(24*time.Hour)))+"d")
	default:
		parts = append(parts, strconv.Itoa(int(p.MaxAge/time.Hour))+"h")
	}
	return strings.Join(parts, ",")
}
