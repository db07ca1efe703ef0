package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// app is what every command needs of the world.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	configPath string
	config     *Config // read by loadConfig
}

// loadConfig reads the configuration once.
func (a *app) loadConfig() (*Config, error) {
	if a.config == nil {
		c, err := loadConfig(a.configPath, a.getenv)
		if err != nil {
			return nil, err
		}
		a.config = c
	}
	return a.config, nil
}

// signals returns a context that ends with SIGINT or SIGTERM. A second one
// kills the process as usual.
func (a *app) signals() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// action makes a cobra handler of a verb: an error without an exit code gets
// one, so that what is left without comes from the command line parser.
func action(fn func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return classify(fn(cmd.Context(), args))
	}
}

// errorText is what the user reads of an error; "" when all was said.
func errorText(err error) string {
	var e *exitError
	if err == nil || errors.As(err, &e) && e.err == nil {
		return ""
	}
	return err.Error()
}

func isExit(err error) bool {
	var e *exitError
	return errors.As(err, &e)
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }

// note tells the user something that is not part of the result.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "nexusfs: "+format+"\n", args...)
}

// printJSON writes one indented object.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printLine writes one object on one line.
func (a *app) printLine(raw json.RawMessage) error {
	_, err := fmt.Fprintf(a.stdout, "%s\n", raw)
	return err
}

// isTerminal reports whether a writer is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// logLevel reads a level's name.
func logLevel(s string) (slog.Level, error) {
	var l slog.Level
	if err := oneOf(s, "debug", "info", "warn", "error"); err != nil {
		return l, err
	}
	return l, l.UnmarshalText([]byte(s))
}

// newLogger makes the one logger that is handed down.
func newLogger(w io.Writer, c LogConfig) (*slog.Logger, error) {
	level, err := logLevel(c.Level)
	if err != nil {
		return nil, fail(exitUsage, "log level: %w", err)
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}
