package state

import "nexusfs/meta"

// codeOp describes an operation as it travels: what other nodes need to bring
// their caches up to date. The actor, the before-images and the values of
// extended attributes stay in SQL. Without after-images (what was read back
// from its record) Attrs is nil, and the inodes are merely named.
func codeOp(c *codec, op *meta.Committed) {
	if c.read {
		op.Change, op.Origin = new(meta.Change), meta.OriginRemote
	}
	ch := op.Change
	signed(c, &op.Rev)
	codeRecord(c, &ch.Record)
	if c.read {
		ch.Record.Rev = op.Rev
	}
	known := len(op.Attrs) == len(ch.Inodes) && len(op.Attrs) > 0
	c.bool(&known)
	if known {
		list(c, &op.Attrs, codeAttr)
	} else {
		list(c, &ch.Inodes, func(c *codec, i *meta.InodeChange) { unsigned(c, &i.After.Ino) })
	}
	if c.read && known {
		for _, a := range op.Attrs {
			ch.Inodes = append(ch.Inodes, meta.InodeChange{After: a})
		}
	}
	list(c, &ch.Dirs, func(c *codec, d *meta.DirDelta) {
		unsigned(c, &d.Ino)
		signed(c, &d.Entries)
		signed(c, &d.Nlink)
		signed(c, &d.Time)
	})
	list(c, &ch.Names, func(c *codec, n *meta.NameChange) {
		unsigned(c, &n.Parent)
		c.string(&n.Name)
		unsigned(c, &n.Before)
		unsigned(c, &n.BeforeType)
		unsigned(c, &n.After)
		unsigned(c, &n.AfterType)
	})
	list(c, &ch.Xattrs, func(c *codec, x *meta.XattrChange) {
		unsigned(c, &x.Ino)
		c.string(&x.Name)
	})
	codeContent(c, ch)
}

func codeContent(c *codec, ch *meta.Change) {
	has := ch.Content != nil
	c.bool(&has)
	if !has {
		return
	}
	if c.read {
		ch.Content = new(meta.ContentChange)
	}
	unsigned(c, &ch.Content.Ino)
	list(c, &ch.Content.Ranges, func(c *codec, r *meta.RangeChange) {
		signed(c, &r.Off)
		signed(c, &r.Len)
	})
}

func codeRecord(c *codec, r *meta.Record) {
	unsigned(c, &r.Kind)
	unsigned(c, &r.Ino)
	unsigned(c, &r.Parent)
	c.string(&r.Name)
	unsigned(c, &r.NewParent)
	c.string(&r.NewName)
	signed(c, &r.Time)
	signed(c, &r.Version)
	signed(c, &r.Size)
}

func codeAttr(c *codec, a *meta.Attr) {
	unsigned(c, &a.Ino)
	for _, v := range []*uint32{&a.Mode, &a.Nlink, &a.UID, &a.GID, &a.Rdev, &a.Flags} {
		unsigned(c, v)
	}
	for _, v := range []*int64{&a.Size, &a.Bytes, &a.Entries, &a.Atime, &a.Mtime, &a.Ctime, &a.Btime, &a.Creator, &a.Version} {
		signed(c, v)
	}
	unsigned(c, &a.Parent)
	signed(c, &a.Rev)
	signed(c, &a.ContentRev)
}
