package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nexusfs/internal/s3test"
	"nexusfs/meta"
)

// fault is a transport that answers in the server's place, or changes what it
// answers. n counts its requests from 1 on.
type fault struct {
	do func(n int64, req *http.Request) (*http.Response, error)
	n  atomic.Int64
}

func (f *fault) RoundTrip(req *http.Request) (*http.Response, error) {
	return f.do(f.n.Add(1), req)
}

// pass lets the server answer.
func pass(req *http.Request) (*http.Response, error) { return http.DefaultTransport.RoundTrip(req) }

// answer makes S3's error of a code.
func answer(status int, code string) func(int64, *http.Request) (*http.Response, error) {
	return func(_ int64, req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			req.Body.Close()
		}
		text := fmt.Sprintf("<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>said %s</Message></Error>", code, code)
		return &http.Response{
			StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
			Header: http.Header{"Content-Type": {"application/xml"}}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)),
		}, nil
	}
}

// first does something n times and lets the server answer after.
func first(n int64, do func(int64, *http.Request) (*http.Response, error)) func(int64, *http.Request) (*http.Response, error) {
	return func(i int64, req *http.Request) (*http.Response, error) {
		if i <= n {
			return do(i, req)
		}
		return pass(req)
	}
}

// changed changes what the server sends of objects.
func changed(change func(io.Reader) io.Reader) func(int64, *http.Request) (*http.Response, error) {
	return func(_ int64, req *http.Request) (*http.Response, error) {
		resp, err := pass(req)
		if err == nil && req.Method == http.MethodGet {
			resp.Body = struct {
				io.Reader
				io.Closer
			}{change(resp.Body), resp.Body}
		}
		return resp, err
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// cut loses the connection in the middle of a body.
func cut(r io.Reader) io.Reader {
	return io.MultiReader(io.LimitReader(r, 30_000), brokenReader{errors.New("connection reset by peer")})
}

// short ends a body too early, as a proxy does that lost its own connection.
func short(r io.Reader) io.Reader {
	return io.MultiReader(io.LimitReader(r, 30_000), brokenReader{io.ErrUnexpectedEOF})
}

// wrong changes one byte of a body.
func wrong(r io.Reader) io.Reader {
	p, err := io.ReadAll(r)
	if err != nil {
		return brokenReader{err}
	}
	p[len(p)-1] ^= 1
	return bytes.NewReader(p)
}

// slow lets the server answer late.
func slow(_ int64, req *http.Request) (*http.Response, error) {
	time.Sleep(200 * time.Millisecond)
	return pass(req)
}

// unanswered waits until the client gives up.
func unanswered(_ int64, req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// lost lets the server do its work and loses the answer.
func lost(_ int64, req *http.Request) (*http.Response, error) {
	resp, err := pass(req)
	if err == nil {
		resp.Body.Close()
	}
	return nil, errors.Join(err, errors.New("connection reset by peer"))
}

// noRanges sends more than a range that was asked for.
func noRanges(_ int64, req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet {
		return pass(req)
	}
	const n = 8 << 20
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Length": {fmt.Sprint(n)}, "Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}},
		Body:   io.NopCloser(io.LimitReader(zeros{}, n)), ContentLength: n,
	}, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

const (
	noKind    = meta.Kind(255)          // no error
	testTries = 3                       // of a request
	testLimit = 2 * time.Second         // of a request that is never answered
	backoff   = 1400 * time.Millisecond // at most, between testTries tries
)

// faults is the table of content/s3/DESIGN.md: what each fault makes of a Read
// and a Put, and what the error says.
var faults = []struct {
	name      string
	do        func(int64, *http.Request) (*http.Response, error)
	read, put meta.Kind
	says      string
}{
	{"slow", slow, noKind, noKind, ""},
	{"408 once", first(1, answer(http.StatusRequestTimeout, "RequestTimeout")), noKind, noKind, ""},
	{"never answering", unanswered, meta.KindIO, meta.KindIO, "did not answer in time"},
	{"losing the connection once", first(1, lost), noKind, noKind, ""},
	{"losing every connection", lost, meta.KindIO, meta.KindIO, "cannot be reached"},
	{"cut in the body, twice", first(2, changed(cut)), noKind, noKind, ""},
	{"cut in every body", changed(cut), meta.KindIO, noKind, "connection reset"},
	{"short body, twice", first(2, changed(short)), noKind, noKind, ""},
	{"short in every body", changed(short), meta.KindIO, noKind, "unexpected EOF"},
	{"wrong bytes", changed(wrong), meta.KindDamaged, noKind, "does not match"},
	{"no ranges", noRanges, meta.KindIO, noKind, "does not know ranges"},
	{"500 twice", first(2, answer(http.StatusInternalServerError, "InternalError")), noKind, noKind, ""},
	{"500 for good", answer(http.StatusInternalServerError, "InternalError"), meta.KindIO, meta.KindIO, "InternalError"},
	{"SlowDown twice", first(2, answer(http.StatusServiceUnavailable, "SlowDown")), noKind, noKind, ""},
	{"SlowDown for good", answer(http.StatusServiceUnavailable, "SlowDown"), meta.KindIO, meta.KindIO, "overloaded"},
	{"keys expired", answer(http.StatusBadRequest, "ExpiredToken"), meta.KindIO, meta.KindIO, "renew them"},
	{"keys wrong", answer(http.StatusForbidden, "InvalidAccessKeyId"), meta.KindIO, meta.KindIO, "keys are wrong"},
	{"not allowed", answer(http.StatusForbidden, "AccessDenied"), meta.KindIO, meta.KindIO, "s3:PutObject"},
	{"clock wrong", answer(http.StatusForbidden, "RequestTimeTooSkewed"), meta.KindIO, meta.KindIO, "clock is wrong"},
	{"bucket gone", answer(http.StatusNotFound, "NoSuchBucket"), meta.KindIO, meta.KindIO, "create the bucket"},
	{"region wrong", answer(http.StatusMovedPermanently, "PermanentRedirect"), meta.KindIO, meta.KindIO, "region"},
	{"quota", answer(http.StatusForbidden, "QuotaExceeded"), meta.KindNoSpace, meta.KindNoSpace, ""},
	{"full", answer(http.StatusInsufficientStorage, "StorageFull"), meta.KindNoSpace, meta.KindNoSpace, ""},
	{"object gone", answer(http.StatusNotFound, "NoSuchKey"), meta.KindDamaged, meta.KindDamaged, ""},
	{"object cut", answer(http.StatusRequestedRangeNotSatisfiable, "InvalidRange"), meta.KindDamaged, meta.KindDamaged, ""},
	{"every place taken", answer(http.StatusPreconditionFailed, "PreconditionFailed"), meta.KindIO, meta.KindIO, "PreconditionFailed"},
}

func TestFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			o := options(t)
			sound := mustOpen(t, o)
			data := bytes.Repeat([]byte("0123456789abcdef"), 6250)
			b, err := sound.Put(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			o.Tries, o.Timeout = testTries, testLimit
			open := func() *Store {
				o.transport = &fault{do: f.do}
				s, err := newStore(o)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			p := make([]byte, len(data))
			checkFault(t, "read", f.read, f.says, func() error { return open().Read(t.Context(), b, 0, p) })
			if f.read == noKind && !bytes.Equal(p, data) {
				t.Error("read: wrong bytes")
			}
			checkFault(t, "put", f.put, f.says, func() error { b, err = open().Put(t.Context(), data); return err })
			if f.put != noKind {
				return
			}
			if err := sound.Read(t.Context(), b, 0, p); err != nil || !bytes.Equal(p, data) {
				t.Errorf("read of what was put: %v", err)
			}
			if got := names(t, o); len(got) != 3 {
				t.Errorf("got %q, want the marker and two blobs", got)
			}
		})
	}
}

