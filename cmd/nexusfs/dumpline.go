package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// The lines of a dump: docs/DUMP.md has the format for users.

// dumpVersion is that of the format, in the first line.
const dumpVersion = 1

// dumpEntry is one line: one name. Pointers are nil where a line says nothing.
type dumpEntry struct {
	Path   bytesName   `json:"path"`
	Type   string      `json:"type"`
	Size   *int64      `json:"size"`
	Mode   *fileMode   `json:"mode"`
	UID    *uint32     `json:"uid"`
	GID    *uint32     `json:"gid"`
	Mtime  *stamp      `json:"mtime"`
	Atime  *stamp      `json:"atime"`
	Ctime  *stamp      `json:"ctime"`
	Btime  *stamp      `json:"btime"`
	Ino    uint64      `json:"ino"`
	Nlink  uint32      `json:"nlink"`
	Target bytesName   `json:"target"`
	Rdev   *rdev       `json:"rdev"`
	Xattrs []dumpXattr `json:"xattrs"`
	Hash   string      `json:"hash"` // BLAKE3 of the content, hexadecimal

	// Of the first and last line, which have no path.
	Dump     int       `json:"nexusfs_dump"`
	Zone     string    `json:"zone"`
	Root     bytesName `json:"root"`
	Revision meta.Rev  `json:"revision"`
	End      bool      `json:"end"`
	Entries  int64     `json:"entries"`
}

type dumpXattr struct {
	Name  bytesName `json:"name"`
	Value []byte    `json:"value"` // base64
}

// fileMode is permission bits: octal text, or a plain number.
type fileMode uint32

// UnmarshalJSON implements json.Unmarshaler.
func (m *fileMode) UnmarshalJSON(data []byte) error {
	base, text := 10, string(data)
	if len(text) > 1 && text[0] == '"' {
		base, text = 8, text[1:len(text)-1]
	}
	n, err := strconv.ParseUint(text, base, 32)
	if err != nil || n > 0o7777 {
		return fmt.Errorf("mode %s is no permission bits: give octal text such as \"0644\"", data)
	}
	*m = fileMode(n)
	return nil
}

// stamp is a time in ns since 1970: RFC 3339 text with up to nine digits of a
// second, or a plain number.
type stamp int64

// UnmarshalJSON implements json.Unmarshaler.
func (s *stamp) UnmarshalJSON(data []byte) error {
	if data[0] != '"' {
		n, err := strconv.ParseInt(string(data), 10, 64)
		*s = stamp(n)
		if err != nil {
			err = fmt.Errorf("time %s is no number of nanoseconds", data)
		}
		return err
	}
	t, err := time.Parse(time.RFC3339Nano, string(data[1:len(data)-1]))
	if err != nil || t.Before(time.Unix(0, math.MinInt64)) || t.After(time.Unix(0, math.MaxInt64)) {
		return fmt.Errorf("time %s is not like \"2025-11-22T10:00:00.123456789Z\", from 1678 to 2262", data)
	}
	*s = stamp(t.UnixNano())
	return nil
}

// rdev is a device number, "MAJOR:MINOR" in JSON and in the kernel's encoding here.
type rdev uint32

// UnmarshalJSON implements json.Unmarshaler.
func (r *rdev) UnmarshalJSON(data []byte) error {
	var text string
	var major, minor uint32
	if err := json.Unmarshal(data, &text); err == nil {
		a, b, _ := strings.Cut(text, ":")
		m, err1 := strconv.ParseUint(a, 10, 12)
		n, err2 := strconv.ParseUint(b, 10, 20)
		if err1 == nil && err2 == nil {
			major, minor = uint32(m), uint32(n)
			*r = rdev(minor&0xff | major<<8 | minor&^0xff<<12)
			return nil
		}
	}
	return fmt.Errorf("rdev %s is not like \"8:1\"", data)
}

func (r rdev) String() string {
	return fmt.Sprintf("%d:%d", unix.Major(uint64(r)), uint32(r)&0xff|uint32(r)>>12&0xfff00)
}

// fileTypes names the types, by the kernel's type bits >> 12.
var fileTypes = [16]string{1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "symlink", 12: "socket"}

func typeText(mode uint32) string { return fileTypes[mode>>12&15] }

// findTypes are the letters of find(1) for the same.
var findTypes = [16]string{1: "p", 2: "c", 4: "d", 6: "b", 8: "f", 10: "l", 12: "s"}

// typeBits is the other way round; 0 for what is no type.
func typeBits(name string) uint32 {
	for i, have := range fileTypes {
		if name != "" && (have == name || findTypes[i] == name) {
			return uint32(i) << 12
		}
	}
	return 0
}

