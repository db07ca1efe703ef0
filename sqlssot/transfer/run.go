package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nexusfs/meta"
)

// Bounds of what is under way at once.
const (
	batchRows     = 4096
	batchBytes    = 8 << 20  // of rows
	contentBytes  = 64 << 20 // of blobs outside of SQL: made durable together
	contentCopies = 4        // blobs that are copied at once
)

// Options say what to copy. All are required but Progress. To holds blobs of the
// target's zone alone: what else is in it is freed.
type Options struct {
	Source   Source
	Target   Target
	From, To meta.Content
	// Progress is told how far a phase is, by one goroutine at a time; nil: nobody is.
	Progress func(phase string, done, total int64)
}

// Result is what a target holds.
type Result struct {
	Tables []TableResult `json:"tables"`
	Rows   int64         `json:"rows"`
	Blobs  int64         `json:"blobs"` // outside of SQL
	Bytes  int64         `json:"bytes"` // of those
	Copied Copied        `json:"copied"`
	Rev    meta.Rev      `json:"revision"`
	Before bool          `json:"already_complete"` // an earlier run had copied everything
}

// Copied is what this run did of it.
type Copied struct {
	Rows  int64 `json:"rows"`
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

// TableResult is what was counted of one table.
type TableResult struct {
	Table  string `json:"table"`
	Rows   int64  `json:"rows"`
	Digest string `json:"sha256,omitempty"` // over the rows in the order of their keys, equal on both sides
}

// Plan counts what Run would copy. It changes nothing.
func Plan(ctx context.Context, s Source) (Result, error) {
	o, err := s.Origin(ctx)
	if err != nil {
		return Result{}, err
	}
	res := Result{Rev: o.Rev}
	for _, t := range Tables() {
		n, err := s.Count(ctx, t)
		if err != nil {
			return res, err
		}
		res.Tables = append(res.Tables, TableResult{Table: t.Name, Rows: n})
		res.Rows += n
	}
	res.Blobs, res.Bytes, err = s.Outside(ctx)
	return res, err
}

// Run copies the source's zone into the target and verifies it:
//
//  1. the target makes room, or finds what an earlier run has copied;
//  2. table by table the rows behind the last one that the target has are
//     copied, in transactions; a blob's bytes are stored and durable before its
//     row is;
//  3. content that a killed run stored without a row is freed;
//  4. every table is counted and digested on both sides, the chain verified;
//  5. the source is what it was in the beginning, so the zone gets its name.
//
// So a run that ends anywhere before 5 leaves a target that nobody can open and
// the next run goes on with. KindExist when the target holds another zone,
// KindDamaged when source and target differ in the end or a blob does not
// match its hash, KindInterrupted when ctx ended.
func Run(ctx context.Context, o Options) (Result, error) {
	r := runner{Options: o}
	if r.Progress == nil {
		r.Progress = func(string, int64, int64) {}
	}
	var err error
	if r.res, err = Plan(ctx, o.Source); err != nil {
		return r.res, err
	}
	done, err := r.begin(ctx)
	if err != nil || done {
		r.res.Before = done
		return r.res, err
	}
	if err := r.findLeftovers(ctx); err != nil {
		return r.res, err
	}
	if err := r.copyAll(ctx); err != nil {
		return r.res, err
	}
	if err := r.sweep(ctx, o.Target.Placed); err != nil {
		return r.res, err
	}
	err = r.verify(ctx)
	if changed := r.unchanged(ctx); changed != nil {
		err = changed // and that is why the sides differ
	}
	if err != nil {
		return r.res, err
	}
	// gofail: var migrateBeforeFinish struct{}
	return r.res, o.Target.Finish(ctx)
}

type runner struct {
	Options
	origin  Origin
	mapping Mapping
	left    bool // blobs of an earlier run may be there
	res     Result
	done    int64 // rows that are in the target
}

// begin makes room in the target.
func (r *runner) begin(ctx context.Context) (done bool, err error) {
	origin, err := r.Source.Origin(ctx)
	if err != nil {
		return false, err
	}
	var zone Row
	if err := r.Source.Export(ctx, ZoneTable(), nil, func(row Row) error { zone = row; return nil }); err != nil {
		return false, err
	}
	numbers, begun, done, err := r.Target.Begin(ctx, origin, zone)
	r.left, r.origin = begun, origin
	r.mapping = Mapping{From: origin.Numbers, To: numbers}
	return done, err
}

// unchanged finds a daemon that had the source meanwhile: not everything of it
// may be there.
func (r *runner) unchanged(ctx context.Context) error {
	now, err := r.Source.Origin(ctx)
	if err == nil && !now.Same(r.origin) {
		err = meta.E("migrate", 0, now.Name, meta.KindConflict, errors.New(
			"the source was mounted, or changed, while it was copied: remove the target, keep daemons away from the source, and begin again"))
	}
	return err
}

func (r *runner) copyAll(ctx context.Context) error {
	for _, t := range Tables() {
		if err := r.copyTable(ctx, t); err != nil {
			return fmt.Errorf("copying table %s: %w", t.Name, err)
		}
	}
	return nil
}

// back maps the target's numbers to the source's.
func (r *runner) back() Mapping { return Mapping{From: r.mapping.To, To: r.mapping.From} }

// copyTable copies what lies behind the target's last row.
func (r *runner) copyTable(ctx context.Context, t *Table) error {
	after, err := r.Target.Last(ctx, t)
	if err != nil {
		return err
	}
	if after != nil {
		n, err := r.Target.Count(ctx, t)
		if err != nil {
			return err
		}
		r.done += n
		if err := r.back().Key(t, after); err != nil {
			return err
		}
	}
	return r.pipe(ctx, t, after, func(rows []Row) error { return r.write(ctx, t, rows) })
}

// pipe reads the source in one goroutine and hands its rows on in this one.
func (r *runner) pipe(ctx context.Context, t *Table, after Row, write func([]Row) error) error {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan []Row, 1)
	read := make(chan error, 1)
	go func() {
		defer close(batches)
		read <- r.readTable(reading, t, after, batches)
	}()
	for rows := range batches {
		if err := write(rows); err != nil {
			cancel()
			for range batches { // the reader sees the end of its context
			}
			return errors.Join(err, ignoreEnd(<-read))
		}
	}
	return <-read
}

