package meta

import "sync"

// complete knows directories of which every name that was ever made is known:
// those that were made since this filesystem was opened. A name that is not
// among them is absent, and nobody has to ask SQL. It holds cookies, not names,
// and never takes one out: a cookie says 'perhaps there', its absence says 'not
// there'. It may forget a directory, and then says nothing about it (I5).
type complete struct {
	mu    sync.Mutex
	dirs  map[Ino]map[uint64]struct{} // guarded by mu
	total int                         // guarded by mu; cookies held
}

// completeMax bounds the cookies held; with more, all are forgotten.
const completeMax = 1 << 18

// add notes what a committed change makes: directories, and names in known ones.
func (c *complete) add(ch *Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range ch.Names {
		n := &ch.Names[i]
		if n.After == 0 {
			continue
		}
		names, known := c.dirs[n.Parent]
		if !known {
			continue
		}
		if names == nil {
			names = make(map[uint64]struct{})
			c.dirs[n.Parent] = names
		}
		before := len(names)
		names[NameCookie(n.Name)] = struct{}{}
		c.total += len(names) - before
	}
	for i := range ch.Inodes {
		in := &ch.Inodes[i]
		if !in.After.IsDir() {
			continue
		}
		if in.After.Nlink == 0 {
			c.drop(in.After.Ino)
		} else if in.Before == nil {
			if c.dirs == nil {
				c.dirs = make(map[Ino]map[uint64]struct{})
			}
			c.dirs[in.After.Ino] = nil
			c.total++ // an empty one costs about as much as a name
		}
	}
	if c.total > completeMax {
		c.dirs, c.total = nil, 0
	}
}

// drop forgets a directory; the caller holds mu.
func (c *complete) drop(dir Ino) {
	if names, known := c.dirs[dir]; known {
		c.total -= len(names) + 1
		delete(c.dirs, dir)
	}
}

// forget says that somebody else changed a directory.
func (c *complete) forget(dir Ino) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(dir)
}

// clear forgets all directories.
func (c *complete) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirs, c.total = nil, 0
}

// absent reports that a name is certainly not there.
func (c *complete) absent(parent Ino, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	names, known := c.dirs[parent]
	if !known {
		return false
	}
	_, perhaps := names[NameCookie(name)]
	return !perhaps
}
