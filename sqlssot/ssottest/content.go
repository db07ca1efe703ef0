package ssottest

import (
	"fmt"
	"math"
	"testing"

	"nexusfs/meta"
	"pgregory.net/rapid"
)

var contentCases = []Case{
	{"ContentWithItsName", contentWithItsName},
	{"ContentSplits", contentSplits},
	{"ContentModel", contentModel},
	{"ContentFarOut", contentFarOut},
	{"ContentShared", contentShared},
	{"ContentPages", contentPages},
}

// contentWithItsName: one change makes a file and its content.
func contentWithItsName(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	with := func(parent meta.Ino, name, data string) *meta.Change {
		c := w.create(parent, name)
		b := w.blob([]byte(data))
		c.Content = &meta.ContentChange{Ino: c.Record.Ino, Fresh: true, Blobs: []meta.NewBlob{b},
			Ranges: []meta.RangeChange{{Len: b.Size, Extents: []meta.Extent{{Len: b.Size, Blob: b.Blob}}}}}
		c.Inodes[0].After.Size, c.Version.Size, c.Record.Size = b.Size, b.Size, b.Size
		return c
	}
	for _, w.place = range []meta.Place{meta.PlaceInline, meta.PlacePack} {
		dir := w.mkdir(1, fmt.Sprint("dir", w.place))
		in := dir.Record.Ino
		w.must(dir, with(in, "a", "content of a"), with(in, "b", "content of a"), with(in, "c", "content of c"))
		w.compare()
		w.refused(with(in, "a", fmt.Sprint("a taken name", w.place)))
		ino := w.now.nodes[in].names["a"]
		w.must(w.write(ino, false, piece{off: 3, data: []byte("XX")}))
		w.must(w.write(ino, true, piece{off: 8, data: []byte("a longer end")}))
		w.must(w.remove(in, "b"))
		w.compare()
	}
	for rev := range w.past {
		w.compareAt(rev)
	}
	w.verify()
}

// contentSplits: each way in which a range can lie over an extent.
func contentSplits(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	for i, p := range []piece{
		{off: 0, data: []byte("AAAA")}, {off: 96, data: []byte("BBBB")}, {off: 40, data: []byte("CC")},
		{off: 0, n: 100}, {off: 10, n: 1}, {off: 99, n: 50}, {off: 100, data: []byte("DD")}, {off: 0, n: math.MaxInt64},
	} {
		name := fmt.Sprint(i)
		w.must(w.create(1, name))
		ino := w.now.nodes[1].names[name]
		base := make([]byte, 100)
		for j := range base {
			base[j] = byte('a' + j%26)
		}
		w.must(w.write(ino, true, piece{data: base}))
		w.must(w.write(ino, true, p))
		w.compare()
		w.must(w.write(ino, true, piece{off: 5, data: []byte("zz")}, piece{off: 50, n: 10}, piece{off: 95, data: []byte("yyyyyyyyyy")}))
		w.compare()
	}
	for rev := range w.past {
		w.compareAt(rev)
	}
	w.verify()
}

// contentModel writes, cuts and shares at random, and reads every past state.
func contentModel(tb testing.TB, f Factory) {
	db, n := f(tb), 0
	rapid.Check(tb, func(t *rapid.T) {
		n++
		w := openWorld(t, db.Zone(tb, fmt.Sprintf("zone%d", n)))
		defer w.s.Close()
		w.place = rapid.SampledFrom([]meta.Place{meta.PlaceInline, meta.PlacePack}).Draw(t, "place")
		w.must(w.create(1, "f"), w.create(1, "g"))
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			ino := w.now.nodes[1].names[rapid.SampledFrom([]string{"f", "g"}).Draw(t, "file")]
			w.must(drawWrite(t, w, ino))
		}
		w.compare()
		for rev := meta.Rev(1); rev <= w.now.rev; rev++ {
			w.compareAt(rev)
		}
		w.verify()
	})
}