// parseEntry reads a line. clean is its path without a leading slash, "" for
// the root. mode has the type's bits, and the permissions that the line has or
// that stand for it.
func parseEntry(line []byte) (e *dumpEntry, clean string, mode uint32, err error) {
	e = new(dumpEntry)
	if err := json.Unmarshal(line, e); err != nil {
		return nil, "", 0, jsonError(err)
	}
	if e.Dump != 0 || e.End {
		return e, "", 0, e.checkVersion()
	}
	if e.Path == "" {
		return nil, "", 0, errors.New("it has no path")
	}
	if clean, err = cleanPath(string(e.Path)); err != nil {
		return nil, "", 0, err
	}
	if e.Type == "" {
		e.Type = "file"
		if e.Target != "" {
			e.Type = "symlink"
		} else if clean == "" || strings.HasSuffix(string(e.Path), "/") {
			e.Type = "dir"
		}
	}
	bits := typeBits(e.Type)
	if bits == 0 {
		return nil, "", 0, fmt.Errorf("type %q is not known: give file, dir, symlink, fifo, socket, char or block", e.Type)
	}
	e.Type = typeText(bits)
	return e, clean, bits | e.permissions(bits), e.check(bits, clean)
}

func (e *dumpEntry) checkVersion() error {
	if e.Dump > dumpVersion {
		return fmt.Errorf("the dump has format %d, this nexusfs reads up to %d: use a newer nexusfs", e.Dump, dumpVersion)
	}
	return nil
}

// permissions are the line's, or what stands for them.
func (e *dumpEntry) permissions(bits uint32) uint32 {
	switch {
	case bits == meta.ModeSymlink:
		return 0o777
	case e.Mode != nil:
		return uint32(*e.Mode)
	case bits == meta.ModeDir:
		return 0o755
	}
	return 0o644
}

// check finds what contradicts itself.
func (e *dumpEntry) check(bits uint32, clean string) error {
	switch {
	case (bits == meta.ModeSymlink) != (e.Target != ""):
		return errors.New("a symbolic link has a target, and nothing else has")
	case e.Size != nil && *e.Size < 0:
		return fmt.Errorf("size %d is negative", *e.Size)
	case (bits == meta.ModeChar || bits == meta.ModeBlock) && e.Rdev == nil:
		return errors.New("a device needs rdev, such as \"8:1\"")
	case clean == "" && bits != meta.ModeDir:
		return errors.New("its path is that of the root, which is a directory")
	case e.Hash != "" && !isHash(e.Hash):
		return fmt.Errorf("hash %q is not 64 hexadecimal digits", e.Hash)
	}
	return nil
}

func isHash(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// jsonError shortens what the decoder says.
func jsonError(err error) error {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return fmt.Errorf("%s is no %s", te.Field, te.Type)
	}
	return err
}

// cleanPath makes a path relative to the root and refuses one that leaves it.
func cleanPath(p string) (string, error) {
	if strings.IndexByte(p, 0) >= 0 {
		return "", errors.New("its path holds a NUL")
	}
	parts := strings.Split(p, "/")
	if slices.Contains(parts, "..") {
		return "", errors.New("its path holds ..: give paths from the root")
	}
	return strings.TrimPrefix(path.Clean("/"+p), "/"), nil
}

// appendEntry writes a line of a dump: by hand, because it is all that a dump
// of a million files does in this process.
func appendEntry(b []byte, e *dumpEntry, a *meta.Attr) []byte {
	b = append(b, `{"path":`...)
	b = appendName(b, string(e.Path))
	b = append(b, `,"type":"`...)
	b = append(b, e.Type...)
	b = append(b, '"')
	if a.IsRegular() {
		b = strconv.AppendInt(append(b, `,"size":`...), a.Size, 10)
	}
	b = fmt.Appendf(b, `,"mode":"%04o"`, a.Mode&meta.ModePerm)
	b = strconv.AppendUint(append(b, `,"uid":`...), uint64(a.UID), 10)
	b = strconv.AppendUint(append(b, `,"gid":`...), uint64(a.GID), 10)
	b = appendTime(b, `,"mtime":"`, a.Mtime)
	b = appendTime(b, `,"atime":"`, a.Atime)
	b = appendTime(b, `,"ctime":"`, a.Ctime)
	b = appendTime(b, `,"btime":"`, a.Btime)
	b = strconv.AppendUint(append(b, `,"ino":`...), uint64(a.Ino), 10)
	b = strconv.AppendUint(append(b, `,"nlink":`...), uint64(a.Nlink), 10)
	if a.IsSymlink() {
		b = appendName(append(b, `,"target":`...), string(e.Target))
	}
	if t := a.Mode & meta.ModeType; t == meta.ModeChar || t == meta.ModeBlock {
		b = fmt.Appendf(b, `,"rdev":"%s"`, rdev(a.Rdev))
	}
	if len(e.Xattrs) > 0 {
		b = append(append(b, `,"xattrs":`...), mustJSON(e.Xattrs)...)
	}
	if e.Hash != "" {
		b = append(append(append(b, `,"hash":"`...), e.Hash...), '"')
	}
	return append(b, '}', '\n')
}

func appendTime(b []byte, key string, ns int64) []byte {
	b = append(b, key...)
	b = time.Unix(0, ns).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z")
	return append(b, '"')
}

// appendName is bytesName's JSON, quickly for plain names.
func appendName(b []byte, name string) []byte {
	for i := range len(name) {
		if c := name[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return append(b, mustJSON(bytesName(name))...)
		}
	}
	b = append(b, '"')
	b = append(b, name...)
	return append(b, '"')
}
