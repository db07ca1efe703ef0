package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"

	"nexusfs/meta"
)

// fsck is the store's side: it reads everything and changes nothing.
func (c *control) fsck(ctx context.Context, r *http.Request, s *sender) (fsckEnd, error) {
	k := checker{c: c, s: s, names: c.pathNames()}
	s.progress("names, inodes and content", 0, 0)
	if err := c.engine.upkeep.Verify(ctx, func(f meta.Finding) { k.found(ctx, f) }); err != nil {
		return k.end, err
	}
	s.progress("records and their chain", 0, 0)
	records, err := c.engine.upkeep.VerifyChain(ctx, 1, func(f meta.Finding) { k.found(ctx, f) })
	k.end.Records = records
	if err != nil {
		return k.end, err
	}
	if r.FormValue("quick") != "true" {
		err = k.blobs(ctx)
	}
	if err == nil {
		err = k.err
	}
	return k.end, err
}

// checker is one run of fsck.
type checker struct {
	c     *control
	s     *sender
	names *pathNames
	end   fsckEnd
	err   error // the client is gone
}

func (k *checker) found(ctx context.Context, f meta.Finding) {
	out := finding{Check: f.Check, Ino: f.Ino, Rev: f.Rev, Text: f.Text}
	if f.Ino != 0 {
		out.Path = bytesName(k.names.of(ctx, f.Ino))
	}
	k.end.Findings++
	if err := k.s.item(out); err != nil && k.err == nil {
		k.err = err
	}
}

// namedDamage bounds for how many damaged blobs the files are looked for: each
// is a scan of all extents.
const namedDamage = 100

// blobs reads every blob that something refers to and verifies its hash.
func (k *checker) blobs(ctx context.Context) error {
	total := k.c.engine.content.Stats()
	buf := make([]byte, meta.BlobMax)
	var damaged []meta.Blob
	check := func(b meta.Blob, _ meta.Rev) error {
		err := k.blob(ctx, b, buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			damaged = append(damaged, b)
		}
		k.end.Blobs++
		k.end.Bytes += b.Size
		if k.end.Blobs%64 == 0 {
			k.s.progress("content", k.end.Bytes, total.SegmentBytes+total.FileBytes)
		}
		return nil
	}
	if err := k.eachBlob(ctx, check); err != nil {
		return err
	}
	for i, b := range damaged {
		if err := k.damaged(ctx, b, i < namedDamage); err != nil {
			return err
		}
	}
	return nil
}

// blobPage bounds what is kept of a listing while its transaction is open:
// content is read only after it has ended (P30).
const blobPage = 64 << 10

// eachBlob lists all blobs first and calls fn then, page by page.
func (k *checker) eachBlob(ctx context.Context, fn func(meta.Blob, meta.Rev) error) error {
	type row struct {
		b   meta.Blob
		rev meta.Rev
	}
	page := make([]row, 0, 1024)
	flush := func() error {
		for _, r := range page {
			if err := fn(r.b, r.rev); err != nil {
				return err
			}
		}
		page = page[:0]
		return nil
	}
	err := k.c.engine.upkeep.BlobsSince(ctx, 0, func(b meta.Blob, rev meta.Rev) error {
		page = append(page, row{b, rev})
		if len(page) >= blobPage {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// blob verifies one blob. Beside a running mount it may have been moved or
// freed since it was listed: then its newest place counts, or none.
func (k *checker) blob(ctx context.Context, b meta.Blob, buf []byte) error {
	if b.Place == meta.PlaceInline {
		return k.inline(ctx, b)
	}
	for {
		err := k.c.engine.content.Read(ctx, b, 0, buf[:b.Size])
		if err == nil || ctx.Err() != nil {
			return err
		}
		now, serr := k.c.engine.store.Blob(ctx, b.ID)
		switch {
		case serr != nil && meta.KindOf(serr) == meta.KindNotExist:
			return nil
		case serr != nil, now.Place == b.Place && now.Segment == b.Segment && now.Offset == b.Offset:
			return err
		}
		b = now
	}
}

// inlineQuery reads a blob that rides in SQL.
const inlineQuery = "SELECT b.data FROM zones z JOIN blobs b ON b.zone = z.zone AND b.id = ? WHERE z.name = ? AND b.data IS NOT NULL"

// inline verifies a blob whose bytes are in the database.
func (k *checker) inline(ctx context.Context, b meta.Blob) error {
	return k.c.engine.history.Query(ctx, inlineQuery, []any{b.ID[:], k.c.engine.zone}, func([]string) error { return nil },
		func(row []any) error {
			if data, ok := row[0].([]byte); !ok || k.c.engine.content.ID(data) != b.ID {
				return meta.E("verify", 0, "", meta.KindDamaged, nil)
			}
			return nil
		})
}

// damaged reports one damaged blob for each file that it is part of.
func (k *checker) damaged(ctx context.Context, b meta.Blob, named bool) error {
	id := hex.EncodeToString(b.ID[:])
	text := fmt.Sprintf("blob %s of %d bytes is missing or does not match its hash", id, b.Size)
	files := 0
	if named {
		err := k.c.engine.history.Query(ctx,
			"SELECT DISTINCT ino, end_revision FROM content WHERE zone = ? AND blob = ? ORDER BY end_revision LIMIT 100",
			[]any{k.c.engine.zone, id}, func([]string) error { return nil },
			func(row []any) error {
				ino, _ := row[0].(int64)
				end, old := row[1].(int64)
				detail := text + "; the file's content suffers"
				if old {
					detail = fmt.Sprintf("%s; versions of the file before revision %d suffer", text, end)
				}
				files++
				k.found(ctx, meta.Finding{Check: "damaged-blob", Ino: meta.Ino(ino), Text: detail})
				return nil
			})
		if err != nil {
			return err
		}
	}
	if files == 0 {
		k.found(ctx, meta.Finding{Check: "damaged-blob", Text: text})
	}
	return nil
}
