package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escapeName makes any name safe for one line of a terminal: control
// characters, bytes that are not UTF-8, the backslash itself and characters
// that reorder or hide text become escapes. What is printed can be read back
// by bash's $'...'.
func escapeName(name string) string {
	if plainName(name) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, name[i])
		case r == '\\':
			b.WriteString(`\\`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !printable(r) && r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		case !printable(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// plainName reports whether a name needs no escape.
func plainName(name string) bool {
	if !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if r == '\\' || !printable(r) {
			return false
		}
	}
	return true
}

// printable leaves out controls, format characters (which hide or reverse
// text) and every space but the ordinary one.
func printable(r rune) bool { return r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r) }

// bytesName is a name in JSON: a string where the bytes are UTF-8, else an
// object {"base64": "..."}, so that no name is changed on its way.
type bytesName string

type encodedName struct {
	Base64 string `json:"base64"`
}

// MarshalJSON implements json.Marshaler.
func (n bytesName) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(n)) {
		return json.Marshal(string(n))
	}
	return json.Marshal(encodedName{base64.StdEncoding.EncodeToString([]byte(n))})
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *bytesName) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		var e encodedName
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		raw, err := base64.StdEncoding.DecodeString(e.Base64)
		if err != nil {
			return fmt.Errorf("name in base64: %w", err)
		}
		*n = bytesName(raw)
		return nil
	}
	return json.Unmarshal(data, (*string)(n))
}
