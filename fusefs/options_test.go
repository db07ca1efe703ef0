package fusefs

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountOptions(t *testing.T) {
	for _, c := range []struct {
		name  string
		opts  string
		root  bool
		flags uintptr
		names string
		check func(*settings) bool
	}{
		{"none as root", "", true, 0, "", func(s *settings) bool { return s.AllowOther && s.maxRead == 1<<20 && s.Source == "nexusfs" }},
		{"none as a user", "", false, 0, "", func(s *settings) bool { return !s.AllowOther }},
		{"flags", "ro,nosuid,nodev,noexec,noatime", true,
			unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME, "ro,nosuid,nodev,noexec,noatime",
			func(s *settings) bool { return s.ReadOnly }},
		{"the last one counts", "ro,rw,nodev,dev", true, 0, "ro,rw,nodev,dev", func(s *settings) bool { return !s.ReadOnly }},
		{"a user gets no devices", "dev,suid,noexec", false, unix.MS_NOEXEC, "noexec",
			func(s *settings) bool { return len(s.notes) == 2 && strings.Contains(s.notes[0], `"dev"`) }},
		{"as mount(8) and fstab say", "defaults,_netdev,nofail,x-systemd.automount,user,default_permissions,comment=a", false, 0, "",
			func(s *settings) bool { return true }},
		{"values", "fsname=a store,max_read=65536,allow_other,subtype=nexusfs", false, 0, "",
			func(s *settings) bool { return s.Source == "a store" && s.maxRead == 65536 && s.AllowOther }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var extra []string
			if c.opts != "" {
				extra = strings.Split(c.opts, ",")
			}
			s, err := Options{Extra: extra}.parse(c.root)
			if err != nil {
				t.Fatal(err)
			}
			if s.flags != c.flags || !slices.Equal(s.names, strings.FieldsFunc(c.names, func(r rune) bool { return r == ',' })) {
				t.Errorf("got flags %#x, names %q", s.flags, s.names)
			}
			if !c.check(s) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func TestUnknownMountOptionIsNamed(t *testing.T) {
	for _, opt := range []string{"colour=red", "allow_root", "max_read=7", "max_read=x", "subtype=other", "ro=1", "uid=5"} {
		_, err := Options{Extra: []string{opt}}.parse(true)
		if err == nil || !strings.Contains(err.Error(), opt) {
			t.Errorf("%s: got %v", opt, err)
		}
	}
}