// ignoreEnd leaves out that a reader was told to stop.
func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) || err != nil && meta.KindOf(err) == meta.KindInterrupted {
		return nil
	}
	return err
}

// readTable sends the rows behind a key in batches.
func (r *runner) readTable(ctx context.Context, t *Table, after Row, batches chan<- []Row) error {
	var batch []Row
	bytes, outside := 0, int64(0)
	send := func() error {
		select {
		case batches <- batch:
			batch, bytes, outside = nil, 0, 0
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := r.Source.Export(ctx, t, after, func(row Row) error {
		batch = append(batch, row)
		bytes += size(row)
		outside += outsideBytes(t, row)
		if len(batch) >= batchRows || bytes >= batchBytes || outside >= contentBytes {
			return send()
		}
		return nil
	})
	if err == nil && len(batch) > 0 {
		err = send()
	}
	return err
}

// size is about what a row needs of memory, in bytes.
func size(r Row) int {
	n := 0
	for _, v := range r {
		n += 24
		switch v := v.(type) {
		case string:
			n += len(v)
		case []byte:
			n += len(v)
		}
	}
	return n
}

// outsideBytes is the size of a blob's row whose bytes are not in it.
func outsideBytes(t *Table, r Row) int64 {
	if t.Name != "blobs" || meta.Place(intAt(r, blobPlace)) == meta.PlaceInline {
		return 0
	}
	return intAt(r, blobSize)
}

func intAt(r Row, i int) int64 {
	n, _ := r[i].(int64)
	return n
}

// write stores what the rows refer to and then the rows.
func (r *runner) write(ctx context.Context, t *Table, rows []Row) error {
	if t.Name == "blobs" {
		if err := r.copyContent(ctx, rows); err != nil {
			return err
		}
	}
	for _, row := range rows {
		if err := r.mapping.Row(t, row); err != nil {
			return err
		}
	}
	// gofail: var migrateBeforeImport struct{}
	if err := r.Target.Import(ctx, t, rows); err != nil {
		return err
	}
	// gofail: var migrateAfterImport struct{}
	r.res.Copied.Rows += int64(len(rows))
	r.done += int64(len(rows))
	r.Progress("rows", r.done, r.res.Rows)
	return nil
}

// copyContent copies the bytes of the blobs that are not in SQL, makes them
// durable, and puts their new places into the rows.
func (r *runner) copyContent(ctx context.Context, rows []Row) error {
	var todo []Row
	for _, row := range rows {
		if outsideBytes(BlobTable(), row) > 0 {
			todo = append(todo, row)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		next int
		errs []error
	)
	take := func() Row {
		mu.Lock()
		defer mu.Unlock()
		if next == len(todo) || len(errs) > 0 || ctx.Err() != nil {
			return nil
		}
		next++
		return todo[next-1]
	}
	for range min(contentCopies, len(todo)) {
		wg.Go(func() {
			buf := make([]byte, meta.BlobMax)
			for row := take(); row != nil; row = take() {
				err := r.copyBlob(ctx, row, buf)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					r.res.Copied.Blobs++
					r.res.Copied.Bytes += intAt(row, blobSize)
					r.Progress("content", r.res.Copied.Bytes, r.res.Bytes)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return err
	}
	return r.To.Sync(ctx)
}

// copyBlob reads one blob, verified by its name, and stores it.
func (r *runner) copyBlob(ctx context.Context, row Row, buf []byte) error {
	b := blobOf(row)
	if b.Size > int64(len(buf)) {
		return meta.E("migrate", 0, "", meta.KindDamaged, fmt.Errorf("blob %x is said to have %d bytes, more than a blob may have", b.ID, b.Size))
	}
	if err := r.From.Read(ctx, b, 0, buf[:b.Size]); err != nil {
		return fmt.Errorf("reading blob %x: %w", b.ID, err)
	}
	put, err := r.To.Put(ctx, buf[:b.Size])
	if err != nil {
		return fmt.Errorf("storing blob %x: %w", b.ID, err)
	}
	if put.ID != b.ID {
		return meta.E("migrate", 0, "", meta.KindDamaged, fmt.Errorf("blob %x was stored as %x", b.ID, put.ID))
	}
	row[blobPlace], row[blobSegment], row[blobOffset] = int64(put.Place), put.Segment, put.Offset
	return nil
}

func blobOf(row Row) meta.Blob {
	b := meta.Blob{Size: intAt(row, blobSize), Place: meta.Place(intAt(row, blobPlace)), Segment: intAt(row, blobSegment), Offset: intAt(row, blobOffset)}
	id, _ := row[blobID].([]byte)
	copy(b.ID[:], id)
	return b
}

// errFound ends a walk.
var errFound = errors.New("found")

// findLeftovers looks for blobs in the target's content store before any is
// copied: a killed run may have stored some and come to nothing else, or the
// content was there before.
func (r *runner) findLeftovers(ctx context.Context) error {
	err := r.To.Walk(ctx, func(meta.Blob) error { r.left = true; return errFound })
	if errors.Is(err, errFound) {
		return nil
	}
	return err
}

// sweep frees what a killed run stored and did not come to write a row for.
func (r *runner) sweep(ctx context.Context, known func(context.Context, meta.Blob) (bool, error)) error {
	if !r.left {
		return nil
	}
	var free []meta.Blob
	err := r.To.Walk(ctx, func(b meta.Blob) error {
		placed, err := known(ctx, b)
		if err == nil && !placed {
			free = append(free, b)
		}
		return err
	})
	if err != nil || len(free) == 0 {
		return err
	}
	return r.To.Free(ctx, free)
}

// PlaceOf returns the place of a row of BlobTable: place, segment and offset.
func PlaceOf(row Row) Row { return Row{row[blobPlace], row[blobSegment], row[blobOffset]} }
