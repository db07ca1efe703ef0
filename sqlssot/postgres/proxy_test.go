package postgres

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"testing"
)

// proxy stands between a store and its server and cuts connections at the worst
// moment. fault is asked for each piece that a client sends.
type proxy struct {
	l      net.Listener
	server string

	mu    sync.Mutex
	fault func(piece []byte, c *proxied) bool // guarded by mu; true: the piece is taken care of
	wg    sync.WaitGroup
}

// cancelRequest begins the message by which a driver asks the server to end the
// statement of a connection that it lost.
var cancelRequest = []byte{0, 0, 0, 16, 4, 210, 22, 46}

// proxied is one connection through the proxy.
type proxied struct {
	client, server net.Conn
	swallow        chan struct{} // closed by the first answer that is not passed on; nil: all are
	mu             sync.Mutex
}

func newProxy(tb testing.TB, serverPort int) *proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{l: l, server: fmt.Sprintf("127.0.0.1:%d", serverPort)}
	p.wg.Go(p.accept)
	tb.Cleanup(func() {
		l.Close()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url(database string) string {
	return fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", p.l.Addr(), database)
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.server)
		if err != nil {
			c.Close()
			continue
		}
		x := &proxied{client: c, server: s}
		p.wg.Go(func() { p.up(x) })
		p.wg.Go(func() { x.down() })
	}
}

// up passes on what the client sends.
func (p *proxy) up(x *proxied) {
	defer x.client.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := x.client.Read(buf)
		if err != nil {
			x.mu.Lock()
			if x.swallow == nil {
				x.server.Close()
			}
			x.mu.Unlock()
			return
		}
		if bytes.HasPrefix(buf[:n], cancelRequest) {
			x.server.Close() // a network that breaks loses these, too
			return
		}
		p.mu.Lock()
		fault := p.fault
		p.mu.Unlock()
		if fault != nil && fault(buf[:n], x) {
			continue
		}
		if _, err := x.server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// down passes on what the server answers.
func (x *proxied) down() {
	defer x.server.Close()
	defer x.client.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := x.server.Read(buf)
		if err != nil {
			return
		}
		x.mu.Lock()
		swallow := x.swallow
		x.mu.Unlock()
		if swallow != nil {
			close(swallow)
			return
		}
		if _, err := x.client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// onCommit arms a fault for the next batch that is sent.
func (p *proxy) onCommit(do func(piece []byte, c *proxied)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = func(piece []byte, c *proxied) bool {
		if !bytes.Contains(piece, []byte(commitName)) {
			return false
		}
		p.mu.Lock()
		p.fault = nil
		p.mu.Unlock()
		do(bytes.Clone(piece), c)
		return true
	}
}
