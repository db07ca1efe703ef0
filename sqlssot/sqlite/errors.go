package sqlite

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// classify turns an error of SQLite or of the file system below into a
// *meta.Error. nil stays nil and a *meta.Error stays what it is.
func classify(op string, ino meta.Ino, name string, err error) error {
	if err == nil {
		return nil
	}
	var e *meta.Error
	if errors.As(err, &e) {
		return err
	}
	return meta.E(op, ino, name, kindOf(err), err)
}

func kindOf(err error) meta.Kind {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return meta.KindInterrupted
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return meta.KindNoSpace
	case errors.Is(err, unix.EROFS):
		return meta.KindReadOnly
	}
	switch sqlite.ErrCode(err).ToPrimary() {
	case sqlite.ResultFull:
		return meta.KindNoSpace
	case sqlite.ResultConstraint:
		return meta.KindConflict
	case sqlite.ResultBusy, sqlite.ResultLocked:
		return meta.KindBusy
	case sqlite.ResultInterrupt:
		return meta.KindInterrupted
	case sqlite.ResultReadOnly:
		return meta.KindReadOnly
	case sqlite.ResultCorrupt, sqlite.ResultNotADB:
		return meta.KindDamaged
	}
	return meta.KindIO
}

// conflict says that a change's belief was wrong.
func conflict(ino meta.Ino, name, what string) error {
	return meta.E("commit", ino, name, meta.KindConflict, errors.New(what))
}

// interrupted reports a context that ended before anything was done.
func interrupted(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return meta.E(op, 0, "", meta.KindInterrupted, err)
	}
	return nil
}
