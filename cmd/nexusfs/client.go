package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// client calls the control protocol: of a daemon, or of a store that this
// process opened for the one command.
type client struct {
	http  http.Client
	close func() error // ends what connect started; never nil
	// Daemon says that a running daemon answers.
	Daemon bool
}

// Close ends the connection and, without a daemon, the opened store.
func (c *client) Close() error {
	c.http.CloseIdleConnections()
	return c.close()
}

// dialDaemon returns a client of the daemon behind a control socket.
func dialDaemon(socket string) *client {
	c := &client{close: func() error { return nil }, Daemon: true}
	c.http.Transport = transport(func(ctx context.Context, _, _ string) (net.Conn, error) { return dialControl(ctx, socket) })
	return c
}

func transport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	const buffer = 64 << 10 // dump and load move megabytes
	return &http.Transport{DialContext: dial, WriteBufferSize: buffer, ReadBufferSize: buffer}
}

// inProcess returns a client whose requests go to h over pipes. end closes the
// store behind h.
func inProcess(h http.Handler, end func() error) *client {
	l := newPipeListener()
	server := &http.Server{Handler: h, ConnContext: withPeer}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // ends with ErrServerClosed
	}()
	c := &client{}
	c.http.Transport = transport(func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) })
	c.close = func() error {
		err := server.Shutdown(context.Background())
		<-served
		return errors.Join(err, end())
	}
	return c
}

// pipeListener hands one end of a pipe to a server in this process.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener; the server calls it once.
func (l *pipeListener) Close() error { close(l.done); return nil }

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "in-process", Net: "unix"} }

// roundTrip sends one request and turns every failure into a sentence. body
// may be nil.
func (c *client) roundTrip(ctx context.Context, method, path string, args url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "nexusfs", Path: "/v1/" + path, RawQuery: args.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set(versionHeader, controlVersion)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.connectionError(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e apiError
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // a cut answer does not decode
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		return nil, fail(exitDaemon, "the daemon does not know the command %q: it runs another version of nexusfs; mount again with this one", path)
	}
	return nil, &exitError{code: e.Exit, err: &e}
}

func (c *client) connectionError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fail(exitSignal, "interrupted")
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || isReset(err) {
		return fail(exitDaemon, "the daemon closed the connection: only root and the user who mounted may talk to it, and it may have just ended; see its log")
	}
	return fail(exitDaemon, "the daemon does not answer: %w", err)
}

// get and post ask for one object.
func (c *client) get(ctx context.Context, path string, args url.Values, out any) error {
	return c.call(ctx, http.MethodGet, path, args, out)
}

func (c *client) post(ctx context.Context, path string, args url.Values, out any) error {
	return c.call(ctx, http.MethodPost, path, args, out)
}

func (c *client) call(ctx context.Context, method, path string, args url.Values, out any) error {
	resp, err := c.roundTrip(ctx, method, path, args, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fail(exitDaemon, "the daemon's answer was cut: %w", err)
	}
	return nil
}

// streamSink takes the parts of a stream. Nil functions skip.
type streamSink struct {
	item     func(json.RawMessage) error
	progress func(progress)
}

// stream asks for many items; end, when not nil, takes the last object.
func (c *client) stream(ctx context.Context, method, path string, args url.Values, sink streamSink, end any) error {
	resp, err := c.roundTrip(ctx, method, path, args, nil)
	if err != nil {
		return err
	}
	return readStream(ctx, resp, sink, end)
}

// upload is stream with a body, which is sent while items arrive.
func (c *client) upload(ctx context.Context, path string, args url.Values, body io.Reader, sink streamSink, end any) error {
	resp, err := c.roundTrip(ctx, http.MethodPost, path, args, body)
	if err != nil {
		return err
	}
	return readStream(ctx, resp, sink, end)
}

func readStream(ctx context.Context, resp *http.Response, sink streamSink, end any) error {
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10))
	for {
		var e envelope
		if err := dec.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return fail(exitSignal, "interrupted")
			}
			return fail(exitDaemon, "the daemon's answer was cut: did it end? %w", err)
		}
		switch {
		case e.Error != nil:
			return &exitError{code: e.Error.Exit, err: e.Error}
		case e.End != nil:
			if end == nil {
				return nil
			}
			return json.Unmarshal(e.End, end)
		case e.Progress != nil && sink.progress != nil:
			sink.progress(*e.Progress)
		case e.Item != nil && sink.item != nil:
			if err := sink.item(e.Item); err != nil {
				return err
			}
		}
	}
}

// raw copies an answer of bytes to w. A trailer says whether it is whole.
func (c *client) raw(ctx context.Context, path string, args url.Values, w io.Writer) error {
	resp, err := c.roundTrip(ctx, http.MethodGet, path, args, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return withCode(exitFailed, fmt.Errorf("copying: %w", err))
	}
	if msg := resp.Trailer.Get(errorTrailer); msg != "" {
		return fail(exitFailed, "%s", msg)
	}
	return nil
}

// errorTrailer carries what went wrong after bytes had been sent.
const errorTrailer = "Nexusfs-Error"
