package s3

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"nexusfs/content"
	"nexusfs/content/contenttest"
	"nexusfs/internal/s3test"
	"nexusfs/meta"
)

const bucket = "blobs-of-tests"

// server is shared by the tests of this package: each uses a prefix of its own.
var server *s3test.Server

func TestMain(m *testing.M) {
	os.Exit(s3test.Main(m, bucket, func(s *s3test.Server) { server = s }))
}

var prefixes atomic.Int64

// options are those of a new store.
func options(t testing.TB) Options {
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	l, err := ParseLocation(fmt.Sprintf("s3://%s/zone/%d?endpoint=http://%s&path_style=true", bucket, prefixes.Add(1), server.Addr))
	if err != nil {
		t.Fatal(err)
	}
	return Options{Location: l, ID: "store of tests", Create: true}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// objectPath is the server's file of a blob's object.
func objectPath(o Options, b meta.Blob) string {
	return filepath.Join(server.Dir, bucket, o.Location.Prefix+objectKey(b))
}

// damageObject changes a stored object behind the server's back.
func damageObject(o Options, b meta.Blob, how contenttest.Damage) error {
	path, base := objectPath(o, b), content.TableLen(b.Size)
	switch how.Kind {
	case contenttest.Cut:
		return os.Truncate(path, base+how.Off)
	case contenttest.Remove:
		return os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], base+how.Off); err != nil {
		return err
	}
	p[0] ^= 0x10
	_, err = f.WriteAt(p[:], base+how.Off)
	return err
}

func TestConformance(t *testing.T) {
	contenttest.Run(t, func(t *testing.T) *contenttest.Harness {
		o := options(t)
		h := &contenttest.Harness{Content: mustOpen(t, o), Unfreed: contenttest.Walked}
		h.Reopen = func() (meta.Content, error) { return Open(context.WithoutCancel(t.Context()), o) }
		h.Damage = func(b meta.Blob, how contenttest.Damage) error { return damageObject(o, b, how) }
		return h
	})
}

func names(t *testing.T, o Options) []string {
	t.Helper()
	var list []string
	root := filepath.Join(server.Dir, bucket, o.Location.Prefix)
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
