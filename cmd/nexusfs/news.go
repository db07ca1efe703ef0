package main

import (
	"context"
	"sync"

	"nexusfs/meta"
)

// news wakes commands that follow the log. It is a hook like any other; a
// wake-up carries no data: who wakes reads on from its own cursor.
type news struct {
	mu   sync.Mutex
	wake chan struct{} // guarded by mu; nil while nobody waits
}

var _ meta.Hook = (*news)(nil)

// Name implements meta.Hook.
func (n *news) Name() string { return "follow" }

// Apply implements meta.Hook. It never fails and never blocks.
func (n *news) Apply(context.Context, []meta.Committed) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wake != nil {
		close(n.wake)
		n.wake = nil
	}
	return nil
}

// wait returns a channel that is closed by the next Apply. Call it before
// reading, so that nothing is missed. A nil news never wakes.
func (n *news) wait() <-chan struct{} {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wake == nil {
		n.wake = make(chan struct{})
	}
	return n.wake
}
