package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMountOptions(t *testing.T) {
	day := 24 * time.Hour
	cases := []struct {
		name, in string
		want     mountOptions
	}{
		{"nothing", "", mountOptions{}},
		{"what fstab brings", "defaults,rw,noauto,nofail,user=joe,_netdev,x-systemd.automount,X-mount.mkdir,comment=hello,noatime", mountOptions{}},
		{"read-only", "ro,allow_other,default_permissions", mountOptions{ReadOnly: true, AllowOther: true}},
		{"the last wins", "ro,rw,nodev,dev,suid,nosuid", mountOptions{Kernel: []string{"dev", "nosuid"}}},
		{"history with a comma", "history=30v,7d,ro", mountOptions{ReadOnly: true, History: historyPolicy{Versions: 30, MaxAge: 7 * day}}},
		{"history quoted", `history="30v,7d",ro`, mountOptions{ReadOnly: true, History: historyPolicy{Versions: 30, MaxAge: 7 * day}}},
		{"history off", "history=off", mountOptions{History: historyPolicy{Off: true}}},
		{"history in weeks", "history=2w", mountOptions{History: historyPolicy{MaxAge: 14 * day}}},
		{"labels", "agent=builder 7,task=a=b,fsname=team", mountOptions{Agent: "builder 7", Task: "a=b", Source: "team"}},
		{"comma in a value", `agent=a\,b,ro`, mountOptions{ReadOnly: true, Agent: "a,b"}},
		{"sync is strict", "sync", mountOptions{Durability: "strict"}},
		{"durability", "sync,durability=relaxed", mountOptions{Durability: "relaxed"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			var got mountOptions
			if err := got.parse(tc.in); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMountOptionsRefused(t *testing.T) {
	for _, tc := range []struct{ in, says string }{
		{"nope", "nope"},
		{"nope=1", "nope=1"},
		{"durability=some", "relaxed or strict"},
		{"history=30x", "30x"},
		{"history=30v,40v", "30v"},
		{"history=0v", "0v"},
		{"history=", "history="},
		{"remount,ro", "umount"},
		{"allow_root", "allow_other"},
		{"agent=a\x1bb", `a\x1bb`},
		{"task=" + strings.Repeat("x", 300), "255"},
	} {
		var m mountOptions
		err := m.parse(tc.in)
		if err == nil || !strings.Contains(err.Error(), tc.says) || exitCode(err) != exitUsage {
			t.Errorf("%.20q: got %v (exit %d), want exit 2 and %q", tc.in, err, exitCode(err), tc.says)
		}
	}
}

func TestHistoryPolicyReadsWhatItWrites(t *testing.T) {
	for _, s := range []string{"off", "30v", "7d", "30v,7d", "36h", "1v,14d"} {
		p, err := parseHistory(s)
		if err != nil || p.String() != s {
			t.Errorf("%s is written as %s (%v)", s, p, err)
		}
	}
}

// TestOptionLayers: defaults, configuration, the store's own, -o, flags.
func TestOptionLayers(t *testing.T) {
	c := defaultConfig()
	c.Mount.Agent, c.Mount.Options = "from-config", "noexec"
	c.Stores["s"] = StoreConfig{URL: "/s", Options: "agent=from-store,task=t1"}
	var m mountOptions
	err := m.layer(c, "s", mountFlags{options: []string{"agent=from-o,exec", "history=5v"}, agent: "from-flag"})
	if err != nil {
		t.Fatal(err)
	}
	m.settleFor(&target{store: "/s"})
	want := mountOptions{Durability: "relaxed", History: historyPolicy{Versions: 5}, Agent: "from-flag", Task: "t1", Kernel: []string{"exec"}}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

// TestOptionsOfADatabase: what a mount of one leaves open is strict, and its
// content is where the mount says.
func TestOptionsOfADatabase(t *testing.T) {
	for _, tc := range []struct{ options, durability, content string }{
		{"content=/srv/blobs", "strict", "/srv/blobs"},
		{"durability=relaxed", "relaxed", ""},
	} {
		r := &remote{Database: "postgres://db/x", Zone: "default"}
		var m mountOptions
		if err := m.layer(defaultConfig(), "", mountFlags{options: []string{tc.options}}); err != nil {
			t.Fatal(err)
		}
		m.settleFor(&target{remote: r})
		if m.Durability != tc.durability || r.Content != tc.content {
			t.Errorf("%s: durability %q, content %q", tc.options, m.Durability, r.Content)
		}
	}
}

func TestMountHelperCommandLines(t *testing.T) {
	cases := []struct {
		line string
		want helperCall
	}{
		{"work /mnt", helperCall{spec: "work", dir: "/mnt"}},
		{"work /mnt -o rw,noauto", helperCall{spec: "work", dir: "/mnt", options: []string{"rw,noauto"}}},
		{"work /mnt -sn -v -o ro -t fuse.nexusfs", helperCall{spec: "work", dir: "/mnt", options: []string{"ro"}}},
		{"-o ro work /mnt -N /proc/7/ns/mnt", helperCall{spec: "work", dir: "/mnt", options: []string{"ro"}}},
		{"work /mnt -vro allow_other", helperCall{spec: "work", dir: "/mnt", options: []string{"ro", "allow_other"}}},
		{"work /mnt -oro", helperCall{spec: "work", dir: "/mnt", options: []string{"ro"}}},
		{"work /mnt -f", helperCall{spec: "work", dir: "/mnt", fake: true}},
		{"--umount /mnt -n -t nexusfs", helperCall{umount: true, dir: "/mnt"}},
		{"--umount /mnt -lf", helperCall{umount: true, dir: "/mnt", lazy: true}},
	}
	for _, tc := range cases {
		got, err := parseHelper(strings.Fields(tc.line))
		if err != nil {
			t.Errorf("%s: %v", tc.line, err)
		}
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(helperCall{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.line, diff)
		}
	}
	for _, line := range []string{"", "work", "work /mnt extra", "work /mnt -o", "work /mnt -x", "--umount a b"} {
		if _, err := parseHelper(strings.Fields(line)); exitCode(err) != exitUsage {
			t.Errorf("%q: got %v, want a usage error", line, err)
		}
	}
	if got := helperArgs("mount.fuse.nexusfs", []string{"a", "b"}); !slices.Equal(got, []string{"mount-helper", "a", "b"}) {
		t.Errorf("mount.fuse.nexusfs becomes %q", got)
	}
	if got := helperArgs("umount.nexusfs", []string{"b"}); !slices.Equal(got, []string{"mount-helper", "--umount", "b"}) {
		t.Errorf("umount.nexusfs becomes %q", got)
	}
	if got := helperArgs("nexusfs", []string{"status"}); !slices.Equal(got, []string{"status"}) {
		t.Errorf("nexusfs becomes %q", got)
	}
}
