package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

func TestEveryKindHasAnErrno(t *testing.T) {
	kinds := meta.Kinds()
	for _, k := range kinds {
		if _, has := errnoOf[k]; !has {
			t.Errorf("no errno for %v (%d)", k, k)
		}
	}
	if len(errnoOf) != len(kinds) {
		t.Errorf("the table has %d kinds, meta has %d", len(errnoOf), len(kinds))
	}
}

func TestStatus(t *testing.T) {
	r := &rawFS{log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		err  error
		want fuse.Status
	}{
		{nil, fuse.OK},
		{meta.KindNotExist.Err(), fuse.ENOENT},
		{fmt.Errorf("wrapped: %w", meta.E("rename", 3, "x", meta.KindExist, nil)), fuse.Status(17)},
		{meta.KindConflict.Err(), fuse.EIO},
		{meta.E("read", 3, "", meta.KindDamaged, nil), fuse.EIO},
		{errors.New("a stranger"), fuse.EIO},
	} {
		if got := r.status("test", 1, c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}

func TestFailuresAreLoggedWithinBounds(t *testing.T) {
	lines := &countHandler{}
	r := &rawFS{log: slog.New(lines)}
	for range 1000 {
		r.status("read", 5, meta.KindIO.Err())
	}
	// The clock may pass into another second once or twice meanwhile.
	if lines.n < 1 || lines.n > 5*quietLines {
		t.Errorf("1000 failures made %d lines", lines.n)
	}
}
