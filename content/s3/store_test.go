package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nexusfs/content"
	"nexusfs/internal/s3test"
	"nexusfs/meta"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What is not this store is refused with words, and left as it is.
func TestOpenRefuses(t *testing.T) {
	good := `{"product":"nexusfs content","format":1,"store":"store of tests"}`
	tests := []struct {
		name, file, text string
		set              func(*Options)
		kind             meta.Kind
		says             string
	}{
		{"another store", markerName, strings.Replace(good, "store of tests", "another", 1), nil, meta.KindNotSupported, `belongs to "another"`},
		{"a newer format", markerName, strings.Replace(good, "1", "2", 1), nil, meta.KindNotSupported, "use a newer nexusfs"},
		{"somebody's file of that name", markerName, "hello", nil, meta.KindNotSupported, "not written by nexusfs"},
		{"a large file of that name", markerName, good + strings.Repeat("x", 1<<20), nil, meta.KindNotSupported, "not written by nexusfs"},
		{"somebody's objects", "photos/1.jpg", "x", nil, meta.KindNotSupported, "name an empty prefix"},
		{"nothing, and not to be made", "", "", func(o *Options) { o.Create = false }, meta.KindNotExist, "no content store"},
		{"nothing, and read-only", "", "", func(o *Options) { o.ReadOnly = true }, meta.KindNotExist, "no content store"},
		{"no such bucket", "", "", func(o *Options) { o.Location.Bucket = "not-there" }, meta.KindNotExist, "create the bucket"},
		{"wrong keys", "", "", func(o *Options) { o.Location.Profile = "wrong" }, meta.KindIO, "the keys are wrong"},
		{"no such section of the keys", "", "", func(o *Options) { o.Location.Profile = "none" }, meta.KindIO, "name another section"},
		{"no keys", "", "", func(o *Options) { o.Location.Credentials = "/nonexistent/keys" }, meta.KindIO, "/nonexistent/keys"},
		{"no id", "", "", func(o *Options) { o.ID = "" }, meta.KindInvalid, "1 to 128"},
		{"https where http is spoken", "", "", func(o *Options) { o.Location.Plain, o.Tries = false, 1 }, meta.KindIO, "HTTP response to HTTPS client"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := options(t)
			o.Location.Credentials = filepath.Join(t.TempDir(), "keys")
			write(t, o.Location.Credentials, fmt.Sprintf(
				"[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n[wrong]\naws_access_key_id=%s\naws_secret_access_key=%s-not\n",
				s3test.AccessKey, s3test.SecretKey, s3test.AccessKey, s3test.SecretKey))
			dir := filepath.Join(server.Dir, bucket, o.Location.Prefix)
			if test.file != "" {
				write(t, filepath.Join(dir, test.file), test.text)
			}
			if test.set != nil {
				test.set(&o)
			}
			s, err := Open(t.Context(), o)
			if s != nil || err == nil || meta.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v, %v, want %q and %q", s, err, test.kind, test.says)
			}
			if strings.Contains(err.Error(), s3test.SecretKey) {
				t.Errorf("the error repeats a secret: %v", err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, test.file)); test.file != "" && (err != nil || string(got) != test.text) {
				t.Errorf("what was there was changed: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, markerName)); test.file != markerName && err == nil {
				t.Error("a marker was made")
			}
		})
	}
}