// checkFault runs one call and compares its kind, words and time.
func checkFault(t *testing.T, what string, want meta.Kind, says string, call func() error) {
	t.Helper()
	start := time.Now()
	err := call()
	if limit := bodyTries*(testLimit+backoff) + time.Second; time.Since(start) > limit {
		t.Errorf("%s took %v, the bound is %v", what, time.Since(start), limit)
	}
	switch {
	case want == noKind && err != nil:
		t.Errorf("%s: %v", what, err)
	case want == noKind:
	case err == nil || meta.KindOf(err) != want || !strings.Contains(err.Error(), says):
		t.Errorf("%s: got %v, want %q and %q", what, err, want, says)
	case strings.Contains(err.Error(), s3test.SecretKey):
		t.Errorf("%s: the error repeats the secret key: %v", what, err)
	}
}

func TestRefusedConnections(t *testing.T) {
	o := options(t)
	s := s3test.Start(t, bucket)
	o.Location.Endpoint, o.Tries = s.Addr, testTries
	store := mustOpen(t, o)
	data := make([]byte, 100_000)
	b, err := store.Put(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	checkFault(t, "put", meta.KindIO, "cannot be reached", func() error { _, err := store.Put(t.Context(), data); return err })
	checkFault(t, "read", meta.KindIO, "cannot be reached", func() error { return store.Read(t.Context(), b, 0, make([]byte, 10)) })
	checkFault(t, "free", meta.KindIO, "cannot be reached", func() error { return store.Free(t.Context(), []meta.Blob{b}) })
	checkFault(t, "walk", meta.KindIO, "cannot be reached", func() error {
		return store.Walk(t.Context(), func(meta.Blob) error { return nil })
	})
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := store.Read(t.Context(), b, 0, make([]byte, 10)); err != nil {
		t.Errorf("after the server came back: %v", err)
	}
}

// An upload whose answer was lost is repeated, and its first copy goes.
func TestLostAnswerOfAPut(t *testing.T) {
	o := options(t)
	mustOpen(t, o)
	o.transport = &fault{do: first(1, lost)}
	s, err := newStore(o)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 50_000)
	b, err := s.Put(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, o); len(got) != 2 || !strings.Contains(strings.Join(got, " "), strings.TrimPrefix(objectKey(b), "blobs/")) {
		t.Errorf("got %q, want the marker and %s", got, objectKey(b))
	}
	if st := s.Stats(); st.Puts != 1 || st.Files != 1 {
		t.Errorf("got %+v, want one put", st)
	}
}

