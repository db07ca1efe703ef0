package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMayControl(t *testing.T) {
	for _, tc := range []struct {
		peer, daemon uint32
		want         bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}} {
		if got := mayControl(peer{UID: tc.peer}, tc.daemon); got != tc.want {
			t.Errorf("uid %d to a daemon of uid %d: got %v, want %v", tc.peer, tc.daemon, got, tc.want)
		}
	}
}

// TestControlSocketOnALongPath: a store may lie deeper than a socket's address
// can say, and the kernel says who calls.
func TestControlSocketOnALongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "control.sock")
	if err := os.WriteFile(path, []byte("a dead daemon's"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Mode()&os.ModeSocket == 0 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	conn, err := dialControl(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := <-accepted
	defer got.Close()
	who := got.(*peerConn).peer
	if who != selfPeer() {
		t.Errorf("the peer is %+v, want %+v", who, selfPeer())
	}
	if _, err := dialControl(t.Context(), filepath.Join(dir, "none.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that is not there: %v", err)
	}
}
