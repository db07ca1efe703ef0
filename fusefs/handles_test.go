package fusefs

import (
	"runtime"
	"sync"
	"testing"
)

func TestHandlesUnderConcurrency(t *testing.T) {
	var table handles
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			var mine []uint64
			for i := range 5000 {
				fh, fits := table.add(&openFile{node: uint64(w)})
				if !fits || fh == 0 {
					t.Error("no number")
					return
				}
				mine = append(mine, fh)
				if of := table.get(fh); of == nil || of.node != uint64(w) {
					t.Errorf("number %d is somebody else's", fh)
				}
				if i%3 == 0 {
					fh, mine = mine[0], mine[1:]
					if of := table.remove(fh); of == nil || of.node != uint64(w) {
						t.Errorf("removed somebody else's %d", fh)
					}
				}
			}
		})
	}
	wg.Wait()
	if got, want := table.open(), 8*(5000-1667); got != want {
		t.Errorf("%d open, want %d", got, want)
	}
	nodes := 0
	table.nodes(func(uint64) { nodes++ })
	if nodes != table.open() {
		t.Errorf("%d nodes for %d handles", nodes, table.open())
	}
	table.drain(func(*openFile) { nodes-- })
	if nodes != 0 || table.open() != 0 {
		t.Errorf("after the drain %d are left, %d open", nodes, table.open())
	}
}

func TestHandlesAreRemovedOnce(t *testing.T) {
	var table handles
	fh, _ := table.add(&openFile{})
	if table.remove(fh) == nil || table.remove(fh) != nil || table.get(fh) != nil {
		t.Errorf("number %d: want it known until its first removal", fh)
	}
}

func TestHandlesRefuseUnknownNumbers(t *testing.T) {
	var table handles
	gone, _ := table.add(&openFile{})
	table.remove(gone)
	for _, fh := range []uint64{0, gone, handleChunk, handleChunk*handleChunks + 1, ^uint64(0)} {
		if table.get(fh) != nil || table.remove(fh) != nil {
			t.Errorf("number %d is known", fh)
		}
	}
}

func TestHandlesAreSmall(t *testing.T) {
	const n = 10000
	before := heap()
	table := new(handles)
	for range n {
		table.add(&openFile{})
	}
	if each := float64(heap()-before) / n; each > 200 {
		t.Errorf("an open file costs %.0f bytes here", each)
	}
	runtime.KeepAlive(table)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestDirtySet(t *testing.T) {
	var d dirtySet
	a, b := &openFile{node: 9}, &openFile{node: 9}
	d.wrote(a)
	d.wrote(a)
	d.wrote(b)
	if !d.has(9) || d.has(10) {
		t.Fatal("wrong inode")
	}
	if err := d.commit(a, func() error {
		if !d.has(9) {
			t.Error("clean while the commit is under way")
		}
		d.wrote(a) // comes too late for this commit
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	d.commit(b, func() error { return nil })
	if !d.has(9) {
		t.Error("the late write was lost")
	}
	d.commit(a, func() error { return errBusy })
	if !d.has(9) {
		t.Error("clean after a commit that failed")
	}
	d.commit(a, func() error { return nil })
	if d.has(9) || d.total.Load() != 0 {
		t.Errorf("dirty after all was committed: %d", d.total.Load())
	}
}
