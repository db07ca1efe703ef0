package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A socket's address holds 107 bytes, a store's path 4,095. So sockets are
// bound and reached as /proc/self/fd/N/NAME, with N the open directory.

// viaDir calls fn with a short path of the same file.
func viaDir(path string, fn func(short string) error) error {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return fn("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path))
}

// listenControl makes the control socket, for the owner alone. The caller
// holds the store's lock, so a socket that is there is a dead daemon's.
func listenControl(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	var l net.Listener
	err := viaDir(path, func(short string) error {
		ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		if err != nil {
			return err
		}
		ul.SetUnlinkOnClose(false) // the short name means nothing later
		l = ul
		return os.Chmod(short, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return &peerListener{Listener: l}, nil
}

// dialControl connects to a control socket.
func dialControl(ctx context.Context, path string) (net.Conn, error) {
	var conn net.Conn
	err := viaDir(path, func(short string) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", short)
		conn = c
		var op *net.OpError
		if errors.As(err, &op) {
			return op.Err // the short name says nothing to anybody
		}
		return err
	})
	return conn, err
}

// peer is who is at the other end of a control connection, as the kernel says.
type peer struct {
	UID, GID uint32
	PID      uint32
}

// mayControl lets root and the daemon's own user in.
func mayControl(p peer, daemonUID uint32) bool { return p.UID == 0 || p.UID == daemonUID }

// peerListener reads each connection's credentials when it is accepted and
// closes the connections of users who have no business here.
type peerListener struct{ net.Listener }

// peerConn is a connection with its credentials.
type peerConn struct {
	net.Conn
	peer peer
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(conn)
		if err != nil || !mayControl(p, uint32(os.Geteuid())) {
			conn.Close()
			continue
		}
		return &peerConn{conn, p}, nil
	}
}

func peerOf(conn net.Conn) (peer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return peer{}, fmt.Errorf("%T has no credentials", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return peer{}, err
	}
	if credErr != nil {
		return peer{}, credErr
	}
	return peer{UID: cred.Uid, GID: cred.Gid, PID: uint32(cred.Pid)}, nil
}

type peerKey struct{}

// withPeer is a server's ConnContext: handlers find the peer by peerFrom.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if pc, ok := conn.(*peerConn); ok {
		return context.WithValue(ctx, peerKey{}, pc.peer)
	}
	return context.WithValue(ctx, peerKey{}, selfPeer())
}

func selfPeer() peer {
	return peer{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: uint32(os.Getpid())}
}

func peerFrom(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}