// Daemons that start at once make one store.
func TestOpenAtOnce(t *testing.T) {
	o := options(t)
	errs := make(chan error)
	for range 8 {
		go func() { _, err := Open(t.Context(), o); errs <- err }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	other := o
	other.ID = "another store"
	if _, err := Open(t.Context(), other); meta.KindOf(err) != meta.KindNotSupported {
		t.Errorf("another store: got %v, want not supported", err)
	}
}

func TestReadOnly(t *testing.T) {
	o := options(t)
	b, err := mustOpen(t, o).Put(t.Context(), make([]byte, 50_000))
	if err != nil {
		t.Fatal(err)
	}
	o.ReadOnly = true
	s := mustOpen(t, o)
	if _, err := s.Put(t.Context(), make([]byte, 100)); meta.KindOf(err) != meta.KindReadOnly {
		t.Errorf("put: got %v, want read-only", err)
	}
	if err := s.Free(t.Context(), []meta.Blob{b}); meta.KindOf(err) != meta.KindReadOnly {
		t.Errorf("free: got %v, want read-only", err)
	}
	if err := s.Read(t.Context(), b, 0, make([]byte, 50_000)); err != nil {
		t.Error(err)
	}
}

// Keys that are renewed in their file are taken up without a restart, and stay
// good when the file goes.
func TestRenewedKeys(t *testing.T) {
	o := options(t)
	o.Location.Credentials = filepath.Join(t.TempDir(), "keys")
	keys := func(secret string) {
		write(t, o.Location.Credentials, fmt.Sprintf("[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n", s3test.AccessKey, secret))
	}
	keys(s3test.SecretKey)
	s := mustOpen(t, o)
	keys("expired")
	before := time.Now().Add(-time.Hour) // whatever the clock of the disk can tell apart
	if err := os.Chtimes(o.Location.Credentials, before, before); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), make([]byte, 100)); meta.KindOf(err) != meta.KindIO || err == nil {
		t.Fatalf("with a wrong key: got %v, want an error", err)
	}
	keys(s3test.SecretKey)
	if _, err := s.Put(t.Context(), make([]byte, 100)); err != nil {
		t.Errorf("with the right key again: %v", err)
	}
	if err := os.Remove(o.Location.Credentials); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), make([]byte, 100)); err != nil {
		t.Errorf("with the file gone: %v", err)
	}
}

func TestTLS(t *testing.T) {
	o := options(t)
	plain := &url.URL{Scheme: "http", Host: server.Addr}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(plain)
		r.Out.Host = r.In.Host
	}})
	defer proxy.Close()
	o.Location.Endpoint, o.Location.Plain = strings.TrimPrefix(proxy.URL, "https://"), false
	o.Tries = 1
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody vouches for: got %v, want an error", err)
	}
	o.transport = proxy.Client().Transport
	s := mustOpen(t, o)
	data := bytes.Repeat([]byte("tls"), 40_000)
	b, err := s.Put(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(data))
	if err := s.Read(t.Context(), b, 0, p); err != nil || !bytes.Equal(p, data) {
		t.Errorf("read: %v", err)
	}
}

// An object is never overwritten.
func TestPutIsConditional(t *testing.T) {
	o := options(t)
	s := mustOpen(t, o)
	b, err := s.Put(t.Context(), bytes.Repeat([]byte("a"), 1000))
	if err != nil {
		t.Fatal(err)
	}
	err = s.send(t.Context(), s.key(objectKey(b)), nil, bytes.Repeat([]byte("b"), 1000))
	if codeOf(err) != "PreconditionFailed" {
		t.Errorf("second put to the same place: got %v, want PreconditionFailed", err)
	}
	if got, err := os.ReadFile(objectPath(o, b)); err != nil || got[0] != 'a' {
		t.Errorf("the object was changed: %v", err)
	}
}

// The server compares what it received with the checksum: bytes that change
// on their way are refused, and sent again.
func TestServerRefusesWrongBytes(t *testing.T) {
	o := options(t)
	mustOpen(t, o)
	o.Tries = 1
	o.transport = &fault{do: func(_ int64, req *http.Request) (*http.Response, error) {
		req.Body = io.NopCloser(wrong(req.Body))
		return pass(req)
	}}
	s, err := newStore(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), bytes.Repeat([]byte("a"), 100_000)); meta.KindOf(err) != meta.KindIO || err == nil {
		t.Errorf("got %v, want an error", err)
	}
	if got := names(t, o); len(got) != 1 {
		t.Errorf("got %q, want the marker alone", got)
	}
}