// drawWrite is a random change of a file's content.
func drawWrite(t *rapid.T, w *world, ino meta.Ino) *meta.Change {
	if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
		return w.truncate(ino, rapid.Int64Range(0, 120).Draw(t, "size"))
	}
	var pieces []piece
	for off := int64(0); len(pieces) == 0 || off < 200 && rapid.Bool().Draw(t, "more"); {
		p := piece{off: off + rapid.Int64Range(0, 60).Draw(t, "gap")}
		p.n = rapid.Int64Range(1, 50).Draw(t, "len")
		if rapid.IntRange(0, 3).Draw(t, "hole") > 0 {
			p.data = make([]byte, p.n)
			letter := rapid.SampledFrom([]byte("abcd")).Draw(t, "letter") // few letters: blobs are shared
			for i := range p.data {
				p.data[i] = letter
			}
		}
		pieces = append(pieces, p)
		off = p.off + p.n
	}
	return w.write(ino, rapid.Bool().Draw(t, "version"), pieces...)
}

// contentFarOut: offsets up to the largest.
func contentFarOut(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"))
	ino := w.now.nodes[1].names["f"]
	const far = math.MaxInt64 - 10
	write := func(c *meta.Change) {
		out := w.send(c)
		w.ok(out[0].Err)
		c.Inodes[0].After.Rev = out[0].Rev
		w.now.rev = out[0].Rev
		w.now.nodes[ino].attr = c.Inodes[0].After
		w.now.nodes[ino].attr.ContentRev = out[0].Rev
	}
	write(w.write(ino, true, piece{off: far, data: []byte("0123456789")}))
	c := w.write(ino, true, piece{off: far + 2, data: []byte("xx")})
	c.Content.Fresh = false
	write(c)
	ext, err := w.s.Extents(ctx, ino, far, math.MaxInt64, 10, true)
	w.ok(err)
	got := ""
	for _, e := range ext {
		got += string(e.Data[e.BlobOff : e.BlobOff+e.Len])
	}
	if got != "01xx456789" {
		tb.Fatalf("read %q", got)
	}
	c = w.write(ino, true, piece{off: far + 5, n: math.MaxInt64})
	c.Content.Fresh = false
	write(c)
	if ext, err = w.s.Extents(ctx, ino, 0, math.MaxInt64, 10, false); err != nil || len(ext) != 3 || ext[2].Off != far+4 || ext[2].Len != 1 || ext[0].Data != nil {
		tb.Fatalf("extents %+v, %v", ext, err)
	}
	w.verify()
}

// contentShared: one blob under many extents, in one change and over many.
func contentShared(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.place = meta.PlaceFile
	w.must(w.create(1, "f"), w.create(1, "g"))
	x, y := w.now.nodes[1].names["f"], w.now.nodes[1].names["g"]
	same := []byte("same")
	w.must(w.write(x, true, piece{data: same}, piece{off: 10, data: same}, piece{off: 20, data: same}))
	w.must(w.write(y, true, piece{data: same}))
	w.must(w.write(x, true, piece{off: 1, n: 2}))
	w.must(w.write(x, true, piece{off: 10, data: same}))
	w.compare()
	w.verify()
	blobs := 0
	w.ok(w.s.BlobsSince(ctx, 1, func(b meta.Blob, first meta.Rev) error {
		blobs++
		if first != 4 {
			tb.Errorf("the blob was first used at %d, want 4", first)
		}
		return nil
	}))
	if blobs != 1 {
		tb.Errorf("%d blobs, want 1", blobs)
	}
}

// contentPages: windows and limits of Extents.
func contentPages(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"))
	ino := w.now.nodes[1].names["f"]
	var pieces []piece
	for i := range int64(20) {
		pieces = append(pieces, piece{off: i * 10, data: []byte(fmt.Sprintf("%05d", i))})
	}
	w.must(w.write(ino, true, pieces...))
	for _, c := range []struct {
		off, end    int64
		limit       int
		first, want int64
	}{
		{0, 200, 100, 0, 20}, {0, 200, 3, 0, 3}, {4, 5, 100, 0, 1}, {5, 10, 100, 0, 0}, {5, 11, 100, 10, 1}, {14, 31, 100, 10, 3}, {195, 900, 9, 0, 0}, {194, 900, 9, 190, 1},
	} {
		for _, at := range []bool{false, true} {
			ext, err := w.s.Extents(ctx, ino, c.off, c.end, c.limit, false)
			if at {
				ext, err = w.s.ExtentsAt(ctx, ino, w.now.rev, c.off, c.end, c.limit, false)
			}
			w.ok(err)
			if int64(len(ext)) != c.want || len(ext) > 0 && ext[0].Off != c.first {
				tb.Errorf("[%d,%d) limit %d at=%v: %+v", c.off, c.end, c.limit, at, ext)
			}
		}
	}
}
