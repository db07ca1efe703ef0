package meta

import "context"

// Bits of SetAttr.Valid.
const (
	SetMode uint32 = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow // the time of the operation, whatever Atime says
	SetMtimeNow
	SetCtime
	KillPriv // an unprivileged caller changes the content: clear setuid, setgid and capabilities
)

// SetAttr says which attributes to change to what.
type SetAttr struct {
	Valid               uint32
	Mode                uint32 // permission bits
	UID, GID            uint32
	Size                int64
	Atime, Mtime, Ctime int64   // ns
	Handle              *Handle // of ftruncate(2); nil otherwise
}

// SetAttr changes attributes as chmod(2), chown(2), truncate(2) and
// utimensat(2) do; the kernel has checked who may. Truncation commits staged
// writes first. KindTooBig, KindInvalid (size of what is no regular file).
func (fs *FS) SetAttr(ctx context.Context, c Caller, ino Ino, s SetAttr) (Attr, error) {
	if err := fs.writable("setattr"); err != nil {
		return Attr{}, err
	}
	if s.Valid&SetSize != 0 && s.Size < 0 {
		return Attr{}, E("truncate", ino, "", KindInvalid, nil)
	}
	if err := fs.settleStaged(ctx, c, ino); err != nil {
		return Attr{}, err
	}
	var after Attr
	res, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		before, err := v.inode(ino)
		if err != nil {
			return nil, err
		}
		ch := &Change{Record: Record{Kind: OpSetattr, Ino: ino}}
		after = *before
		if err := s.apply(v, fs, before, &after, ch); err != nil {
			return nil, err
		}
		b, a := diff(before, &after)
		ch.Record.Before, ch.Record.After = b.String(), a.String()
		ch.Inodes = []InodeChange{{Before: before, After: after}}
		return ch, nil
	})
	if err != nil {
		return Attr{}, err
	}
	if res.Change.Content != nil {
		return fs.GetAttr(ctx, ino) // Bytes is the store's to say
	}
	after.Rev = res.Rev
	if after.ContentRev == RevPending {
		after.ContentRev = res.Rev
	}
	fs.nodes.overlay(&after)
	return after, nil
}

// apply changes after and adds to the change what goes along.
func (s *SetAttr) apply(v *view, fs *FS, before, after *Attr, ch *Change) error {
	after.Ctime = v.now
	if s.Valid&SetMode != 0 {
		after.Mode = before.Mode&ModeType | s.Mode&ModePerm
		if err := v.chmodACL(after, ch); err != nil {
			return err
		}
	}
	if s.Valid&(SetUID|SetGID) != 0 {
		if s.Valid&SetUID != 0 {
			after.UID = s.UID
		}
		if s.Valid&SetGID != 0 {
			after.GID = s.GID
		}
		dropPrivileges(after, ch)
	}
	if s.Valid&SetSize != 0 {
		if !before.IsRegular() {
			return E("truncate", before.Ino, "", KindInvalid, nil)
		}
		ch.Record.Kind = OpTruncate
		ch.Content, ch.Version = fs.truncation(v, before, after, s.Size, s.Handle)
		ch.Record.Size, ch.Record.Version = s.Size, after.Version
		after.Mtime = v.now
	}
	if s.Valid&KillPriv != 0 {
		dropPrivileges(after, ch)
	}
	switch {
	case s.Valid&SetAtimeNow != 0:
		after.Atime = v.now
	case s.Valid&SetAtime != 0:
		after.Atime = s.Atime
	}
	switch {
	case s.Valid&SetMtimeNow != 0:
		after.Mtime = v.now
	case s.Valid&SetMtime != 0:
		after.Mtime = s.Mtime
	}
	if s.Valid&SetCtime != 0 {
		after.Ctime = s.Ctime
	}
	return nil
}

// dropPrivileges clears setuid, setgid where the group may execute, and the
// file's capabilities, as Linux does when owner or content change.
func dropPrivileges(a *Attr, ch *Change) {
	if a.IsDir() {
		return
	}
	a.Mode &^= ModeSetuid
	if a.Mode&0o010 != 0 {
		a.Mode &^= ModeSetgid
	}
	if a.Flags&FlagCapability != 0 {
		a.Flags &^= FlagCapability
		ch.Xattrs = append(ch.Xattrs, XattrChange{Ino: a.Ino, Name: xattrCapability})
	}
}
