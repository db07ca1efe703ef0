package meta

import "encoding/binary"

// POSIX ACLs are kept as the extended attributes that Linux uses for them
// (posix_acl_xattr.h: a version, then entries of tag, permissions and id,
// little-endian). The kernel decides access by them; the rules here keep the
// mode bits and the ACL telling the same (acl(5), 'correspondence between ACL
// entries and file permission bits').

const (
	aclVersion   = 2
	aclUserObj   = 0x01
	aclUser      = 0x02
	aclGroupObj  = 0x04
	aclGroup     = 0x08
	aclMask      = 0x10
	aclOther     = 0x20
	aclEntrySize = 8
	aclHeader    = 4
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

type acl []aclEntry

// parseACL decodes an ACL; ok is false for what is none.
func parseACL(b []byte) (a acl, ok bool) {
	if len(b) < aclHeader || (len(b)-aclHeader)%aclEntrySize != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, false
	}
	var seen uint16
	for b = b[aclHeader:]; len(b) > 0; b = b[aclEntrySize:] {
		e := aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])}
		switch e.tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			if seen&e.tag != 0 {
				return nil, false
			}
		case aclUser, aclGroup:
		default:
			return nil, false
		}
		if e.perm > 7 {
			return nil, false
		}
		seen |= e.tag
		a = append(a, e)
	}
	const base = aclUserObj | aclGroupObj | aclOther
	if len(a) != 0 && (seen&base != base || seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0) {
		return nil, false
	}
	return a, true
}

func (a acl) encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, aclHeader+len(a)*aclEntrySize), aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// minimal reports whether the mode bits say all that the ACL says.
func (a acl) minimal() bool { return len(a) <= 3 }

// groupClass returns the entry that the mode's group bits stand for.
func (a acl) groupClass() *aclEntry {
	var group *aclEntry
	for i := range a {
		switch a[i].tag {
		case aclMask:
			return &a[i]
		case aclGroupObj:
			group = &a[i]
		}
	}
	return group
}

// mode returns the permission bits that correspond to the ACL.
func (a acl) mode() uint32 {
	var m uint32
	for _, e := range a {
		switch e.tag {
		case aclUserObj:
			m |= uint32(e.perm) << 6
		case aclOther:
			m |= uint32(e.perm)
		}
	}
	if g := a.groupClass(); g != nil {
		m |= uint32(g.perm) << 3
	}
	return m
}

// chmod sets the entries that correspond to the mode bits.
func (a acl) chmod(mode uint32) {
	for i := range a {
		switch a[i].tag {
		case aclUserObj:
			a[i].perm = uint16(mode >> 6 & 7)
		case aclOther:
			a[i].perm = uint16(mode & 7)
		}
	}
	if g := a.groupClass(); g != nil {
		g.perm = uint16(mode >> 3 & 7)
	}
}

// inherit applies the parent's default ACL, or the umask where there is none,
// to a new inode (acl(5), 'object creation and default ACLs').
func (n *newInode) inherit(v *view, dir, a *Attr, ch *Change) error {
	if a.IsSymlink() {
		return nil
	}
	if dir.Flags&FlagDefaultACL == 0 {
		a.Mode &^= n.umask & 0o777
		return nil
	}
	value, err := v.xattr(dir, xattrDefaultACL)
	if err != nil {
		return err
	}
	def, ok := parseACL(value)
	if !ok || len(def) == 0 {
		return E("create", dir.Ino, n.name, KindIO, nil)
	}
	access := append(acl(nil), def...)
	access.chmod(access.mode() & a.Mode)
	a.Mode = a.Mode&^0o777 | access.mode()
	if !access.minimal() {
		ch.Xattrs = append(ch.Xattrs, XattrChange{Ino: a.Ino, Name: xattrACL, Value: access.encode()})
		a.Flags |= FlagXattrs | FlagACL
	}
	if a.IsDir() {
		ch.Xattrs = append(ch.Xattrs, XattrChange{Ino: a.Ino, Name: xattrDefaultACL, Value: def.encode()})
		a.Flags |= FlagXattrs | FlagDefaultACL
	}
	return nil
}

// chmodACL keeps the access ACL in step with new mode bits.
func (v *view) chmodACL(a *Attr, ch *Change) error {
	if a.Flags&FlagACL == 0 {
		return nil
	}
	value, err := v.xattr(a, xattrACL)
	if err != nil {
		return err
	}
	entries, ok := parseACL(value)
	if !ok {
		return E("chmod", a.Ino, "", KindIO, nil)
	}
	entries.chmod(a.Mode)
	ch.Xattrs = append(ch.Xattrs, XattrChange{Ino: a.Ino, Name: xattrACL, Value: entries.encode()})
	return nil
}

// setACL sets an ACL attribute; one that the mode bits can express is not kept.
func (v *view) setACL(before *Attr, name string, value []byte, flags XattrFlags) (*Change, error) {
	entries, ok := parseACL(value)
	if !ok {
		return nil, E("setxattr", before.Ino, name, KindInvalid, nil)
	}
	after := *before
	after.Ctime = v.now
	ch := &Change{Record: Record{Kind: OpSetACL, Ino: before.Ino, Name: name}}
	keep := len(entries) > 0
	if name == xattrDefaultACL {
		if !before.IsDir() {
			return nil, E("setxattr", before.Ino, name, KindAccess, nil)
		}
	} else if keep {
		after.Mode = after.Mode&^0o777 | entries.mode()
		if flags&XattrKillSgid != 0 {
			after.Mode &^= ModeSetgid
		}
		keep = !entries.minimal()
	}
	flag := FlagACL
	if name == xattrDefaultACL {
		flag = FlagDefaultACL
	}
	switch {
	case keep:
		ch.Xattrs = []XattrChange{{Ino: before.Ino, Name: name, Value: entries.encode()}}
		after.Flags |= FlagXattrs | flag
	case before.Flags&flag != 0:
		ch.Xattrs = []XattrChange{{Ino: before.Ino, Name: name}}
		if err := v.clearFlags(&after, name); err != nil {
			return nil, err
		}
	}
	b, a := diff(before, &after)
	if old, err := v.xattr(before, name); err == nil {
		b.hex("value", old)
	}
	if keep {
		a.hex("value", entries.encode())
	}
	ch.Record.Before, ch.Record.After = b.String(), a.String()
	ch.Inodes = []InodeChange{{Before: before, After: after}}
	return ch, nil
}
