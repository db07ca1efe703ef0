package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"
)

// openHere opens a store that no daemon has, for one command, and returns a
// client of it.
func (a *app) openHere(ctx context.Context, t *target, need access, role string) (*client, error) {
	log, err := a.commandLogger()
	if err != nil {
		return nil, err
	}
	var lock *storeLock
	if need == accessRead {
		lock, err = lockShared(ctx, t.store)
	} else {
		lock, err = lockExclusive(ctx, t.store, holder{PID: os.Getpid(), Role: role, Started: time.Now(), Version: versionString()})
	}
	if err != nil {
		return nil, err
	}
	e, err := openEngine(ctx, engineOptions{dir: t.store, mount: a.offlineOptions(t), readOnly: need == accessRead, log: log})
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	c := &control{engine: e, log: log}
	return inProcess(c.handler(), func() error { return errors.Join(e.Close(), lock.Release()) }), nil
}

// openRemote opens a zone in a database for one command. Others may have it
// open, and stay: the database orders them.
func (a *app) openRemote(ctx context.Context, t *target, need access) (*client, error) {
	log, err := a.commandLogger()
	if err != nil {
		return nil, err
	}
	m := mountOptions{Durability: "strict", History: defaultHistory(), Source: t.display()}
	e, err := openEngine(ctx, engineOptions{remote: t.remote, mount: m, readOnly: need == accessRead, log: log})
	if err != nil {
		return nil, err
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- e.Run(work) }() // the session's lease
	c := &control{engine: e, log: log}
	return inProcess(c.handler(), func() error {
		stop()
		return errors.Join(<-done, e.Close())
	}), nil
}

// offlineOptions keeps to what the last mount kept of history: a command must
// not let go what a mount with other options would have kept.
func (a *app) offlineOptions(t *target) mountOptions {
	return mountOptions{Durability: "relaxed", History: keptHistory(t.store), Source: t.display()}
}

// keptHistory is what the last mount of a store kept.
func keptHistory(d storeDir) historyPolicy {
	if mark, err := d.readMark(); err == nil && mark.History != "" {
		if p, err := parseHistory(mark.History); err == nil {
			return p
		}
	}
	return defaultHistory()
}

// commandLogger is for commands: only what the user should know.
func (a *app) commandLogger() (*slog.Logger, error) {
	config, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	return newLogger(a.stderr, LogConfig{Level: "warn", Format: config.Log.Format})
}
