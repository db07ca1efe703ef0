package s3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/minio/minio-go/v7"

	"nexusfs/meta"
)

// markerName is the key, behind the prefix, of the object that says what the
// prefix holds.
const markerName = "nexusfs-content"

const (
	maxID     = 128
	maxMarker = 4 << 10 // bytes of a marker
	format    = 1       // of keys and objects
)

// marker is the content of that object.
type marker struct {
	Product string `json:"product"`
	Format  int    `json:"format"`
	Store   string `json:"store"`
}

const product = "nexusfs content"

// claim checks whose store is there, and makes one where nothing is.
func (s *Store) claim(ctx context.Context) error {
	text, err := s.readMarker(ctx)
	if err == nil {
		return s.checkMarker(text)
	}
	if codeOf(err) != "NoSuchKey" {
		return err
	}
	if s.o.ReadOnly || !s.o.Create {
		return meta.E("", 0, "", meta.KindNotExist, errors.New("there is no content store: check the URL, or let it be made"))
	}
	strangers, err := s.page(ctx, s.o.Location.Prefix, "", 1)
	if err != nil {
		return err
	}
	if len(strangers) == 0 {
		text, err = json.Marshal(marker{Product: product, Format: format, Store: s.o.ID})
		if err != nil {
			return err
		}
		if err = s.send(ctx, s.key(markerName), nil, text); codeOf(err) != "PreconditionFailed" {
			return err
		}
	}
	text, err = s.readMarker(ctx) // another daemon may have been quicker
	switch {
	case err == nil:
		return s.checkMarker(text)
	case codeOf(err) == "NoSuchKey" && len(strangers) > 0:
		return meta.E("", 0, "", meta.KindNotSupported, fmt.Errorf("%q is there and no content store: name an empty prefix", strangers[0].Key))
	}
	return err
}

// Vacant checks that Open could make a store: the bucket answers to the keys, and
// nothing is there. o.ID is not needed. It sends one request and changes nothing.
// KindExist when something is there; else the errors of Open.
func Vacant(ctx context.Context, o Options) error {
	o.ID = "none"
	s, err := newStore(o)
	var objects []minio.ObjectInfo
	if err == nil {
		objects, err = s.page(ctx, s.o.Location.Prefix, "", 1)
	}
	if err != nil {
		return s.openError(ctx, err)
	}
	if len(objects) > 0 {
		return meta.E("open content", 0, "", meta.KindExist, fmt.Errorf("%s is not empty (it holds %q): name an empty prefix", s.o.Location, objects[0].Key))
	}
	return nil
}

func (s *Store) checkMarker(text []byte) error {
	var m marker
	problem := ""
	switch err := json.Unmarshal(text, &m); {
	case err != nil || m.Product != product:
		problem = fmt.Sprintf("%q there was not written by nexusfs: name another prefix", markerName)
	case m.Format != format:
		problem = fmt.Sprintf("the store there has format %d, this nexusfs reads %d: use a newer nexusfs or another prefix", m.Format, format)
	case m.Store != s.o.ID:
		problem = fmt.Sprintf("the store there belongs to %q, not to %q: name the prefix of this store, or an empty one", m.Store, s.o.ID)
	default:
		return nil
	}
	return meta.E("", 0, "", meta.KindNotSupported, errors.New(problem))
}

// readMarker reads the marker, or as much of a larger object as no marker has.
func (s *Store) readMarker(ctx context.Context) ([]byte, error) {
	ctx, done, err := s.request(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	body, _, _, err := s.core.GetObject(ctx, s.o.Location.Bucket, s.key(markerName), minio.GetObjectOptions{})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var text bytes.Buffer
	_, err = io.Copy(&text, io.LimitReader(body, maxMarker))
	return text.Bytes(), err
}
