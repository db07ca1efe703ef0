package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func doctorVerb(a *app) *cobra.Command {
	var write, asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [STORE|MOUNTPOINT|postgres://...]",
		Short: "check the system, a store and its daemon, and say what to do",
		Long: `doctor looks at what nexusfs needs: the kernel and FUSE, the clock, limits, the
disk under a store, the store itself, its content, and the daemon if it is
mounted; of a zone in a database the server, its settings and clock, the rights
of the login, and the daemons that have the zone. For each it says what it found
and what to do. Without a STORE it looks
at the mount of the working directory, or the only one; where nothing is mounted,
at the system alone. Nothing is changed, unless --write lets it store a piece of
content and remove it again. It waits at most some seconds for what does not
answer. It ends with code 1 when something fails; warnings are no failure.

fsck checks everything that a store holds; doctor only whether it can be used.`,
		Example: "  nexusfs doctor\n  nexusfs doctor ./mnt --write\n  nexusfs doctor /srv/store --json\n  nexusfs doctor 'postgres://fs@db/team?zone=docs'",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			return a.doctor(ctx, argument(args, 0), write, asJSON)
		}),
	}
	cmd.Flags().BoolVar(&write, "write", false, "also store a piece of content, read it and remove it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object per check")
	return cmd
}

// health is how a check ended.
type health string

const (
	healthOK   health = "ok"
	healthWarn health = "warn"
	healthFail health = "fail"
)

// diagnosis is what one check found. Without a state there was nothing to look
// at. What it found may say itself what to do.
type diagnosis struct {
	Check string `json:"check"`
	State health `json:"state"`
	Found string `json:"found"`
	Do    string `json:"do,omitempty"` // what to do about it
}

func fine(format string, args ...any) diagnosis {
	return diagnosis{State: healthOK, Found: fmt.Sprintf(format, args...)}
}

func warn(do, format string, args ...any) diagnosis {
	return diagnosis{State: healthWarn, Found: fmt.Sprintf(format, args...), Do: do}
}

func bad(do, format string, args ...any) diagnosis {
	return diagnosis{State: healthFail, Found: fmt.Sprintf(format, args...), Do: do}
}

// examination is one check.
type examination struct {
	name string
	run  func(ctx context.Context) diagnosis
}

// doctorPatience bounds one check: a dead or stuck mount may never answer.
const doctorPatience = 5 * time.Second

// bounded runs fn and gives up on it after a while; late is true then. A
// system call on a stuck mount cannot be interrupted: its goroutine stays until
// the process ends.
func bounded[T any](ctx context.Context, patience time.Duration, fn func(ctx context.Context) T) (v T, late bool) {
	limited, cancel := context.WithTimeout(ctx, patience)
	done := make(chan T, 1)
	go func() {
		defer cancel()
		done <- fn(limited)
	}()
	select {
	case v = <-done:
		return v, false
	case <-limited.Done():
	}
	select { // it may have ended just so
	case v = <-done:
		return v, false
	case <-time.After(100 * time.Millisecond):
		return v, true
	}
}

// examine runs the checks in order and shows each.
func examine(ctx context.Context, list []examination, patience time.Duration, show func(diagnosis) error) (failed int, err error) {
	for _, e := range list {
		d, late := bounded(ctx, patience, e.run)
		if ctx.Err() != nil {
			return failed, ctx.Err()
		}
		if late {
			d = bad("look for what hangs: a mount whose daemon is stuck (nexusfs umount --lazy MOUNTPOINT), or a disk that does not answer",
				"no answer within %s", patience)
		}
		if d.Check = e.name; d.State == "" {
			continue
		}
		if d.State == healthFail {
			failed++
		}
		if err := show(d); err != nil {
			return failed, err
		}
	}
	return failed, nil
}

func (a *app) doctor(ctx context.Context, arg string, write, asJSON bool) error {
	show := func(d diagnosis) error {
		if asJSON {
			return a.printLine(mustJSON(d))
		}
		a.printf("%-4s  %-14s  %s\n", d.State, d.Check, escapeName(d.Found))
		if d.Do != "" {
			a.printf("%-4s  %-14s  -> %s\n", "", "", escapeName(d.Do))
		}
		return nil
	}
	failed, err := examine(ctx, systemChecks(), doctorPatience, show)
	if err != nil {
		return err
	}
	list, err := a.storeExaminations(ctx, arg, write)
	if err != nil {
		return err
	}
	more, err := examine(ctx, list, doctorPatience, show)
	if err != nil {
		return err
	}
	if failed += more; failed > 0 {
		return fail(exitFailed, "%d checks failed: see above", failed)
	}
	return nil
}

// storeExaminations finds the store that is meant; none where nothing is
// mounted and nothing was named.
func (a *app) storeExaminations(ctx context.Context, arg string, write bool) ([]examination, error) {
	type answer struct {
		t   *target
		err error
	}
	got, late := bounded(ctx, doctorPatience, func(context.Context) answer {
		if arg == "" {
			if mounts, err := nexusMounts(); err == nil && len(mounts) == 0 {
				return answer{}
			}
		}
		t, err := a.resolve(arg)
		return answer{t, err}
	})
	switch {
	case late:
		return []examination{{"store", func(context.Context) diagnosis {
			return bad("take the mount away (nexusfs umount --lazy MOUNTPOINT), and name the STORE", "%s does not answer within %s", arg, doctorPatience)
		}}}, nil
	case got.err != nil || got.t == nil:
		return nil, got.err
	}
	p := &patient{app: a, target: got.t, write: write}
	return p.checks(), nil
}

// errorDiagnosis turns an error into a failed check.
func errorDiagnosis(do string, err error) diagnosis {
	var d *exitError
	if errors.As(err, &d) && d.err != nil {
		err = d.err
	}
	return bad(do, "%v", err)
}
