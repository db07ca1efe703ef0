package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"

	"nexusfs/meta"
)

// probeSize is that of a piece of content that is stored for a test: more than
// rides in SQL.
const probeSize = 2 * meta.InlineMax

// probe is the store's side of `nexusfs doctor`: a look at the database and
// one blob, bounded by the request.
func (c *control) probe(ctx context.Context, r *http.Request) (probeReport, error) {
	var out probeReport
	stats, err := c.engine.upkeep.Stats(ctx)
	if err != nil {
		return out, err
	}
	head, err := c.engine.store.Head(ctx)
	if err != nil {
		return out, err
	}
	out.Schema, out.Revision = stats.Schema, head.Rev
	err = c.engine.history.Records(ctx, meta.RecordFilter{Reverse: true, Limit: 1}, func(r *meta.Record) bool {
		out.Newest = r.Time
		return false
	})
	if err != nil {
		return out, err
	}
	if out.Unended, err = c.unended(ctx); err != nil {
		return out, err
	}
	if out.Read, err = c.readSome(ctx); err != nil {
		out.ReadError = userText(err)
	}
	if r.FormValue("write") == "true" {
		if err := c.writeSome(ctx); err != nil {
			out.WriteError = userText(err)
		} else {
			out.Wrote = probeSize
		}
	}
	return out, nil
}

// unended counts the sessions that did not end in order, but for this one.
func (c *control) unended(ctx context.Context) (n int64, err error) {
	err = c.engine.history.Query(ctx, "SELECT count(*) FROM sessions WHERE zone = ? AND ended IS NULL AND fenced = 0 AND session <> ?",
		[]any{c.engine.zone, c.engine.fs.Status().Session}, func([]string) error { return nil },
		func(row []any) error {
			n, _ = row[0].(int64)
			return nil
		})
	return n, err
}

// readSome reads one blob that is not in SQL, if there is one, and returns its size.
func (c *control) readSome(ctx context.Context) (int64, error) {
	var id meta.BlobID
	found := false
	err := c.engine.history.Query(ctx, "SELECT blob FROM content WHERE zone = ? AND length > 16384 LIMIT 1", []any{c.engine.zone},
		func([]string) error { return nil },
		func(row []any) error {
			text, _ := row[0].(string)
			n, err := hex.Decode(id[:], []byte(text))
			found = n == len(id)
			return err
		})
	if err != nil || !found {
		return 0, err
	}
	b, err := c.engine.store.Blob(ctx, id)
	if err != nil {
		return 0, err
	}
	return b.Size, c.engine.content.Read(ctx, b, 0, make([]byte, b.Size))
}

// writeSome stores content that nothing else can have, reads it and gives its
// place back.
func (c *control) writeSome(ctx context.Context) error {
	data, back := make([]byte, probeSize), make([]byte, probeSize)
	rand.Read(data) // never fails
	b, err := c.engine.content.Put(ctx, data)
	if err != nil {
		return err
	}
	err = c.engine.content.Read(ctx, b, 0, back)
	if err == nil && !bytes.Equal(data, back) {
		err = meta.E("read", 0, "", meta.KindDamaged, nil)
	}
	if ferr := c.engine.content.Free(context.WithoutCancel(ctx), []meta.Blob{b}); err == nil {
		err = ferr
	}
	return err
}
