package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

const (
	maxActors  = 4096 // bounds the memory of actors that have a row already
	actorBlock = 256  // numbers of actors that a daemon takes at a time
)

// actorTable knows the rows of actors that this process has used lately. An
// actor that was forgotten gets another row; rows are never changed.
type actorTable struct {
	ids    map[meta.Actor]int64
	free   int64 // next number of the block
	end    int64 // where the block ends
	last   meta.Actor
	lastID int64 // of last; 0: none
}

func (t *actorTable) id(a *meta.Actor) (int64, bool) {
	if t.lastID != 0 && t.last == *a {
		return t.lastID, true
	}
	id, ok := t.ids[*a]
	if ok {
		t.last, t.lastID = *a, id
	}
	return id, ok
}

// learn keeps actors whose rows were committed.
func (t *actorTable) learn(actors []meta.Actor, ids []int64) {
	for i, a := range actors {
		if t.ids == nil || len(t.ids) >= maxActors {
			t.ids = make(map[meta.Actor]int64)
		}
		t.ids[a] = ids[i]
		t.last, t.lastID = a, ids[i]
	}
}

// next returns a number for a row, from a block that no other daemon has: one
// round trip in actorBlock calls.
func (t *actorTable) next(s *Store) (int64, error) {
	if t.free == t.end {
		var block int64
		ctx, cancel := context.WithTimeout(context.Background(), s.o.Statement+answerGrace)
		defer cancel()
		err := s.borrow(ctx, s.pools.commit, func(c *pgx.Conn) error { return c.QueryRow(ctx, "SELECT nextval('actor_blocks')").Scan(&block) })
		if err != nil {
			return 0, err
		}
		t.free = s.base | block*actorBlock
		t.end = t.free + actorBlock
	}
	t.free++
	return t.free - 1, nil
}