func TestCallerGoesAway(t *testing.T) {
	o := options(t)
	sound := mustOpen(t, o)
	b, err := sound.Put(t.Context(), make([]byte, 100_000))
	if err != nil {
		t.Fatal(err)
	}
	at := make(chan struct{}, 10)
	o.transport = &fault{do: func(n int64, req *http.Request) (*http.Response, error) {
		at <- struct{}{}
		return unanswered(n, req)
	}}
	o.Parallel = 1
	s, err := newStore(o)
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(context.Context) error{
		"put":  func(ctx context.Context) error { _, err := s.Put(ctx, make([]byte, 100)); return err },
		"read": func(ctx context.Context) error { return s.Read(ctx, b, 0, make([]byte, 100)) },
		"free": func(ctx context.Context) error { return s.Free(ctx, []meta.Blob{b}) },
		"walk": func(ctx context.Context) error { return s.Walk(ctx, func(meta.Blob) error { return nil }) },
	}
	for name, call := range calls {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- call(ctx) }()
		<-at
		go func() { done <- call(ctx) }() // waits for the only slot
		cancel()
		for range 2 {
			if err := <-done; meta.KindOf(err) != meta.KindInterrupted {
				t.Errorf("%s: got %v, want interrupted", name, err)
			}
		}
	}
}

// No more requests than Parallel are under way.
func TestRequestsAreBounded(t *testing.T) {
	o := options(t)
	mustOpen(t, o)
	var now, most atomic.Int64
	o.Parallel = 4
	o.transport = &fault{do: func(_ int64, req *http.Request) (*http.Response, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		return pass(req)
	}}
	s, err := newStore(o)
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for range 32 {
		go func() { _, err := s.Put(t.Context(), make([]byte, 50_000)); errs <- err }()
	}
	for range 32 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n > 4 || n < 2 {
		t.Errorf("%d requests at a time, want up to 4", n)
	}
}
