package s3

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"

	"nexusfs/content"
	"nexusfs/meta"
)

// Options configure a Store. Location and ID are needed.
type Options struct {
	Location Location      // from ParseLocation
	ID       string        // of the store whose metadata refers to the blobs, 1 to 128 bytes
	Create   bool          // make a store where nothing is
	ReadOnly bool          // nothing in the bucket is changed
	Parallel int           // requests under way at a time, others wait; 0: 32
	Timeout  time.Duration // for one request with all its repetitions; 0: 60 s
	Tries    int           // of one request, the first included; 0: 10

	transport http.RoundTripper // tests put their faults here; nil: the network
}

const (
	defaultParallel = 32
	defaultTimeout  = 60 * time.Second
	defaultTries    = 10
	tableMemory     = 8 << 20 // bytes of leaf tables kept
)

// Store is a content store in an S3 bucket. It implements meta.Content.
type Store struct {
	o    Options
	core minio.Core
	net  http.RoundTripper

	session int64         // of this process: Segment of the blobs that it puts
	slots   chan struct{} // one for each request under way

	tables *content.Tables
	freed  placeSet
	next   atomic.Int64 // Offset of the blob put last

	files, fileBytes atomic.Int64 // put by this process and still there
	puts, putBytes   atomic.Int64
	reads, readBytes atomic.Int64
	damaged          atomic.Int64
}

var _ meta.Content = (*Store)(nil)

// Open checks that the bucket holds this store, or with o.Create makes an empty
// one. It sends one to four requests and waits for them. Errors: KindInvalid (the options),
// KindNotExist (no such bucket; no store there, and not o.Create),
// KindNotSupported (another store, another product or a newer format is
// there), KindIO, KindInterrupted.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := newStore(o)
	if err == nil {
		err = s.claim(ctx)
	}
	if err != nil {
		return nil, s.openError(ctx, err)
	}
	return s, nil
}

// newStore touches nothing outside. The Store that comes with an error has its
// options and no more.
func newStore(o Options) (*Store, error) {
	l, err := o.Location.checked()
	if err != nil {
		return &Store{o: o}, meta.E("", 0, "", meta.KindInvalid, err)
	}
	o.Location = l
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Tries <= 0 {
		o.Tries = defaultTries
	}
	s := &Store{o: o, net: o.transport, slots: make(chan struct{}, o.Parallel), tables: content.NewTables(tableMemory)}
	if o.ID == "" || len(o.ID) > maxID {
		return s, meta.E("", 0, "", meta.KindInvalid, fmt.Errorf("the store's id has %d bytes, not 1 to %d", len(o.ID), maxID))
	}
	if s.net == nil {
		s.net = newTransport(o)
	}
	keys, err := keysFrom(l)
	if err != nil {
		return s, err
	}
	lookup := minio.BucketLookupAuto
	if l.PathStyle {
		lookup = minio.BucketLookupPath
	}
	s.core.Client, err = minio.New(l.Endpoint, &minio.Options{
		Creds: keys, Secure: !l.Plain, Region: l.Region, BucketLookup: lookup, Transport: s.net, MaxRetries: o.Tries,
	})
	if err != nil {
		return s, meta.E("", 0, "", meta.KindInvalid, err)
	}
	var random [8]byte
	rand.Read(random[:]) // never fails
	s.session = int64(binary.LittleEndian.Uint64(random[:]) >> 1)
	return s, nil
}

// newTransport makes connections that are kept and that cannot hang: a server
// that says nothing for a third of the time-out is asked again on another one.
func newTransport(o Options) *http.Transport {
	const buffer = 64 << 10
	dial := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: o.Timeout / 3,
		MaxIdleConnsPerHost:   o.Parallel,
		IdleConnTimeout:       time.Minute,
		ReadBufferSize:        buffer,
		WriteBufferSize:       buffer,
		DisableCompression:    true,
	}
}

// Close lets idle connections go. It must come after all calls.
func (s *Store) Close() error {
	if t, ok := s.net.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// request takes a slot for one request, waiting for it, and bounds its time.
// done gives both back.
func (s *Store) request(ctx context.Context) (bounded context.Context, done func(), err error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	bounded, cancel := context.WithTimeout(ctx, s.o.Timeout)
	return bounded, func() { cancel(); <-s.slots }, nil
}

func (s *Store) key(name string) string { return s.o.Location.Prefix + name }

// ID computes the name of a blob. Pure.
func (s *Store) ID(data []byte) meta.BlobID { return content.ID(data) }

// Prefetch does nothing: there is no memory here to read to.
func (s *Store) Prefetch(meta.Blob) {}

// Sync has nothing to do: a Put that returned is durable. It never fails.
func (s *Store) Sync(context.Context) error { return nil }

// Compact has nothing to do: each blob is an object, and Free gives back all of
// it. What was put and never committed is found by Walk.
func (s *Store) Compact(context.Context, func(meta.Blob) (bool, error), func(from, to meta.Blob) error) error {
	return nil
}

// Backing is KindNotSupported: nothing here is a file.
func (s *Store) Backing(context.Context, meta.Blob) (meta.Backing, error) {
	return nil, meta.E("open backing file", 0, "", meta.KindNotSupported, nil)
}

// spaceShown is the size that Space gives a bucket, which has none: 1 PiB, more
// than any user has and small enough for every df.
const spaceShown = 1 << 50

// Space reports 1 PiB, all of it free: S3 has no size to tell. It does not block.
func (s *Store) Space(context.Context) (meta.Space, error) {
	return meta.Space{Total: spaceShown, Free: spaceShown}, nil
}

// Stats describes what this process did. Files and FileBytes are the objects
// that it put and did not free: counting a bucket means listing it.
func (s *Store) Stats() meta.ContentStats {
	return meta.ContentStats{
		Files: s.files.Load(), FileBytes: s.fileBytes.Load(),
		Puts: s.puts.Load(), PutBytes: s.putBytes.Load(),
		Reads: s.reads.Load(), ReadBytes: s.readBytes.Load(),
		Damaged: s.damaged.Load(),
	}
}

// freedMax bounds how many freed places are remembered.
const freedMax = 16 << 10

// placeSet remembers which places this process freed, so that a reader who
// comes too late learns that he has to look again.
type placeSet struct {
	mu   sync.Mutex
	seen map[meta.Blob]struct{} // guarded by mu
}

// add takes up places and returns those that are new.
func (p *placeSet) add(places []meta.Blob) (fresh []meta.Blob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil || len(p.seen)+len(places) > freedMax {
		p.seen = make(map[meta.Blob]struct{})
	}
	for _, b := range places {
		if _, ok := p.seen[b]; !ok {
			p.seen[b] = struct{}{}
			fresh = append(fresh, b)
		}
	}
	return fresh
}

func (p *placeSet) drop(places []meta.Blob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range places {
		delete(p.seen, b)
	}
}

func (p *placeSet) has(b meta.Blob) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.seen[b]
	return ok
}
