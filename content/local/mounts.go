package local

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// localDisks are filesystems that one kernel at a time has mounted: a lock on
// them is never lost while its holder lives.
var localDisks = []uint32{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
	unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.REISERFS_SUPER_MAGIC,
	unix.NILFS_SUPER_MAGIC, 0x2fc12fc1 /* ZFS */, 0xca451a4e /* bcachefs */, 0x3153464a, /* JFS */
}

// keepsLocksLocal names, by filesystem, the mount options with which flock
// reaches no other machine.
var keepsLocksLocal = map[string][]string{
	"nfs":    {"nolock", "local_lock=all", "local_lock=flock"},
	"nfs4":   {"nolock", "local_lock=all", "local_lock=flock"},
	"cifs":   {"nobrl"},
	"smb3":   {"nobrl"},
	"lustre": {"localflock"},
	"gfs2":   {"localflocks"},
	"ocfs2":  {"localflocks"},
}

// checkFilesystem refuses what cannot hold a folder that several machines
// share, and notes whether it is a local disk.
func (s *Store) checkFilesystem() error {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(s.opts.Dir, &st) }); err != nil {
		return fmt.Errorf("statfs %s: %w", s.opts.Dir, err)
	}
	s.opts.remote = s.opts.remote || !slices.Contains(localDisks, uint32(st.Type))
	m, err := mountOf(s.opts.Dir)
	if err != nil {
		return err
	}
	if o := m.localLocks(); o != "" {
		return meta.E("", 0, "", meta.KindNotSupported, fmt.Errorf(
			"%s is mounted with %s, so that its locks do not reach other machines: mount it without (NFS: local_lock=none)", s.opts.Dir, o))
	}
	return nil
}

// checkPunching says so when the filesystem cannot give back a part of a file.
// What else may be wrong with it shows when something is stored.
func (s *Store) checkPunching() {
	tmp := s.files.tempPath()
	fd, err := openFile(tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	defer unix.Unlink(tmp)
	err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
	if errors.Is(err, unix.EOPNOTSUPP) {
		s.log.Warn("the filesystem cannot give back a part of a file: space of freed content comes back when its segment is compacted", "dir", s.opts.Dir)
	}
}

// mountInfo is what matters of one line of /proc/self/mountinfo.
type mountInfo struct {
	fstype  string
	options []string // of the mount and of the filesystem
}

// localLocks returns the option that keeps locks on this machine, or "".
func (m mountInfo) localLocks() string {
	for _, o := range keepsLocksLocal[m.fstype] {
		if slices.Contains(m.options, o) {
			return o
		}
	}
	return ""
}

// mountOf finds the filesystem that holds path; one that the kernel does not
// list has no type.
func mountOf(path string) (mountInfo, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return mountInfo{}, fmt.Errorf("stat %s: %w", path, err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, err
	}
	defer f.Close()
	return findMount(f, fmt.Sprintf("%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev))))
}

// findMount finds a device ("MAJOR:MINOR") in a mount table.
func findMount(table io.Reader, device string) (mountInfo, error) {
	in := bufio.NewScanner(table)
	for in.Scan() {
		left, right, _ := strings.Cut(in.Text(), " - ")
		mount, fs := strings.Fields(left), strings.Fields(right)
		if len(mount) < 6 || len(fs) < 3 || mount[2] != device {
			continue
		}
		options := append(strings.Split(mount[5], ","), strings.Split(fs[2], ",")...)
		return mountInfo{fstype: fs[0], options: options}, nil
	}
	return mountInfo{}, in.Err()
}
