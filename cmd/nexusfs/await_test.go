package main

import (
	"errors"
	"os"
	"testing"
	"time"
)

// A command that meets a daemon which is ending (its lock is held, its socket
// is gone) waits until it has ended, and then does without it.
func TestADaemonThatEndsIsNoError(t *testing.T) {
	d := storeDir(t.TempDir())
	lock, err := lockExclusive(t.Context(), d, holder{PID: os.Getpid(), Role: "mount", Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	by, held, err := probeLock(d)
	if err != nil || !held {
		t.Fatalf("held %v, %v", held, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := awaitDaemon(t.Context(), d, by)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(3 * socketInterval):
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, errDaemonEnded) {
		t.Errorf("got %v", err)
	}
}
