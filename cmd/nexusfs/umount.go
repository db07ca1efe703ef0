package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func umountVerb(a *app) *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:     "umount STORE|MOUNTPOINT",
		Aliases: []string{"unmount"},
		Short:   "unmount, make everything durable and end the daemon",
		Long: `umount takes the mount away, waits until its daemon has finished open work and
made it durable, and returns when the daemon is gone and the store free. A
mount that is in use is not touched, unless --lazy is given: then it leaves the
tree at once and programs that still use it get errors. What a dead daemon left
at MOUNTPOINT is removed.`,
		Example: "  nexusfs umount ./mnt\n  nexusfs umount --lazy projects",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(ctx context.Context, args []string) error {
			return a.umount(ctx, args[0], lazy)
		}),
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "take a mount away that is in use")
	return cmd
}

func (a *app) umount(ctx context.Context, arg string, lazy bool) error {
	t, err := a.resolve(arg)
	if err != nil {
		return err
	}
	if t.remote != nil && t.store == "" {
		if t.store, err = a.onlyNode(t); err != nil {
			return err
		}
	}
	by, held, err := probeLock(t.store)
	switch {
	case err != nil:
		return err
	case !held || by.Role != "mount":
		return a.umountDead(t, arg)
	case t.mount != nil && by.Mountpoint != t.mount.Point && by.Mountpoint != "":
		// A dead daemon's mount beside a living one of the same store elsewhere.
		return a.umountDead(t, arg)
	}
	c, err := awaitDaemon(ctx, t.store, by)
	if errors.Is(err, errDaemonEnded) {
		return a.umountEnded(t)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if lazy {
		return a.umountLazily(ctx, c, t.store, by)
	}
	var done struct{}
	if err := c.post(ctx, "umount", nil, &done); err != nil {
		return err
	}
	return awaitGone(ctx, t.store, by.PID)
}

// umountEnded is for a daemon that ended while it was asked to.
func (a *app) umountEnded(t *target) error {
	if t.mount == nil || !isDead(t.mount.Point) {
		return nil
	}
	return a.umountDead(t, t.mount.Point)
}

// onlyNode finds the one mount of a database's zone on this machine.
func (a *app) onlyNode(t *target) (storeDir, error) {
	nodes, err := a.nodesOf(t.remote)
	if err != nil {
		return "", err
	}
	switch len(nodes) {
	case 0:
		return "", fail(exitMount, "%s is not mounted on this machine", escapeName(t.display()))
	case 1:
		return nodes[0].dir, nil
	}
	var points []string
	for _, n := range nodes {
		points = append(points, escapeName(n.by.Mountpoint))
	}
	return "", fail(exitUsage, "%s is mounted several times here: name one of %s", escapeName(t.display()), strings.Join(points, ", "))
}

// lazyPatience is how long a daemon has to take its own mount away.
const lazyPatience = 10 * time.Second

// umountLazily asks the daemon, and takes the mount away from one that is stuck.
func (a *app) umountLazily(ctx context.Context, c *client, store storeDir, by holder) error {
	asked, cancel := context.WithTimeout(ctx, lazyPatience)
	defer cancel()
	var done struct{}
	err := c.post(asked, "umount", url.Values{"lazy": {"true"}}, &done)
	if err == nil {
		return awaitGone(ctx, store, by.PID)
	}
	if ctx.Err() != nil || asked.Err() == nil {
		return err
	}
	if err := detach(by.Mountpoint); err != nil {
		return withCode(exitMount, err)
	}
	return fail(exitDaemon, "%s is taken away, but its daemon (pid %d) does not answer and still holds the store: see %s, and kill it if it is stuck",
		escapeName(by.Mountpoint), by.PID, escapeName(store.log()))
}

// umountDead removes what no daemon serves any more.
func (a *app) umountDead(t *target, arg string) error {
	if t.mount == nil {
		return fail(exitMount, "%s is not mounted", escapeName(arg))
	}
	if err := detach(t.mount.Point); err != nil {
		return fail(exitMount, "the daemon of %s is gone, and its mount could not be removed: %w", escapeName(t.mount.Point), err)
	}
	a.note("the daemon of %s was gone; its mount is removed", escapeName(t.mount.Point))
	return nil
}

// awaitGone waits until the daemon has given the store up. How long open work
// takes is the disk's business; the user can interrupt the wait, not the work.
func awaitGone(ctx context.Context, store storeDir, pid int) error {
	for {
		by, held, err := probeLock(store)
		if err != nil {
			return err
		}
		if (!held || by.PID != pid) && !processRuns(pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fail(exitSignal, "interrupted: the daemon with pid %d is still finishing its work", pid)
		case <-time.After(lockInterval):
		}
	}
}

// unmount is the daemon's side.
func (c *control) unmount(_ context.Context, r *http.Request) (struct{}, error) {
	var none struct{}
	if c.umount == nil {
		return none, fail(exitMount, "nothing is mounted")
	}
	lazy := r.FormValue("lazy") == "true"
	point := c.engine.mountpoint
	c.log.Info("umount asked for", "lazy", lazy, "uid", peerFrom(r.Context()).UID, "pid", peerFrom(r.Context()).PID)
	err := c.umount(lazy)
	if err == nil {
		return none, nil
	}
	if users := mountUsers(point, 5); len(users) > 0 {
		return none, fail(exitMount, "%s is in use by %s: end them or leave the directory, or use --lazy", escapeName(point), strings.Join(users, ", "))
	}
	return none, fail(exitMount, "%s could not be unmounted: %w; is a program using it? --lazy takes it away all the same", escapeName(point), err)
}

// usersPatience bounds the look at /proc: a process in the middle of execve(2)
// or of its end can hold up whoever looks at it.
const usersPatience = 2 * time.Second

// mountUsers lists, as far as /proc tells in time, up to limit processes with a
// directory or file below point. It reads links only, so it never enters the
// mount itself.
func mountUsers(point string, limit int) []string {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	found, stop := make(chan string), make(chan struct{})
	defer close(stop)
	go func() {
		defer close(found)
		for _, proc := range procs {
			if user := describeUser(proc, point); user != "" {
				select {
				case found <- user:
				case <-stop:
					return
				}
			}
		}
	}()
	late := time.After(usersPatience)
	var out []string
	for {
		select {
		case user, more := <-found:
			if !more {
				return out
			}
			if len(out) == limit {
				return append(out, "others")
			}
			out = append(out, user)
		case <-late:
			return out
		}
	}
}

// describeUser names a process that uses the mount; "" for any other.
func describeUser(proc, point string) string {
	how := processUse(proc, point)
	if how == "" {
		return ""
	}
	comm, err := os.ReadFile(proc + "/comm")
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return "" // it has just ended
	}
	return fmt.Sprintf("%s (pid %s, %s)", escapeName(strings.TrimSpace(string(comm))), filepath.Base(proc), how)
}

// processUse says how a process uses the mount: "" when it does not.
func processUse(proc, point string) string {
	for _, link := range []struct{ name, how string }{
		{"cwd", "works in"}, {"root", "has its root in"}, {"exe", "runs from"},
	} {
		if to, err := os.Readlink(filepath.Join(proc, link.name)); err == nil && isBelow(point, to) {
			return link.how + " " + escapeName(to)
		}
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil && isBelow(point, to) {
			return "has " + escapeName(to) + " open"
		}
	}
	if maps, err := os.ReadFile(filepath.Join(proc, "maps")); err == nil && mapsBelow(string(maps), point) {
		return "maps a file"
	}
	return ""
}

func isBelow(point, path string) bool {
	_, in := below(point, path)
	return in
}

// mapsBelow looks for a file below point in proc_pid_maps(5).
func mapsBelow(maps, point string) bool {
	return slices.ContainsFunc(strings.Split(maps, "\n"), func(line string) bool {
		_, path, ok := strings.Cut(line, "/")
		return ok && isBelow(point, "/"+path)
	})
}
