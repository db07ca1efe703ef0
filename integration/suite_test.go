package integration

import (
	"os"
	"path/filepath"
	"sort"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestPosixSuite runs go-fuse's own suite whole, one case in the form that
// Linux can pass: FcntlFlockLocksFile wants a process's own fcntl lock to
// refuse it a second one, which fcntl(2) excludes and go-fuse's own run of the
// suite on a real filesystem leaves out.
func TestPosixSuite(t *testing.T) {
	cases := make([]string, 0, len(posixtest.All))
	for name := range posixtest.All {
		cases = append(cases, name)
	}
	sort.Strings(cases)
	for _, name := range cases {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "FcntlFlockLocksFile":
				harness.Targets(t, ownLocksMerge)
			case "OpenSymlinkRace": // compares device numbers: pointless on the machine's own filesystem
				harness.Mounted(t, func(t *testing.T, dir string) {
					if stat(t, dir).Dev == stat(t, "/etc/passwd").Dev {
						t.Skip("the test directory is on the device of /etc")
					}
					posixtest.All[name](t, dir)
				})
			default:
				harness.Targets(t, posixtest.All[name])
			}
		})
	}
}

// ownLocksMerge is posixtest.FcntlFlockLocksFile by fcntl(2): one process's
// POSIX locks replace each other, open file descriptions conflict.
func ownLocksMerge(t *testing.T, dir string) {
	p := filepath.Join(dir, "test")
	f1 := open(t, p, os.O_RDWR|os.O_CREATE)
	f2 := open(t, p, os.O_RDWR)
	wr := unix.Flock_t{Type: unix.F_WRLCK}
	must(t, unix.FcntlFlock(f1.Fd(), unix.F_SETLK, &wr))
	rd := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f2.Fd(), unix.F_SETLK, &rd); err != nil {
		t.Errorf("a second lock of the same process: %v", err)
	}
	rd = unix.Flock_t{Type: unix.F_WRLCK}
	wantErrno(t, "an OFD lock against it", unix.FcntlFlock(f2.Fd(), unix.F_OFD_SETLK, &rd), unix.EAGAIN)
}
