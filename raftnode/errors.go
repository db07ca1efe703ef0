package raftnode

import (
	"errors"
	"fmt"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

var (
	// ErrRemoved says that this node is no longer a member of its group. It can
	// join again, as a new node.
	ErrRemoved = errors.New("this node was removed from its group: join again with a new token (nexusfs cluster join)")
	// ErrRejoin says that what this node had stored of the group is lost or
	// damaged. A member must not go on with an empty log under its old identity.
	ErrRejoin = errors.New("this node's state of the group is lost: remove it from the group and join again with a new token (nexusfs cluster remove, nexusfs cluster join)")
	// ErrNoQuorum says that most voters cannot be reached.
	ErrNoQuorum = errors.New("most voters of the group cannot be reached: see nexusfs cluster members")
	// ErrLate says that something was handed to the group and the answer did not
	// come within the bound: it may have happened, and may happen yet.
	ErrLate = errors.New("the group did not answer in time; it may have happened")
	// ErrWouldBlock says that a lock is held by another.
	ErrWouldBlock = errors.New("the lock is held by another")
	// ErrDeadlock says that waiting for a lock would close a circle.
	ErrDeadlock = errors.New("waiting for the lock would dead-lock")
	// ErrNoSession says that the node's session with the zone has ended: its
	// locks are gone.
	ErrNoSession = errors.New("this node's session was ended by the group: unmount, then mount again")
	// ErrEpoch says that the database lost operations after they were committed,
	// those asked about may be among them (P15).
	ErrEpoch = errors.New("the database lost its newest operations: what was just done may be lost")
	// ErrNotLeader says that only the leader can do this.
	ErrNotLeader = errors.New("this node does not lead the group: ask the leader (nexusfs cluster members)")
)

// outcome turns a result into an error.
func outcome(op string, cl *call) error {
	if cl.err != nil {
		return refused(op, cl.err)
	}
	switch cl.result.Code {
	case state.OK:
		return nil
	case state.WouldBlock:
		return meta.E(op, 0, "", meta.KindBusy, ErrWouldBlock)
	case state.Deadlock:
		return meta.E(op, 0, "", meta.KindBusy, ErrDeadlock)
	case state.NoSession:
		return meta.E(op, 0, "", meta.KindFenced, ErrNoSession)
	case state.WrongEpoch:
		return meta.E(op, 0, "", meta.KindIO, ErrEpoch)
	case state.NotFound:
		return meta.E(op, 0, "", meta.KindNotExist, nil)
	case state.Full:
		return meta.E(op, 0, "", meta.KindNoSpace, errors.New("too many of them are under way or held"))
	}
	return meta.E(op, 0, "", meta.KindInvalid, fmt.Errorf("refused: %v", cl.result.Code))
}

// refused classifies why something did not happen.
func refused(op string, err error) error {
	var e *meta.Error
	if errors.As(err, &e) {
		return err
	}
	return meta.E(op, 0, "", meta.KindIO, err)
}
