package ssottest

import (
	"bytes"
	"maps"
	"math"
	"slices"

	"nexusfs/meta"
)

// node is one inode of the model. Have says which bytes extents hold.
type node struct {
	attr   meta.Attr
	target string
	names  map[string]meta.Ino
	xattrs map[string]string
	data   []byte
	have   []bool
	vers   []meta.Version
}

func (n *node) clone() *node {
	c := *n
	c.names, c.xattrs = maps.Clone(n.names), maps.Clone(n.xattrs)
	c.data, c.have, c.vers = slices.Clone(n.data), slices.Clone(n.have), slices.Clone(n.vers)
	return &c
}

// held counts the bytes that extents hold.
func (n *node) held() (sum int64) {
	for _, h := range n.have {
		if h {
			sum++
		}
	}
	return sum
}

// state is a zone as of one revision.
type state struct {
	rev   meta.Rev
	nodes map[meta.Ino]*node
}

func newState() *state { return &state{nodes: make(map[meta.Ino]*node)} }

func (s *state) clone() *state {
	c := &state{rev: s.rev, nodes: make(map[meta.Ino]*node, len(s.nodes))}
	for ino, n := range s.nodes {
		c.nodes[ino] = n.clone()
	}
	return c
}

// apply returns the state after a change, or nil when a guard fails: the
// contract of meta.Change in the plainest code. blobs has the bytes of every
// blob by name.
func (s *state) apply(c *meta.Change, blobs map[meta.BlobID][]byte) *state {
	t := s.clone()
	t.rev++
	for i := range c.Inodes {
		if !t.inode(&c.Inodes[i]) {
			return nil
		}
	}
	if !t.version(c) {
		return nil
	}
	for i := range c.Names {
		if !t.name(&c.Names[i]) {
			return nil
		}
	}
	for _, d := range c.Dirs {
		n := t.nodes[d.Ino]
		if n == nil || n.attr.Nlink == 0 {
			return nil
		}
		n.attr.Entries += d.Entries
		n.attr.Nlink = uint32(int64(n.attr.Nlink) + d.Nlink)
		n.attr.Mtime, n.attr.Ctime, n.attr.Rev = d.Time, d.Time, t.rev
	}
	for _, x := range c.Xattrs {
		if x.Value == nil {
			delete(t.nodes[x.Ino].xattrs, x.Name)
		} else {
			t.nodes[x.Ino].xattrs[x.Name] = string(x.Value)
		}
	}
	if c.Content != nil {
		t.content(c.Content, blobs)
	}
	return t
}

func (s *state) inode(ic *meta.InodeChange) bool {
	a := ic.After
	n := s.nodes[a.Ino]
	if ic.Before == nil {
		if n != nil {
			return false
		}
		n = &node{target: ic.Target, names: map[string]meta.Ino{}, xattrs: map[string]string{}}
		n.attr = a
		n.attr.Rev, n.attr.Bytes = s.rev, 0
		if a.ContentRev == meta.RevPending || a.IsDir() {
			n.attr.ContentRev = s.rev
		}
		s.nodes[a.Ino] = n
		return true
	}
	if n == nil {
		return false
	}
	if !a.IsDir() {
		if n.attr.Rev != ic.Before.Rev {
			return false
		}
		bytes, btime, creator := n.attr.Bytes, n.attr.Btime, n.attr.Creator
		n.attr = a
		n.attr.Rev, n.attr.Bytes, n.attr.Btime, n.attr.Creator = s.rev, bytes, btime, creator
		if a.ContentRev == meta.RevPending {
			n.attr.ContentRev = s.rev
		}
		return true
	}
	return s.directory(n, ic.Before, &a)
}

// directory sets what the change itself changed.
func (s *state) directory(n *node, b, a *meta.Attr) bool {
	m := &n.attr
	if (m.Nlink == 0) != (b.Nlink == 0) || a.Nlink == 0 && m.Entries != 0 ||
		m.Mode != b.Mode || m.UID != b.UID || m.GID != b.GID || m.Flags != b.Flags || m.Parent != b.Parent {
		return false
	}
	m.Mode, m.UID, m.GID, m.Flags, m.Parent, m.Rev = a.Mode, a.UID, a.GID, a.Flags, a.Parent, s.rev
	m.Nlink = uint32(int64(m.Nlink) + int64(a.Nlink) - int64(b.Nlink))
	if a.Nlink == 0 {
		m.Nlink = 0
	}
	m.Entries += a.Entries - b.Entries
	for _, t := range []struct {
		to           *int64
		before, then int64
	}{{&m.Atime, b.Atime, a.Atime}, {&m.Mtime, b.Mtime, a.Mtime}, {&m.Ctime, b.Ctime, a.Ctime}} {
		if t.before != t.then {
			*t.to = t.then
		}
	}
	return true
}

func (s *state) name(n *meta.NameChange) bool {
	dir := s.nodes[n.Parent]
	if dir == nil || dir.names[n.Name] != n.Before {
		return false
	}
	if n.After == 0 {
		delete(dir.names, n.Name)
	} else {
		dir.names[n.Name] = n.After
	}
	return true
}

func (s *state) version(c *meta.Change) bool {
	v := c.Version
	if v == nil {
		return true
	}
	n := s.nodes[v.Ino]
	if n == nil {
		return false
	}
	if v.New {
		if len(n.vers) > 0 && n.vers[len(n.vers)-1].N >= v.N {
			return false
		}
		n.vers = append(n.vers, meta.Version{N: v.N, First: s.rev, Rev: s.rev, Size: v.Size, Time: c.Record.Time})
		return true
	}
	if len(n.vers) == 0 || n.vers[len(n.vers)-1].N != v.N {
		return false
	}
	last := &n.vers[len(n.vers)-1]
	last.Rev, last.Size, last.Time = s.rev, v.Size, c.Record.Time
	return true
}

func (s *state) content(cc *meta.ContentChange, blobs map[meta.BlobID][]byte) {
	n := s.nodes[cc.Ino]
	grow := func(end int64) {
		for int64(len(n.data)) < end {
			n.data, n.have = append(n.data, 0), append(n.have, false)
		}
	}
	for _, r := range cc.Ranges {
		end := int64(math.MaxInt64)
		if r.Len <= math.MaxInt64-r.Off {
			end = r.Off + r.Len
		}
		for i := r.Off; i < min(end, int64(len(n.data))); i++ {
			n.data[i], n.have[i] = 0, false
		}
		for _, e := range r.Extents {
			grow(e.Off + e.Len)
			copy(n.data[e.Off:e.Off+e.Len], blobs[e.Blob.ID][e.BlobOff:])
			for i := range e.Len {
				n.have[e.Off+i] = true
			}
		}
	}
	n.attr.Bytes = n.held()
}

// usage adds up what names reach.
func (s *state) usage() (u meta.Usage) {
	for _, n := range s.nodes {
		if n.attr.Nlink > 0 {
			u.Inodes++
			u.Bytes += n.attr.Bytes
		}
	}
	return u
}

// inos returns the inode numbers in order.
func (s *state) inos() []meta.Ino {
	return slices.Sorted(maps.Keys(s.nodes))
}

// sameData compares two contents, where what is missing is zero.
func sameData(a, b []byte) bool {
	return bytes.Equal(bytes.TrimRight(a, "\x00"), bytes.TrimRight(b, "\x00"))
}
