package local

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"nexusfs/content"
	"nexusfs/meta"
)

func TestHeaderRoundTrip(t *testing.T) {
	for _, size := range []int64{1, content.LeafSize, content.LeafSize + 1, 1 << 20, meta.BlobMax} {
		for _, kind := range []recordKind{kindData, kindLeaves} {
			want := header{Kind: kind, State: stateDead, Size: size, ID: content.ID([]byte{byte(size)})}
			p := randomBytes(1, headerSize)
			encodeHeader(p, want)
			got, err := decodeHeader(p)
			if err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
			if n := got.length(); n%recordAlign != 0 || n < headerSize+content.TableLen(size)+footerSize {
				t.Errorf("record of %d bytes has length %d", size, n)
			}
			for i := range p { // every bit of it counts
				p[i] ^= 4
				if got, err := decodeHeader(p); err == nil {
					t.Errorf("byte %d damaged, decoded as %+v", i, got)
				}
				p[i] ^= 4
			}
		}
	}
}

func FuzzDecodeHeader(f *testing.F) {
	p := make([]byte, headerSize)
	encodeHeader(p, header{Kind: kindData, State: stateLive, Size: 100_000})
	f.Add(p)
	f.Add([]byte(headerMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := decodeHeader(p)
		if err != nil {
			return
		}
		if h.Size <= 0 || h.Size > meta.BlobMax || h.length() > 2*meta.BlobMax || h.length() < headerSize+footerSize {
			t.Errorf("implausible header %+v accepted", h)
		}
		again := make([]byte, headerSize)
		encodeHeader(again, h)
		if !bytes.Equal(again, p[:headerSize]) {
			t.Errorf("%x decodes to %+v, which encodes to %x", p[:headerSize], h, again)
		}
	})
}

// FuzzSegment opens a store on a segment of arbitrary bytes behind a sound
// record: nothing but that record may be found by its name, and appending goes on.
func FuzzSegment(f *testing.F) {
	head := make([]byte, 200)
	encodeHeader(head, header{Kind: kindData, State: stateLive, Size: 17_000})
	f.Add(head, uint32(0))
	f.Add([]byte{}, uint32(50))
	f.Add(bytes.Repeat(head[:64], 20), uint32(1000))
	f.Fuzz(func(t *testing.T, junk []byte, cut uint32) {
		o := Options{Dir: filepath.Join(t.TempDir(), "s")}
		s := mustOpen(t, o)
		b := mustPut(t, s, randomBytes(1, 17_000))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		path := segmentPath(o.Dir, 1)
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sound := int(cut)%(2*len(raw)) >= len(raw)
		raw = raw[:min(int(cut)%(2*len(raw)), len(raw))]
		if err := os.WriteFile(path, append(raw, junk...), 0o600); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, o)
		next := mustPut(t, s, randomBytes(2, 20_000))
		mustRead(t, s, next)
		got := make([]byte, b.Size)
		err = s.Read(context.Background(), b.Blob, 0, got)
		if sound && err != nil || err == nil && !bytes.Equal(got, b.data) {
			t.Errorf("sound: %v, read: %v", sound, err)
		}
		for found := range walkAll(t, s) {
			if found.Segment == next.Segment && found.Offset < next.Offset && found.Offset > b.Offset {
				got := make([]byte, found.Size)
				if err := s.Read(context.Background(), found, 0, got); err == nil && s.ID(got) != found.ID {
					t.Errorf("wrong bytes for %+v", found)
				}
			}
		}
	})
}
