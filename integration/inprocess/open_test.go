package inprocess

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"

	"nexusfs/content/local"
	"nexusfs/meta"
	"nexusfs/sqlssot/sqlite"
)

// caseNumber keeps the cases of one store apart.
var caseNumber atomic.Int64

// open makes a zone and opens it. When the test ends it is closed, and fsck
// must find nothing.
func open(t *testing.T) *meta.FS {
	t.Helper()
	ctx, dir := context.Background(), t.TempDir()
	db, err := sqlite.Create(ctx, sqlite.Options{Path: filepath.Join(dir, "meta.db"), Mode: 0o777})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := local.Open(ctx, local.Options{Dir: filepath.Join(dir, "content")})
	if err != nil {
		t.Fatal(err)
	}
	fs := meta.New(meta.Options{Store: db, History: db, Sessions: db, Upkeep: db, Content: blobs, BootID: "boot", Node: "node"})
	if err := fs.Open(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(ctx); err != nil {
			t.Error(err)
		}
		report := func(f meta.Finding) { t.Errorf("fsck: %+v", f) }
		if err := db.Verify(ctx, report); err != nil {
			t.Error(err)
		}
		if _, err := db.VerifyChain(ctx, 1, report); err != nil {
			t.Error(err)
		}
		if err := blobs.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return fs
}
