package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

func pidString(pid uint32) string { return strconv.FormatUint(uint64(pid), 10) }

// procStat returns the fields of proc_pid_stat(5) from the third (the state)
// on; the name before them may hold anything. nil for a process that is gone.
func procStat(pid uint32) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	i := strings.LastIndexByte(string(stat), ')')
	return strings.Fields(string(stat[i+1:]))
}

// processRuns is false for a zombie: its work is done, its parent's is not.
func processRuns(pid int) bool {
	fields := procStat(uint32(pid))
	return len(fields) > 0 && fields[0] != "Z" && fields[0] != "X"
}

// processStart returns when a process started, in clock ticks since boot; 0
// when that is not known.
func processStart(pid uint32) uint64 {
	fields := procStat(pid)
	const start = 22 - 3
	if len(fields) <= start {
		return 0
	}
	n, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// residentBytes returns a process's resident memory; 0 when it is not known.
func residentBytes(pid uint32) int64 {
	fields := procStat(pid)
	const rss = 24 - 3
	if len(fields) <= rss {
		return 0
	}
	pages, err := strconv.ParseInt(fields[rss], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
