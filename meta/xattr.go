package meta

import (
	"context"
	"slices"
)

// XattrFlags are the flags of setxattr(2), with Linux's values.
type XattrFlags uint32

// The flags.
const (
	XattrCreate   XattrFlags = 1 // fail if it exists
	XattrReplace  XattrFlags = 2 // fail if it does not
	XattrKillSgid XattrFlags = 4 // an ACL set by someone outside the file's group
)

// Attributes with a meaning of their own.
const (
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
	xattrCapability = "security.capability"
)

// GetXattr returns one extended attribute. KindNoData.
func (fs *FS) GetXattr(ctx context.Context, ino Ino, name string) ([]byte, error) {
	if err := fs.recent(ctx); err != nil {
		return nil, err
	}
	a, err := fs.attr(ctx, ino)
	if err != nil {
		return nil, err
	}
	if a.lacks(name) {
		return nil, E("getxattr", ino, name, KindNoData, nil)
	}
	return fs.o.Store.Xattr(ctx, ino, name)
}

// lacks says without a read that an attribute is not there.
func (a *Attr) lacks(name string) bool {
	switch name {
	case xattrACL:
		return a.Flags&FlagACL == 0
	case xattrDefaultACL:
		return a.Flags&FlagDefaultACL == 0
	case xattrCapability:
		return a.Flags&FlagCapability == 0
	}
	return a.Flags&FlagXattrs == 0
}

// ListXattr returns the names of all extended attributes.
func (fs *FS) ListXattr(ctx context.Context, ino Ino) ([]string, error) {
	if err := fs.recent(ctx); err != nil {
		return nil, err
	}
	a, err := fs.attr(ctx, ino)
	if err != nil || a.Flags&FlagXattrs == 0 {
		return nil, err
	}
	return fs.o.Store.Xattrs(ctx, ino)
}

// SetXattr sets one extended attribute. KindExist, KindNoData (flags),
// KindRange (the name), KindArgTooBig (the value), KindInvalid (an ACL that
// is none).
func (fs *FS) SetXattr(ctx context.Context, c Caller, ino Ino, name string, value []byte, flags XattrFlags) error {
	if err := fs.writable("setxattr"); err != nil {
		return err
	}
	switch {
	case name == "" || len(name) > XattrName:
		return E("setxattr", ino, name, KindRange, nil)
	case len(value) > XattrMax:
		return E("setxattr", ino, name, KindArgTooBig, nil)
	}
	value = append([]byte{}, value...)
	_, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		before, err := v.inode(ino)
		if err != nil {
			return nil, err
		}
		old, err := v.xattr(before, name)
		has := err == nil
		if err != nil && KindOf(err) != KindNoData {
			return nil, err
		}
		if has && flags&XattrCreate != 0 {
			return nil, E("setxattr", ino, name, KindExist, nil)
		}
		if !has && flags&XattrReplace != 0 {
			return nil, E("setxattr", ino, name, KindNoData, nil)
		}
		if name == xattrACL || name == xattrDefaultACL {
			return v.setACL(before, name, value, flags)
		}
		after := *before
		after.Ctime = v.now
		after.Flags |= FlagXattrs
		if name == xattrCapability {
			after.Flags |= FlagCapability
		}
		var b object
		if has {
			b.hex("value", old)
		}
		b.num("ctime", before.Ctime)
		return &Change{
			Record: Record{Kind: OpSetxattr, Ino: ino, Name: name, Before: b.String()},
			Inodes: []InodeChange{{Before: before, After: after}},
			Xattrs: []XattrChange{{Ino: ino, Name: name, Value: value}},
		}, nil
	})
	return err
}

// RemoveXattr removes one extended attribute. KindNoData.
func (fs *FS) RemoveXattr(ctx context.Context, c Caller, ino Ino, name string) error {
	if err := fs.writable("removexattr"); err != nil {
		return err
	}
	_, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		before, err := v.inode(ino)
		if err != nil {
			return nil, err
		}
		old, err := v.xattr(before, name)
		if err != nil {
			return nil, err
		}
		after := *before
		after.Ctime = v.now
		var b object
		b.hex("value", old).num("ctime", before.Ctime)
		ch := &Change{
			Record: Record{Kind: OpRemovexattr, Ino: ino, Name: name, Before: b.String()},
			Xattrs: []XattrChange{{Ino: ino, Name: name}},
		}
		if err := v.clearFlags(&after, name); err != nil {
			return nil, err
		}
		ch.Inodes = []InodeChange{{Before: before, After: after}}
		return ch, nil
	})
	return err
}

// clearFlags keeps Attr.Flags right when an attribute goes.
func (v *view) clearFlags(a *Attr, gone string) error {
	switch gone {
	case xattrACL:
		a.Flags &^= FlagACL
	case xattrDefaultACL:
		a.Flags &^= FlagDefaultACL
	case xattrCapability:
		a.Flags &^= FlagCapability
	}
	names, err := v.fs.o.Store.Xattrs(v.ctx, a.Ino)
	if err != nil {
		return err
	}
	if len(v.xattrs) == 0 && !slices.ContainsFunc(names, func(n string) bool { return n != gone }) {
		a.Flags &^= FlagXattrs
	}
	return nil
}

// xattr reads an attribute as the batch sees it. KindNoData.
func (v *view) xattr(a *Attr, name string) ([]byte, error) {
	if value, ok := v.xattrs[xattrKey{a.Ino, name}]; ok {
		if value == nil {
			return nil, E("getxattr", a.Ino, name, KindNoData, nil)
		}
		return value, nil
	}
	if a.lacks(name) {
		return nil, E("getxattr", a.Ino, name, KindNoData, nil)
	}
	return v.fs.o.Store.Xattr(v.ctx, a.Ino, name)
}

type xattrKey struct {
	ino  Ino
	name string
}
