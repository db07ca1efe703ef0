package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// Figures of the connection to the kernel.
const (
	maxBackground   = 64       // requests that nobody waits for (read-ahead, page writes)
	maxRequestBytes = 64 << 20 // memory of requests being served
	readAhead       = 4 << 20  // bytes, where the kernel lets us say so
)

// capabilities that the kernel is asked for besides go-fuse's own set.
const capabilities = fuse.CAP_HANDLE_KILLPRIV_V2 | // set-user-id bits go with the write, not before it
	fuse.CAP_DONT_MASK | // default ACLs replace the umask
	fuse.CAP_SETXATTR_EXT | // an ACL says whether set-group-id goes
	fuse.CAP_ATOMIC_O_TRUNC | // open and truncate in one request
	fuse.CAP_READDIRPLUS_AUTO | // attributes only for who asks for them
	fuse.CAP_NO_OPENDIR_SUPPORT |
	fuse.CAP_EXPORT_SUPPORT | // NFS exports and open_by_handle_at(2)
	fuse.CAP_ASYNC_DIO

// Server is a mount that is served.
type Server struct {
	fuse *fuse.Server
	raw  *rawFS
	set  *settings

	mountpoint string
	device     int // our own descriptor of the connection, for IncEpoch; -1 once closed
	stop       context.CancelFunc
	done       chan struct{} // closed when Serve is through
	closeOnce  sync.Once
}

// Mount mounts fs and returns once the kernel has the mount and has exchanged
// greetings with it; Serve answers its requests, those too that came before.
// Errors are sentences for the user. A dead mount that an earlier daemon left at
// the same place is cleaned up first.
//
// Neither asks the mount itself for anything, nor may whoever runs them: a
// process that is killed while it waits for an answer of its own mount, or
// closes a file there, waits for ever. Nobody is left to answer, and the kernel
// does not end the connection before the process is gone.
func Mount(fs *meta.FS, o Options) (*Server, error) {
	return mountOn(core{fs}, o)
}

func mountOn(fs filesystem, o Options) (*Server, error) {
	root := os.Geteuid() == 0
	set, err := o.parse(root)
	if err != nil {
		return nil, err
	}
	if err := CleanStale(set.Mountpoint); err != nil {
		return nil, err
	}
	if set.Mountpoint, err = checkMountpoint(set.Mountpoint); err != nil {
		return nil, err
	}
	for _, note := range set.notes {
		set.Log.Warn(note)
	}
	device, err := attachDevice(set, root)
	if err != nil {
		return nil, err
	}
	s, err := newServer(fs, set, device)
	if err != nil {
		if uerr := Unmount(set.Mountpoint, true); uerr != nil {
			err = errors.Join(err, uerr)
		}
		return nil, fmt.Errorf("mounting on %s: %w", set.Mountpoint, err)
	}
	s.raiseReadAhead()
	return s, nil
}

// newServer answers the kernel's greeting on device, which it owns from now on.
func newServer(fs filesystem, set *settings, device int) (*Server, error) {
	own, err := unix.FcntlInt(uintptr(device), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(device)
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	raw := newRaw(ctx, fs, set)
	s := &Server{raw: raw, set: set, mountpoint: set.Mountpoint, device: own, stop: stop, done: make(chan struct{})}
	// Errors of the kernel's side only; what a request fails with is logged by rawFS.
	level := slog.LevelWarn
	if set.Debug {
		level = slog.LevelDebug
	}
	s.fuse, err = fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", device), &fuse.MountOptions{
		Name:                     Subtype,
		MaxBackground:            maxBackground,
		MaxInflightRequestBytes:  maxRequestBytes,
		MaxWrite:                 maxRequest,
		MaxReadAhead:             readAhead,
		ExplicitDataCacheControl: true,
		EnableAcl:                true,
		DisableSplice:            true,
		MaxStackDepth:            1,
		PanicHandler:             crash,
		ExtraCapabilities:        capabilities,
		Debug:                    set.Debug,
		Logger:                   slog.NewLogLogger(set.Log.Handler(), level),
	})
	if err != nil {
		stop()
		unix.Close(own)
		return nil, err
	}
	raw.pass.init(s)
	raw.noEpoch = s.fuse.KernelSettings().Minor < minorIncEpoch
	return s, nil
}

// crash ends the daemon on a panic of ours. Going on would leave behind a state
// that nobody understands, a commit path without a leader for one; a daemon
// that died loses nothing that was acknowledged.
func crash(v any) fuse.Status { panic(v) }

func newRaw(ctx context.Context, fs filesystem, set *settings) *rawFS {
	attest := newAttester()
	r := &rawFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		fs:            fs, ctx: ctx, log: set.Log, notes: set.Notifier, attest: attest, resolve: attest.Resolve,
		cache:    newTTL(set.CacheTTL),
		cacheDir: newTTL(min(set.CacheTTL, maxDirTTL)),
		store:    set.Store, control: set.Control,
		virtual: virtual{status: set.Status, started: time.Now().UnixNano()},
	}
	if r.notes == nil {
		r.notes = NewNotifier(set.Log)
	}
	if r.several = set.Shared; !r.several {
		r.absent, r.noDirs = r.cache, true
	}
	return r
}

