package meta

import (
	"context"
	"sync/atomic"
	"time"
)

// A store whose disk is filled to the last byte cannot even record that a file
// was removed. So what takes room is refused while the disk still has some, and
// what gives room back may use the rest.
const (
	reserveMin  = 16 << 20 // bytes kept free, at most an eighth of the disk
	reserveMax  = 256 << 20
	roomStep    = 1 << 20                // bytes taken before the disk is asked again
	roomAge     = 200 * time.Millisecond // and how old an answer may be
	nameCost    = 64 << 10               // bytes that making a name may cost in the store's log
	reserveDisk = 64                     // one part in so many of a large disk
)

// room remembers what the disk had lately.
type room struct {
	free  atomic.Int64 // above the reserve, less what was taken since
	taken atomic.Int64 // since the disk was asked
	asked atomic.Int64 // when, ns
}

// reserveOf is how much of a disk is kept free.
func reserveOf(s Space) int64 {
	return min(max(s.Total/reserveDisk, min(reserveMin, s.Total/8)), reserveMax)
}

// takeRoom refuses to take n bytes where the disk would not keep its reserve.
// KindNoSpace.
func (fs *FS) takeRoom(ctx context.Context, op string, ino Ino, n int64) error {
	r, now := &fs.room, fs.now().UnixNano()
	if r.taken.Add(n) > roomStep || now-r.asked.Load() > int64(roomAge) || r.free.Load() < n {
		s, err := fs.o.Content.Space(ctx)
		if err != nil {
			return err
		}
		r.free.Store(s.Free - reserveOf(s))
		r.taken.Store(n)
		r.asked.Store(now)
	}
	if r.free.Add(-n) < 0 {
		return E(op, ino, "", KindNoSpace, nil)
	}
	return nil
}
