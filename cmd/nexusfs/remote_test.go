package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestParseRemote(t *testing.T) {
	for _, tc := range []struct{ url, database, zone, password string }{
		{"postgres://fs@db/team", "postgres://fs@db/team", "default", ""},
		{"postgresql://fs@db:5433/team?zone=docs&sslmode=require", "postgres://fs@db:5433/team?sslmode=require", "docs", ""},
		{"postgres://fs:se%40cret@db/team?zone=a.b", "postgres://fs@db/team", "a.b", "se@cret"},
		{"postgres:///team?host=/run/pg&password=p%26q", "postgres:///team?host=%2Frun%2Fpg", "default", "p&q"},
	} {
		r, err := parseRemote(tc.url)
		if err != nil {
			t.Errorf("%s: %v", tc.url, err)
			continue
		}
		if r.Database != tc.database || r.Zone != tc.zone || r.password != tc.password {
			t.Errorf("%s: got %+v", tc.url, *r)
		}
		if again, err := parseRemote(r.display()); err != nil || !again.same(r) {
			t.Errorf("%s: shown as %s, which is another zone", tc.url, r.display())
		}
		if tc.password != "" {
			if again, err := parseRemote(r.address()); err != nil || again.password != tc.password {
				t.Errorf("%s: the address to connect with has the password %q", tc.url, again.password)
			}
		}
	}
	for _, bad := range []string{"postgres://fs:se cret@db/team", "postgres://db/team?zone=a/b", "postgres://db/team?zone=", "postgres://fs:hidden@db:port/x", "postgres://db/x?%zz"} {
		_, err := parseRemote(bad)
		if err == nil || strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestCommandLineShowsNoPassword plays the program: the password must be gone
// from what ps shows, and be there for the program.
func TestCommandLineShowsNoPassword(t *testing.T) {
	if os.Getenv("NEXUSFS_TEST_HIDE") != "" {
		args := hideSecrets(os.Args)
		shown, err := os.ReadFile("/proc/self/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(shown), "s3cret") || !strings.Contains(string(shown), "user:xxxxxx@host") {
			t.Errorf("the command line shows %q", shown)
		}
		if got := args[len(args)-1]; got != "postgres://user:s3cret@host/db?password=s3cret&zone=z" {
			t.Errorf("the program sees %q", got)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCommandLineShowsNoPassword$", "postgres://user:s3cret@host/db?password=s3cret&zone=z")
	cmd.Env = append(os.Environ(), "NEXUSFS_TEST_HIDE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestAConfigurationHoldsNoPassword(t *testing.T) {
	if err := validStoreURL("postgres://fs@db/team?zone=a"); err != nil {
		t.Error(err)
	}
	err := validStoreURL("postgres://fs:s3cret@db/team")
	if err == nil || !strings.Contains(err.Error(), ".pgpass") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}

func TestContentURL(t *testing.T) {
	for _, tc := range []struct{ in, want, says string }{
		{"/srv/blobs/", "/srv/blobs", ""},
		{"file:///srv/blobs", "/srv/blobs", ""},
		{"s3://bucket/prefix?region=x", "s3://bucket/prefix?region=x", ""},
		{"blobs", "", "absolute"},
		{"s3://", "", "s3://bucket"},
		{"http://x/y", "", "http://"},
	} {
		got, err := contentURL(tc.in)
		if got != tc.want || (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %q, %v", tc.in, got, err)
		}
	}
}
