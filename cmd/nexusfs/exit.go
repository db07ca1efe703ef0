package main

import (
	"context"
	"errors"
	"fmt"

	"nexusfs/meta"
)

// Exit codes. They are part of the product's behaviour: `nexusfs help
// exit-codes` prints this table.
const (
	exitOK      = 0
	exitFailed  = 1   // the operation failed, or a check found something
	exitUsage   = 2   // the command line or the configuration is wrong
	exitStore   = 3   // the store is missing, of another product, damaged or in use
	exitMount   = 4   // the mountpoint or FUSE is the problem
	exitDaemon  = 5   // the daemon does not answer, or does not answer this user
	exitMissing = 6   // the path, version or name does not exist
	exitSignal  = 130 // interrupted by the user
)

// exitError is an error that knows with which code the command ends.
type exitError struct {
	code int
	err  error // nil: the command has said everything already
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// fail builds an error with an exit code and a sentence.
func fail(code int, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

// withCode gives err an exit code unless it has one.
func withCode(code int, err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{code: code, err: err}
}

// exitCode says how a command ends that returned err. What carries no code
// comes from the command line parser.
func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.code
	default:
		return exitUsage
	}
}

// classify gives an error from the filesystem its exit code.
func classify(err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return &exitError{code: exitSignal, err: errors.New("interrupted")}
	}
	var me *meta.Error
	if errors.As(err, &me) && (me.Kind == meta.KindNotExist || me.Kind == meta.KindNotDir) {
		return &exitError{code: exitMissing, err: err}
	}
	return &exitError{code: exitFailed, err: err}
}
