package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"

	"nexusfs/meta"
)

// verify compares every table of both sides and the target's chain.
func (r *runner) verify(ctx context.Context) error {
	seen := int64(0)
	for i, t := range append([]*Table{ZoneTable()}, Tables()...) {
		here, there, err := r.digests(ctx, t)
		if err != nil {
			return fmt.Errorf("verifying table %s: %w", t.Name, err)
		}
		if here.rows != there.rows || !bytes.Equal(here.sum, there.sum) {
			return meta.E("migrate", 0, "", meta.KindDamaged, fmt.Errorf(
				"table %s has %d rows with digest %x in the source and %d rows with digest %x in the target: remove the target and begin again",
				t.Name, here.rows, here.sum, there.rows, there.sum))
		}
		if i > 0 { // the zone's own row is not in the list
			r.res.Tables[i-1] = TableResult{Table: t.Name, Rows: here.rows, Digest: hex.EncodeToString(here.sum)}
			seen += here.rows
		}
		r.Progress("verifying", seen, r.res.Rows)
	}
	return r.verifyChain(ctx)
}

func (r *runner) verifyChain(ctx context.Context) error {
	var first *meta.Finding
	found := 0
	r.Progress("verifying the chain", 0, 0)
	_, err := r.Target.VerifyChain(ctx, 1, func(f meta.Finding) {
		if found++; found == 1 {
			first = &f
		}
	})
	if err == nil && first != nil {
		err = meta.E("migrate", 0, "", meta.KindDamaged, fmt.Errorf(
			"the chain of records does not verify (%d findings, the first: %s): check the source with nexusfs fsck", found, first.Text))
	}
	return err
}

// digest is what one side holds of a table.
type digest struct {
	rows int64
	sum  []byte
}

// digests reads both sides at once.
func (r *runner) digests(ctx context.Context, t *Table) (here, there digest, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		var err error
		here, err = digestOf(ctx, r.Source, t, Mapping{From: r.mapping.From, To: r.mapping.From})
		ended <- err
	}()
	there, err = digestOf(ctx, r.Target, t, r.back())
	if err != nil {
		cancel()
		<-ended
		return here, there, err
	}
	return here, there, <-ended
}

// digestOf reads a table in the order of its keys, with the source's numbers.
func digestOf(ctx context.Context, s Source, t *Table, m Mapping) (digest, error) {
	var d digest
	h := sha256.New()
	var buf []byte
	err := s.Export(ctx, t, nil, func(row Row) error {
		if err := m.Row(t, row); err != nil {
			return err
		}
		d.rows++
		buf = writeRow(h, buf[:0], t, row)
		return nil
	})
	d.sum = h.Sum(nil)
	return d, err
}

// writeRow hashes a row: each value that is compared as a byte for its type and
// eight bytes for a number or a length, big-endian, then the bytes.
func writeRow(h hash.Hash, b []byte, t *Table, row Row) []byte {
	for i, v := range row {
		if t.Columns[i].Local {
			continue
		}
		switch v := v.(type) {
		case nil:
			b = append(b, 0)
		case int64:
			b = binary.BigEndian.AppendUint64(append(b, 1), uint64(v))
		case string:
			b = append(binary.BigEndian.AppendUint64(append(b, 2), uint64(len(v))), v...)
		case []byte:
			b = append(binary.BigEndian.AppendUint64(append(b, 3), uint64(len(v))), v...)
		}
	}
	h.Write(b)
	return b
}
