package fusefs

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Subtype is the filesystem's type behind 'fuse.' in the table of mounts.
const Subtype = "nexusfs"

// fsType is the type in the table of mounts.
const fsType = "fuse." + Subtype

// DefaultCacheTTL is how long the kernel keeps names and attributes of a store
// that one node alone can mount: nobody else changes them, and what commands
// change is told.
const DefaultCacheTTL = 24 * time.Hour

// Options say how to mount. Mountpoint is required.
type Options struct {
	Mountpoint string
	Source     string   // what the table of mounts shows; empty: nexusfs
	ReadOnly   bool     //
	AllowOther bool     // other users than the mounting one may use it; always so for root
	Debug      bool     // log every request
	Extra      []string // further options as after -o, one each: "noexec", "max_read=65536"

	// CacheTTL is how long the kernel may keep names and attributes; 0 is
	// DefaultCacheTTL, negative is not at all.
	CacheTTL time.Duration
	// Shared says that other daemons may open the same zone: absent names are
	// then not kept, and directories are opened by a request (P13, P14). While
	// others are there, or always where the kernel cannot drop its names at once,
	// nothing is kept for longer than meta.KernelTTLShared.
	Shared bool

	Store   string                 // shown as attribute user.nexusfs.store
	Control string                 // socket shown as attribute user.nexusfs.control
	Status  func() ([]byte, error) // content of .nexusfs/status; nil: there is none

	Notifier *Notifier    // nil: one of its own
	Log      *slog.Logger // nil: discarded
}

// mountFlags are the options that are flags of mount(2): what each sets or clears.
var mountFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
	"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
	"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true},
	"dirsync": {unix.MS_DIRSYNC, false},
	"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true},
	"nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true},
	"strictatime": {unix.MS_STRICTATIME, false}, "nostrictatime": {unix.MS_STRICTATIME, true},
	"lazytime": {unix.MS_LAZYTIME, false}, "nolazytime": {unix.MS_LAZYTIME, true},
}

// setupOnly are options of mount(8) and fstab(5) that say nothing about the
// mount itself.
var setupOnly = map[string]bool{
	"defaults": true, "auto": true, "noauto": true, "nofail": true, "_netdev": true,
	"user": true, "nouser": true, "users": true, "owner": true, "group": true,
	"nonempty": true, "default_permissions": true,
}

// settings are Options after the extra ones were read.
type settings struct {
	Options
	flags   uintptr
	maxRead int      // bytes in one READ
	names   []string // the flags' names, in order, for fusermount3
	notes   []string // what was left out, and why
}

// maxRequest is the largest read or write in one request.
const maxRequest = 1 << 20

// parse reads the extra options. root is false for an ordinary user, to whom
// set-user-id files and device nodes of his own mount are not given.
func (o Options) parse(root bool) (*settings, error) {
	s := &settings{Options: o, maxRead: maxRequest}
	if o.ReadOnly {
		s.Extra = append([]string{"ro"}, s.Extra...)
	}
	for _, opt := range s.Extra {
		if err := s.add(opt, root); err != nil {
			return nil, err
		}
	}
	if root {
		s.AllowOther = true
	}
	if s.Source == "" {
		s.Source = Subtype
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.CacheTTL == 0 {
		s.CacheTTL = DefaultCacheTTL
	}
	return s, nil
}

func (s *settings) add(opt string, root bool) error {
	name, value, hasValue := strings.Cut(opt, "=")
	if f, isFlag := mountFlags[name]; isFlag && !hasValue {
		if !root && (name == "suid" || name == "dev") {
			s.notes = append(s.notes, fmt.Sprintf("mount option %q is left out: only root can give it", name))
			return nil
		}
		if f.clear {
			s.flags &^= f.flag
		} else {
			s.flags |= f.flag
		}
		s.ReadOnly = s.flags&unix.MS_RDONLY != 0
		s.names = append(s.names, name)
		return nil
	}
	switch {
	case opt == "", setupOnly[name] && !hasValue, strings.HasPrefix(name, "x-"), name == "comment":
	case opt == "allow_other":
		s.AllowOther = true
	case opt == "debug":
		s.Debug = true
	case name == "fsname" && value != "":
		s.Source = value
	case name == "subtype" && value == Subtype:
	case name == "max_read":
		n, err := strconv.Atoi(value)
		if err != nil || n < 4096 || n > maxRequest {
			return fmt.Errorf("mount option %q: want max_read=N with N from 4096 to %d", opt, maxRequest)
		}
		s.maxRead = n
	default:
		return fmt.Errorf("mount option %q is not known; 'nexusfs mount --help' lists those that are", opt)
	}
	return nil
}
