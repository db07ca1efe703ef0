package certs

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node makes a folder with a certificate for id.
func node(t *testing.T, a *Authority, id string, now time.Time) string {
	t.Helper()
	dir := t.TempDir()
	key, err := NewKey()
	check(t, err)
	cert, err := a.Issue(id, key.Public(), now)
	check(t, err)
	check(t, Install(dir, key, cert, a.Certificate()))
	return dir
}

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority("g", time.Now())
	check(t, err)
	return a
}

func loader(t *testing.T, dir string) *Loader {
	t.Helper()
	l, err := NewLoader(dir)
	check(t, err)
	return l
}

// shake connects a client to a server and returns the name that the server
// sees, and what went wrong on either side.
func shake(t *testing.T, client, server *tls.Config) (string, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { _ = l.Close() }()
	type end struct {
		name string
		err  error
	}
	done := make(chan end, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- end{err: err}
			return
		}
		defer func() { _ = raw.Close() }()
		conn := tls.Server(raw, server)
		if err := conn.Handshake(); err != nil {
			done <- end{err: err}
			return
		}
		_, err = conn.Write([]byte{1})
		done <- end{Name(conn.ConnectionState()), err}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	check(t, err)
	defer func() { _ = raw.Close() }()
	conn := tls.Client(raw, client)
	_, cerr := conn.Read(make([]byte, 1)) // handshakes; a refusal of the server comes with it
	if cerr != nil {
		_ = raw.Close()
	} else if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("TLS version %x", v)
	}
	e := <-done
	return e.name, errors.Join(e.err, cerr)
}

func TestBothSidesAreChecked(t *testing.T) {
	ours, theirs := authority(t), authority(t)
	now := time.Now()
	a, b := loader(t, node(t, ours, "000000000000000a", now)), loader(t, node(t, ours, "000000000000000b", now))
	stranger := loader(t, node(t, theirs, "000000000000000a", now))
	old := loader(t, node(t, ours, "000000000000000a", now.Add(-2*NodeLife)))
	plain := b.Server()
	plain.MaxVersion, plain.MinVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tc := range []struct {
		name           string
		client, server *tls.Config
		want           string // of the error; "": none
	}{
		{"good", a.Client("000000000000000b"), b.Server(), ""},
		{"another node answers", a.Client("000000000000000c"), b.Server(), "not 000000000000000c"},
		{"a strange client", stranger.Client("000000000000000b"), b.Server(), "unknown authority"},
		{"a strange server", a.Client("000000000000000a"), stranger.Server(), "unknown authority"},
		{"an expired client", old.Client("000000000000000b"), b.Server(), "expired"},
		{"TLS 1.2", a.Client("000000000000000b"), plain, "version"},
	} {
		name, err := shake(t, tc.client, tc.server)
		switch {
		case tc.want == "" && (err != nil || name != "000000000000000a"):
			t.Errorf("%s: %q, %v", tc.name, name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestJoiningChecksThePin(t *testing.T) {
	ours, theirs := authority(t), authority(t)
	server := loader(t, node(t, ours, "000000000000000a", time.Now())).Server()
	pin, err := Pin(ours.Certificate())
	check(t, err)
	if name, err := shake(t, Joining(pin), server); err != nil || name != "" {
		t.Errorf("with the pin: %q, %v", name, err)
	}
	wrong, err := Pin(theirs.Certificate())
	check(t, err)
	if _, err := shake(t, Joining(wrong), server); err == nil {
		t.Error("with another pin: no error")
	}
}

// TestRotation replaces the authority in the three steps that Trust names: at
// each point, whichever of the nodes have done the step, they connect.
func TestRotation(t *testing.T) {
	before, after := authority(t), authority(t)
	now := time.Now()
	ids := []string{"000000000000000a", "000000000000000b"}
	dirs := []string{node(t, before, ids[0], now), node(t, before, ids[1], now)}
	loaders := []*Loader{loader(t, dirs[0]), loader(t, dirs[1])}
	connect := func(when string) {
		t.Helper()
		for i := range 2 {
			if _, err := shake(t, loaders[i].Client(ids[1-i]), loaders[1-i].Server()); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	both := func(when string, step func(i int)) {
		t.Helper()
		for i := range 2 {
			step(i)
			connect(when)
		}
	}
	both("trusting the new one", func(i int) { check(t, Trust(dirs[i], after.Certificate())) })
	both("using the new one", func(i int) {
		key, err := Key(dirs[i])
		check(t, err)
		request, err := Request(key)
		check(t, err)
		cert, err := after.IssueTo(ids[i], request, now)
		check(t, err)
		trust, err := loaders[i].Trusted()
		check(t, err)
		check(t, Install(dirs[i], nil, cert, trust))
	})
	both("distrusting the old one", func(i int) { check(t, Distrust(dirs[i], after.Certificate())) })
	late := loader(t, node(t, before, "000000000000000c", now))
	if _, err := shake(t, late.Client(ids[0]), loaders[0].Server()); err == nil {
		t.Error("the old authority is trusted still")
	}
}

func TestAuthorityIsStored(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadAuthority(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none there: %v", err)
	}
	a := authority(t)
	check(t, a.Save(dir))
	b, err := LoadAuthority(dir)
	check(t, err)
	if !bytes.Equal(a.Certificate(), b.Certificate()) {
		t.Error("another authority was read")
	}
	other, err := NewKey()
	check(t, err)
	request, err := Request(other)
	check(t, err)
	request[len(request)-1] ^= 1
	if _, err := b.IssueTo("x", request, time.Now()); err == nil {
		t.Error("a request without its key was answered")
	}
	if _, err := NewLoader(dir); err == nil {
		t.Error("a loader without a certificate")
	}
}
