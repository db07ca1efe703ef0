package sqlite_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"nexusfs/sqlssot/sqlite"
	"nexusfs/sqlssot/transfer"
	"nexusfs/sqlssot/transfer/transfertest"
)

func TestTransfer(t *testing.T) {
	dirs := map[*testing.T]string{}
	path := func(t *testing.T, database int) string {
		if dirs[t] == "" {
			dirs[t] = t.TempDir()
		}
		return filepath.Join(dirs[t], fmt.Sprint(database))
	}
	transfertest.Run(t, transfertest.Engine{
		Target: func(t *testing.T, database int, zone string) (transfer.Target, func() error) {
			t.Helper()
			target, err := sqlite.OpenTarget(t.Context(), sqlite.Options{Path: path(t, database), Zone: zone})
			if err != nil {
				t.Fatal(err)
			}
			return target, target.Close
		},
		Source: func(t *testing.T, database int, zone string) (transfer.Source, func() error, error) {
			s, err := sqlite.Open(t.Context(), sqlite.Options{Path: path(t, database), Zone: zone, ReadOnly: true})
			if err != nil {
				return nil, nil, err
			}
			return s, s.Close, nil
		},
	})
}
