package main

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscapeName(t *testing.T) {
	cases := []struct{ name, in, want string }{
		{"plain", "report (final).txt", "report (final).txt"},
		{"utf-8", "naïve-名前.txt", "naïve-名前.txt"},
		{"newline", "a\nb", `a\nb`},
		{"escape", "\x1b[31mred", `\x1b[31mred`},
		{"backslash", `a\nb`, `a\\nb`},
		{"invalid utf-8", "a\xff\xfeb", `a\xff\xfeb`},
		{"right-to-left override", "a\u202etxt.exe", `a\u202etxt.exe`},
		{"no-break space", "a\u00a0b", `a\u00a0b`},
		{"beyond 16 bits", "a\U000e0001b", `a\U000e0001b`},
		{"delete", "a\x7f", `a\x7f`},
		{"replacement character itself", "a\ufffdb", "a\ufffdb"},
		{"empty", "", ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got := escapeName(tc.in); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// FuzzEscapeName: what is printed is one line of harmless text, and bash's
// $'...' reads it back.
func FuzzEscapeName(f *testing.F) {
	for _, s := range []string{"a", "a\nb", "\xff", "\u202e", `\`, "\x1b]0;x\a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := escapeName(name)
		if !utf8.ValidString(got) || strings.IndexFunc(got, func(r rune) bool { return !printable(r) }) >= 0 {
			t.Errorf("%q becomes %q, which is not harmless", name, got)
		}
	})
}

func TestShellQuoteReadsBack(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	for _, name := range []string{"plain", "with space", "it's", "a\nb", "\x1b[1m'q'", `back\slash`, "$HOME `id`", "\xff\xfe", ""} {
		out, err := exec.Command(bash, "-c", "LC_ALL=C.UTF-8; printf %s "+shellQuote(name)).Output()
		if err != nil || string(out) != name {
			t.Errorf("%q is quoted as %s, which bash reads as %q (%v)", name, shellQuote(name), out, err)
		}
	}
}

func TestBytesNameInJSON(t *testing.T) {
	for _, tc := range []struct{ name, want string }{
		{"plain", `"plain"`},
		{"a\nb", `"a\nb"`},
		{"\xff", `{"base64":"/w=="}`},
	} {
		data, err := json.Marshal(bytesName(tc.name))
		if err != nil || string(data) != tc.want {
			t.Errorf("%q: got %s, %v, want %s", tc.name, data, err, tc.want)
		}
		var back bytesName
		if err := json.Unmarshal(data, &back); err != nil || string(back) != tc.name {
			t.Errorf("%q comes back as %q, %v", tc.name, back, err)
		}
	}
	var n bytesName
	if err := json.Unmarshal([]byte(`{"base64":"%"}`), &n); err == nil {
		t.Errorf("broken base64 is taken as %q", n)
	}
}
