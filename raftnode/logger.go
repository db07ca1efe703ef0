package raftnode

import (
	"context"
	"fmt"
	"log/slog"

	"nexusfs/meta"
)

// raftLogger hands what the library says to the node's log: its every-day
// messages only where debugging is on.
type raftLogger struct{ log *slog.Logger }

// say formats only what is logged.
func (l raftLogger) say(level slog.Level, format string, v []any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	l.log.Log(context.Background(), level, "raft", "msg", text(format, v))
}

func text(format string, v []any) string {
	if format == "" {
		return fmt.Sprint(v...)
	}
	return fmt.Sprintf(format, v...)
}

func (l raftLogger) Debug(v ...any)                   { l.say(slog.LevelDebug, "", v) }
func (l raftLogger) Debugf(format string, v ...any)   { l.say(slog.LevelDebug, format, v) }
func (l raftLogger) Info(v ...any)                    { l.say(slog.LevelDebug, "", v) }
func (l raftLogger) Infof(format string, v ...any)    { l.say(slog.LevelDebug, format, v) }
func (l raftLogger) Warning(v ...any)                 { l.say(slog.LevelWarn, "", v) }
func (l raftLogger) Warningf(format string, v ...any) { l.say(slog.LevelWarn, format, v) }
func (l raftLogger) Error(v ...any)                   { l.say(slog.LevelError, "", v) }
func (l raftLogger) Errorf(format string, v ...any)   { l.say(slog.LevelError, format, v) }

// Fatal and Panic mean that Raft's own state is impossible: nothing can go on.
func (l raftLogger) Fatal(v ...any)                 { panic(text("", v)) }
func (l raftLogger) Fatalf(format string, v ...any) { panic(text(format, v)) }
func (l raftLogger) Panic(v ...any)                 { panic(text("", v)) }
func (l raftLogger) Panicf(format string, v ...any) { panic(text(format, v)) }

func interrupted(op string, err error) error {
	return meta.E(op, 0, "", meta.KindInterrupted, err)
}
