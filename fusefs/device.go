package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// devicePath is where the kernel offers FUSE.
const devicePath = "/dev/fuse"

// attachDevice mounts and returns the descriptor through which the kernel will
// ask. Root mounts by itself; others through the set-user-id helper.
func attachDevice(set *settings, root bool) (int, error) {
	if root {
		return mountDirect(set)
	}
	return mountHelped(set)
}

// mountDirect calls mount(2). As with other filesystems root's mount honours
// set-user-id files and device nodes unless told not to.
func mountDirect(set *settings) (int, error) {
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), set.maxRead)
	if set.AllowOther {
		opts += ",allow_other"
	}
	if err := unix.Mount(set.Source, set.Mountpoint, fsType, set.flags, opts); err != nil {
		unix.Close(fd)
		switch {
		case isDenied(err):
			return -1, fmt.Errorf("the kernel does not let this process mount (%w); in a container it needs "+
				"--cap-add SYS_ADMIN --device %s", err, devicePath)
		case isBusy(err):
			return -1, fmt.Errorf("the mountpoint %s is busy (%w)", set.Mountpoint, err)
		case isNoDevice(err):
			return -1, deviceError(err)
		}
		return -1, fmt.Errorf("mounting on %s: %w", set.Mountpoint, err)
	}
	return fd, nil
}

func deviceError(err error) error {
	switch {
	case isNotExist(err), isNoDevice(err):
		return fmt.Errorf("this machine has no %s (%w); load the module with 'modprobe fuse', or start the "+
			"container with --device %s", devicePath, err, devicePath)
	case isDenied(err):
		return fmt.Errorf("no permission to open %s (%w); ask the administrator for access to it", devicePath, err)
	}
	return fmt.Errorf("opening %s: %w", devicePath, err)
}

// helper finds fusermount3, which mounts for ordinary users.
func helper() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "/usr/bin/fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("fusermount3 is not installed, and without it only root can mount; " +
		"install it with 'apt install fuse3' (or your system's package of that name)")
}

// escapeOption protects what is special in fusermount3's list of options.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

// mountHelped lets fusermount3 mount; it sends the descriptor over a socket.
func mountHelped(set *settings) (int, error) {
	bin, err := helper()
	if err != nil {
		return -1, err
	}
	if _, err := os.Stat(devicePath); err != nil {
		return -1, deviceError(err)
	}
	opts := append([]string{
		"fsname=" + escapeOption(set.Source), "subtype=" + Subtype, "default_permissions",
		fmt.Sprintf("max_read=%d", set.maxRead),
	}, set.names...)
	if set.AllowOther {
		opts = append(opts, "allow_other")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("talking to %s: %w", bin, err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount")
	cmd := exec.Command(bin, "-o", strings.Join(opts, ","), "--", set.Mountpoint)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	theirs.Close()
	if err != nil {
		return -1, helperError(set.Mountpoint, said.String(), err)
	}
	return receiveDevice(pair[0])
}

// helperError makes a sentence of what fusermount3 said.
func helperError(mountpoint, said string, err error) error {
	said = strings.TrimSpace(said)
	hint := ""
	switch {
	case strings.Contains(said, "user_allow_other"):
		hint = "; add the line 'user_allow_other' to /etc/fuse.conf as root, or mount without allow_other"
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "no write access"):
		hint = "; the mountpoint must be a directory that you may write to"
	}
	if said == "" {
		said = err.Error()
	}
	return fmt.Errorf("mounting on %s: %s%s", mountpoint, said, hint)
}

// receiveDevice takes the descriptor that fusermount3 has sent.
func receiveDevice(sock int) (int, error) {
	var byte1 [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, byte1[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3 sent no descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, errors.New("fusermount3 sent no descriptor")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("fusermount3 sent no descriptor")
	}
	return fds[0], nil
}

// How often a busy mount is tried again: the kernel may still be closing files
// of processes that have ended.
const (
	unmountTries = 6
	unmountPause = 5 * time.Millisecond // doubled each time
)

// Unmount ends a mount of nexusfs, whoever serves it. lazy detaches it from the
// tree at once even while files in it are open.
func Unmount(mountpoint string, lazy bool) error {
	pause := unmountPause
	for try := 1; ; try++ {
		err := unmountOnce(mountpoint, lazy)
		switch {
		case err == nil:
			return nil
		case !isBusy(err):
			return err
		case try == unmountTries:
			return fmt.Errorf("%s is busy: a process works in it or has files open; 'fuser -vm %s' names it. "+
				"End it and try again, or detach the mount with --lazy (%w)", mountpoint, mountpoint, err)
		}
		time.Sleep(pause)
		pause *= 2
	}
}

func unmountOnce(mountpoint string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		err := unix.Unmount(mountpoint, flags)
		switch {
		case err == nil || isBusy(err):
			return err
		case isNotMounted(err):
			return fmt.Errorf("nothing is mounted on %s", mountpoint)
		}
		return fmt.Errorf("unmounting %s: %w", mountpoint, err)
	}
	bin, err := helper()
	if err != nil {
		return err
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	out, err := exec.Command(bin, append(args, "--", mountpoint)...).CombinedOutput()
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(string(out))
	if strings.Contains(strings.ToLower(said), "busy") {
		return fmt.Errorf("%s: %w", said, errBusy)
	}
	if said == "" {
		said = err.Error()
	}
	return fmt.Errorf("unmounting %s: %s", mountpoint, said)
}

// CleanStale removes the mount that a daemon of nexusfs left behind when it
// died: 'Transport endpoint is not connected'. Everything else it leaves alone:
// it returns nil where nothing is dead, and an error where something is that
// is not ours.
func CleanStale(mountpoint string) error {
	full, err := resolve(mountpoint)
	if err != nil {
		return err
	}
	// More than one dead mount may lie on top of another.
	for range maxLinks {
		var st unix.Statfs_t // stat(2) may be answered from the kernel's cache
		if err := unix.Statfs(full, &st); err == nil || !isDead(err) {
			return nil
		}
		table, err := readMounts()
		if err != nil {
			return err
		}
		e := innermost(table, full)
		switch {
		case e == nil || e.path != full && !e.ours():
			return fmt.Errorf("%s is not reachable: the filesystem it lies in is dead", full)
		case e.path != full:
			return fmt.Errorf("%s lies in a dead mount of nexusfs; end that first: nexusfs umount %s", full, e.path)
		case !e.ours():
			return fmt.Errorf("%s is a dead mount of another filesystem (%s); remove it with 'umount -l %s'",
				full, e.fstype, full)
		}
		if err := Unmount(full, true); err != nil {
			return fmt.Errorf("removing the dead mount: %w", err)
		}
	}
	return fmt.Errorf("%s is covered by too many dead mounts", full)
}
