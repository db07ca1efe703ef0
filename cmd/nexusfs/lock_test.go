package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func TestLockRefusalNamesTheHolder(t *testing.T) {
	d := storeDir(t.TempDir())
	me := holder{PID: os.Getpid(), Role: "mount", Mountpoint: "/mnt/a\nb", Started: time.Now()}
	l, err := lockExclusive(t.Context(), d, me)
	if err != nil {
		t.Fatal(err)
	}
	if by, held, err := probeLock(d); err != nil || !held || by.PID != me.PID || by.Mountpoint != me.Mountpoint {
		t.Errorf("probe: %+v, %v, %v", by, held, err)
	}
	for what, take := range map[string]func() error{
		"a second daemon": func() error { _, err := lockExclusive(t.Context(), d, me); return err },
		"a reader":        func() error { _, err := lockShared(t.Context(), d); return err },
	} {
		err := take()
		if exitCode(err) != exitStore || !strings.Contains(err.Error(), `/mnt/a\nb`) || !strings.Contains(err.Error(), "umount") {
			t.Errorf("%s: got %v (exit %d)", what, err, exitCode(err))
		}
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	if _, held, err := probeLock(d); held || err != nil {
		t.Errorf("after the release: held %v, %v", held, err)
	}
	again, err := lockExclusive(t.Context(), d, holder{PID: os.Getpid(), Role: "gc"})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Release()
	if by, _, _ := probeLock(d); by.Role != "gc" || by.Mountpoint != "" {
		t.Errorf("the old holder shows through: %+v", by)
	}
}

// TestLockWaitsForReaders: a reading command holds a daemon up, it does not
// keep it out.
func TestLockWaitsForReaders(t *testing.T) {
	d := storeDir(t.TempDir())
	if err := os.WriteFile(d.file("lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := lockShared(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	second, err := lockShared(t.Context(), d)
	if err != nil {
		t.Fatalf("two readers: %v", err)
	}
	if _, held, err := probeLock(d); held || err != nil {
		t.Errorf("readers count as holders: %v, %v", held, err)
	}
	got := make(chan error, 1)
	go func() {
		l, err := lockExclusive(context.Background(), d, holder{PID: os.Getpid(), Role: "mount"})
		if err == nil {
			err = l.Release()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("a daemon started beside readers: %v", err)
	default:
	}
	first.Release()
	second.Release()
	if err := <-got; err != nil {
		t.Errorf("a daemon behind readers: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	reader, err := lockShared(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Release()
	if _, err := lockExclusive(ctx, d, holder{}); err == nil {
		t.Error("an interrupted wait got the lock")
	}
}