// Each of many Puts of the same bytes has an object of its own, beside Frees
// and on several daemons.
func TestSameBytesFromManyDaemons(t *testing.T) {
	o := options(t)
	stores := []*Store{mustOpen(t, o), mustOpen(t, o), mustOpen(t, o)}
	data := bytes.Repeat([]byte("same"), 25_000)
	var mu sync.Mutex
	var left []meta.Blob
	var wg sync.WaitGroup
	for i := range 12 {
		s := stores[i%len(stores)]
		wg.Go(func() {
			for range 5 {
				b, err := s.Put(t.Context(), data)
				if err == nil && i%2 == 0 {
					err = stores[(i+1)%len(stores)].Free(t.Context(), []meta.Blob{b}) // another daemon's
				} else if err == nil {
					mu.Lock()
					left = append(left, b)
					mu.Unlock()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p := make([]byte, len(data))
	for _, b := range left {
		if err := stores[0].Read(t.Context(), b, 0, p); err != nil || !bytes.Equal(p, data) {
			t.Fatalf("%s: %v", objectKey(b), err)
		}
	}
	if got := len(names(t, o)) - 1; got != len(left) {
		t.Errorf("%d objects are stored, want the %d that were not freed", got, len(left))
	}
}

// A reader beside a Free gets the whole blob or learns that it is gone.
func TestReadBesideFree(t *testing.T) {
	s := mustOpen(t, options(t))
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	for range 10 {
		b, err := s.Put(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				p := make([]byte, len(data))
				err := s.Read(t.Context(), b, 0, p)
				if err != nil && meta.KindOf(err) != meta.KindStale || err == nil && !bytes.Equal(p, data) {
					t.Errorf("read beside free: got %v, want the bytes or stale", err)
				}
			})
		}
		if err := s.Free(t.Context(), []meta.Blob{b}); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
	if n := s.Stats().Damaged; n != 0 {
		t.Errorf("%d reads count as damaged", n)
	}
}

// More objects than one answer lists, and than one request removes.
func TestManyObjects(t *testing.T) {
	o := options(t)
	s := mustOpen(t, o)
	want := make(map[meta.Blob]bool)
	for i := range 2*freeBatch + 7 {
		b := meta.Blob{ID: s.ID(fmt.Append(nil, i)), Size: 20_000, Place: meta.PlaceFile, Segment: 5, Offset: int64(i)}
		write(t, objectPath(o, b), "x")
		want[b] = true
	}
	write(t, filepath.Join(server.Dir, bucket, o.Location.Prefix, "blobs", "ab", "stranger"), "x")
	var all []meta.Blob
	err := s.Walk(t.Context(), func(b meta.Blob) error {
		if !want[b] {
			return fmt.Errorf("%+v is not stored", b)
		}
		delete(want, b)
		all = append(all, b)
		return nil
	})
	if err != nil || len(want) != 0 {
		t.Fatalf("walk: %v, missing %d", err, len(want))
	}
	if err := s.Free(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if got := names(t, o); len(got) != 2 {
		t.Errorf("got %d objects after all were freed, want the marker and the stranger", len(got))
	}
}

// A read fetches the leaves that it touches, and the table once.
func TestReadFetchesWhatItTouches(t *testing.T) {
	o := options(t)
	b, err := mustOpen(t, o).Put(t.Context(), make([]byte, meta.BlobMax))
	if err != nil {
		t.Fatal(err)
	}
	table := content.TableLen(meta.BlobMax)
	const leaf = content.LeafSize
	tests := []struct {
		name     string
		off, n   int64
		requests int64
		first    string // range
	}{
		{"near the start, with the table", 100, 4096, 1, fmt.Sprintf("bytes=0-%d", table+leaf-1)},
		{"far behind, the table before", meta.BlobMax - 100, 100, 2, fmt.Sprintf("bytes=0-%d", table-1)},
		{"whole", 0, meta.BlobMax, 1, fmt.Sprintf("bytes=0-%d", table+meta.BlobMax-1)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var ranges []string
			f := &fault{}
			f.do = func(_ int64, req *http.Request) (*http.Response, error) {
				ranges = append(ranges, req.Header.Get("Range"))
				return pass(req)
			}
			o.transport = f
			s, err := newStore(o)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, test.n)
			if err := s.Read(t.Context(), b, test.off, p); err != nil {
				t.Fatal(err)
			}
			if f.n.Load() != test.requests || ranges[0] != test.first {
				t.Errorf("got %q, want %d requests from %s on", ranges, test.requests, test.first)
			}
			if err := s.Read(t.Context(), b, test.off, p); err != nil || f.n.Load() != test.requests+1 {
				t.Errorf("second read: got %q, %v, want one request more", ranges, err)
			}
		})
	}
}

func TestWalkEndsWithItsFunction(t *testing.T) {
	s := mustOpen(t, options(t))
	if _, err := s.Put(t.Context(), make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stop := errors.New("stop")
	if err := s.Walk(ctx, func(meta.Blob) error { cancel(); return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the function's error", err)
	}
}
