package fusefs

import (
	"strings"
	"testing"
)

const someMounts = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
35 22 0:31 / /sys/fs/cgroup rw,nosuid shared:9 master:3 - tmpfs tmpfs ro,mode=755
90 22 0:52 / /mnt/my\040data\134x rw,relatime - fuse.nexusfs a\040store rw,user_id=0,allow_other
91 22 0:52 /sub /srv/bind rw - fuse.nexusfs a\040store rw
92 90 0:60 / /mnt/my\040data\134x/inner rw - tmpfs tmpfs rw
93 22 0:61 / /cover rw - fuse.nexusfs below rw
94 93 0:62 / /cover rw - tmpfs tmpfs rw
95 22 0:63 / /other rw - fuse.sshfs host:/ rw
a line that makes no sense
96 22 0:64 / /no-separator rw
`

func TestParseMounts(t *testing.T) {
	table, err := parseMounts(strings.NewReader(someMounts))
	if err != nil {
		t.Fatal(err)
	}
	if len(table) != 8 {
		t.Fatalf("got %d mounts: %+v", len(table), table)
	}
	want := mountEntry{device: "0:52", root: "/", path: `/mnt/my data\x`, fstype: "fuse.nexusfs", source: "a store"}
	if table[2] != want {
		t.Errorf("got %+v, want %+v", table[2], want)
	}
	for _, c := range []struct {
		path, mount string
		ours        bool
	}{
		{`/mnt/my data\x/a/b`, `/mnt/my data\x`, true},
		{`/mnt/my data\x`, `/mnt/my data\x`, true},
		{`/mnt/my data\xy`, "/", false},
		{`/mnt/my data\x/inner/f`, `/mnt/my data\x/inner`, false},
		{"/srv/bind/f", "/srv/bind", true},
		{"/cover/f", "/cover", false}, // covered by a mount on top
		{"/other", "/other", false},
		{"/etc", "/", false},
	} {
		e := innermost(table, c.path)
		if e == nil || e.path != c.mount || e.ours() != c.ours {
			t.Errorf("%s: got %+v, want %s ours %t", c.path, e, c.mount, c.ours)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`plain`: "plain", `\040`: " ", `a\011b\012c`: "a\tb\nc", `\134040`: `\040`,
		`\04`: `\04`, `\999`: `\999`, `end\`: `end\`, `\777`: `\777`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
