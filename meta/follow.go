package meta

import (
	"context"
	"encoding/json"
	"slices"
)

// followMax is how many operations of others are applied one by one; with more
// of them everything is dropped.
const followMax = 4096

// fresh returns when everything that was committed before the call, by
// whomever, is known here. It costs nothing while this daemon has the zone
// alone, else one point select that all share who wait at that moment. The
// leader of a batch does it, as nobody else applies operations: so revisions
// are applied in order.
func (fs *FS) fresh(ctx context.Context) error {
	if !fs.peers.sharing.Load() {
		return nil
	}
	return fs.look(ctx)
}

// look is fresh, whoever else lives.
func (fs *FS) look(ctx context.Context) error {
	r := requests.Get().(*request)
	r.reset()
	r.look = true
	fs.enqueue(ctx, r)
	err := r.err
	requests.Put(r)
	return err
}

// recent is fresh unless somebody has looked just now.
func (fs *FS) recent(ctx context.Context) error {
	if !fs.peers.sharing.Load() || fs.now().UnixNano()-fs.peers.looked.Load() < int64(peerLate) {
		return nil
	}
	return fs.look(ctx)
}

// Fresh makes what other daemons committed before the call known here. An open
// of a directory needs it; those of files do it by themselves.
func (fs *FS) Fresh(ctx context.Context) error { return fs.fresh(ctx) }

// keepLooking bounds the age of what is known while others live.
func (fs *FS) keepLooking(ctx context.Context) {
	if !fs.peers.sharing.Load() {
		return
	}
	if err := fs.look(ctx); err != nil && ctx.Err() == nil {
		fs.log.Debug("looking at the zone's revision", "err", err)
	}
}

// lookFirst serves the requests of a batch that ask for the newest state, and
// returns what is left to plan. Its caller is the leader.
func (fs *FS) lookFirst(ctx context.Context, batch []*request) []*request {
	if !slices.ContainsFunc(batch, func(r *request) bool { return r.look }) {
		return batch
	}
	err := fs.catchUp(ctx)
	return slices.DeleteFunc(slices.Clone(batch), func(r *request) bool {
		if r.look {
			r.err = err
		}
		return r.look && (err != nil || r.plan == nil)
	})
}

// catchUp applies what others committed since the newest revision known here.
// Its caller is the leader.
func (fs *FS) catchUp(ctx context.Context) error {
	began := fs.now().UnixNano()
	head, err := fs.o.Store.Head(ctx)
	if err != nil {
		return err
	}
	known := Rev(fs.head.Load())
	if l := &fs.losses; !fs.o.ReadOnly && (head.Rev < known || head.Epoch != l.epoch.Load() || l.suspected.Load()) {
		return fs.rejoin(ctx)
	}
	if head.Rev != known {
		if err := fs.follow(ctx, known, head.Rev); err != nil {
			return err
		}
	}
	fs.peers.looked.Store(began)
	return nil
}

// follow applies the operations after known up to the given one. Its caller is
// the leader.
func (fs *FS) follow(ctx context.Context, known, to Rev) error {
	if to < known || to-known > followMax {
		fs.log.Info("everything that is cached is dropped", "known", known, "revision", to)
		return fs.dropAll(ctx, to)
	}
	var ops []Committed
	all := false
	err := fs.o.History.Records(ctx, RecordFilter{Since: known, Until: to}, func(r *Record) bool {
		all = all || r.Kind == OpRecovery
		ops = append(ops, Committed{Rev: r.Rev, Change: seen(r), Origin: OriginRemote})
		return true
	})
	if err != nil {
		return err
	}
	if all {
		return fs.dropAll(ctx, to)
	}
	for i := range ops {
		fs.forgetRemote(ops[i].Change)
	}
	fs.head.Store(int64(to))
	fs.sync.dirty() // theirs may be of another level: whether they are durable is not known
	fs.publish(ctx, ops)
	return nil
}

// dropAll forgets everything, here and in the kernel.
func (fs *FS) dropAll(ctx context.Context, to Rev) error {
	fs.cache.clear()
	fs.known.clear()
	for _, ino := range fs.nodes.all(func(*node) bool { return true }) {
		fs.unmapOpen(ino)
	}
	fs.head.Store(int64(to))
	return fs.forgetKernel(ctx, false)
}

// seen turns another daemon's record into a change that says what it touched:
// the inodes and names, not what they became.
func seen(r *Record) *Change {
	ch := &Change{Record: *r}
	inode := func(ino Ino) {
		if ino != 0 {
			ch.Inodes = append(ch.Inodes, InodeChange{After: Attr{Ino: ino}})
		}
	}
	dir := func(ino Ino) {
		if ino != 0 {
			ch.Dirs = append(ch.Dirs, DirDelta{Ino: ino})
		}
	}
	inode(r.Ino)
	inode(replacedBy(r))
	dir(r.Parent)
	if r.NewParent != r.Parent {
		dir(r.NewParent)
	}
	if r.Kind.changesContent() {
		ch.Content = &ContentChange{Ino: r.Ino}
	}
	if r.Name == "" {
		return ch
	}
	name := NameChange{Parent: r.Parent, Name: r.Name, After: r.Ino}
	switch r.Kind {
	case OpUnlink, OpRmdir, OpRename:
		name.Before, name.After = r.Ino, 0
	}
	ch.Names = append(ch.Names, name)
	if r.NewName != "" {
		ch.Names = append(ch.Names, NameChange{Parent: r.NewParent, Name: r.NewName, After: r.Ino})
	}
	return ch
}

// replacedBy returns the second inode of a rename or exchange.
func replacedBy(r *Record) Ino {
	if r.Kind != OpRename && r.Kind != OpExchange || r.Before == "" {
		return 0
	}
	var b struct {
		Replaced Ino `json:"replaced"`
	}
	if json.Unmarshal([]byte(r.Before), &b) != nil {
		return 0
	}
	return b.Replaced
}

// changesContent reports whether an operation may change a file's bytes.
func (k OpKind) changesContent() bool {
	switch k {
	case OpWrite, OpWriteStream, OpTruncate, OpFallocate, OpCopyRange, OpRestore:
		return true
	}
	return false
}

// forgetRemote drops what another daemon's change made untrue.
func (fs *FS) forgetRemote(ch *Change) {
	fs.forget(ch)
	for i := range ch.Inodes {
		ino := ch.Inodes[i].After.Ino
		fs.known.forget(ino)
		if ch.Content != nil {
			fs.unmapOpen(ino)
		}
	}
	for i := range ch.Dirs {
		fs.known.forget(ch.Dirs[i].Ino)
	}
}