// Notifier returns what tells this mount's kernel about changes.
func (s *Server) Notifier() *Notifier { return s.raw.notes }

// Mountpoint returns the absolute path of the mount.
func (s *Server) Mountpoint() string { return s.mountpoint }

// OpenFiles counts the files that are open.
func (s *Server) OpenFiles() int { return s.raw.files.open() }

// Serve answers requests until the mount is gone: by Unmount, or by umount(8)
// from outside. It is called once.
func (s *Server) Serve() {
	ctx, cancel := context.WithCancel(context.Background())
	s.raw.notes.attach(s, s.raw.files.nodes)
	notifying := make(chan struct{})
	go func() {
		defer close(notifying)
		s.raw.notes.run(ctx)
	}()
	s.fuse.Serve()
	cancel()
	<-notifying
	s.end()
	close(s.done)
}

// end lets go of what the mount held. A mount that was cut off leaves files
// open; their contents are committed here.
func (s *Server) end() {
	s.raw.files.drain(func(of *openFile) { of.close(s.raw) })
	s.raw.attest.close()
	s.stop()
	s.closeOnce.Do(func() { unix.Close(s.device) })
}

// Wait blocks until the mount is gone and everything it held is let go of.
func (s *Server) Wait() { <-s.done }

// raiseReadAhead lets the kernel read further ahead than its default of 128
// KiB. Only root may; without it large files are read in smaller requests.
func (s *Server) raiseReadAhead() {
	table, err := readMounts()
	if err != nil {
		return
	}
	if e := innermost(table, s.mountpoint); e != nil && e.ours() {
		path := "/sys/class/bdi/" + e.device + "/read_ahead_kb"
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d", readAhead>>10), 0); err != nil {
			s.raw.log.Debug("the kernel's read-ahead stays as it is", "err", err)
		}
	}
}

// Unmount ends the mount and waits until Serve has come to its end. lazy
// detaches it from the tree even while files in it are open; then Serve goes on
// until they are closed, and Unmount does not wait for that.
func (s *Server) Unmount(lazy bool) error {
	select {
	case <-s.done:
		return nil
	default:
	}
	if err := Unmount(s.mountpoint, lazy); err != nil {
		return err
	}
	if !lazy {
		<-s.done
	}
	return nil
}

// Notifications that go-fuse has methods for; see kernel.

// InodeNotify makes the kernel drop an inode's attributes, and from off >= 0 on its pages.
func (s *Server) InodeNotify(node uint64, off, length int64) fuse.Status {
	return s.fuse.InodeNotify(node, off, length)
}

// EntryNotify makes the kernel drop a name.
func (s *Server) EntryNotify(parent uint64, name string) fuse.Status {
	return s.fuse.EntryNotify(parent, name)
}

// DeleteNotify makes the kernel drop a name that was removed.
func (s *Server) DeleteNotify(parent, child uint64, name string) fuse.Status {
	return s.fuse.DeleteNotify(parent, child, name)
}

// notifyIncEpoch is FUSE_NOTIFY_INC_EPOCH, which the protocol has from minor
// version 44 on (Linux 6.16).
const (
	notifyIncEpoch = 8
	minorIncEpoch  = 44
)

// IncEpoch makes the kernel look every name of the mount up again. Linux
// before 6.16 does not know the message.
func (s *Server) IncEpoch() error {
	msg := make([]byte, 16) // fuse_out_header: length, code, unique 0
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], notifyIncEpoch)
	_, err := unix.Write(s.device, msg)
	return err
}

// checkMountpoint says what is wrong with a mountpoint, or returns its
// absolute path without symbolic links.
func checkMountpoint(path string) (string, error) {
	if path == "" {
		return "", errors.New("no mountpoint given")
	}
	full, err := resolve(path)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(full)
	switch {
	case err != nil && isNotExist(err):
		return "", fmt.Errorf("the mountpoint %s does not exist; make it first: mkdir -p %s", path, path)
	case err != nil:
		return "", fmt.Errorf("the mountpoint %s cannot be used: %w", path, err)
	case !st.IsDir():
		return "", fmt.Errorf("the mountpoint %s is not a directory", path)
	}
	table, err := readMounts()
	if err != nil {
		return "", err
	}
	if e := innermost(table, full); e != nil && e.path == full && e.ours() {
		return "", fmt.Errorf("%s is mounted on %s already; end that mount first: nexusfs umount %s", e.source, full, full)
	}
	if strings.ContainsRune(full, 0) {
		return "", fmt.Errorf("the mountpoint %q is not a path", path)
	}
	return full, nil
}
