package state

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Version is the newest version of entries and snapshots that this program
// knows. A group uses a version when all of its members know it (P19).
const Version = 1

// ErrNewer says that an entry or a snapshot is of a version that this program
// does not know: it must be replaced by a newer one before it goes on.
var ErrNewer = errors.New("the group uses features that this version of nexusfs does not know: upgrade this node")

// NodeID is a node's identity in its group: random, never given twice, not 0.
type NodeID uint64

// String returns 16 hexadecimal digits: the name in the node's certificate.
func (id NodeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ParseNodeID reads what String returned.
func ParseNodeID(s string) (NodeID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || n == 0 || NodeID(n).String() != s {
		return 0, fmt.Errorf("%q is no node: want 16 hexadecimal digits, as members are listed", s)
	}
	return NodeID(n), nil
}

// RequestID names one request of one node, once and for all.
type RequestID struct {
	Node NodeID
	Num  uint64
}

func (r *RequestID) code(c *codec) {
	unsigned(c, &r.Node)
	unsigned(c, &r.Num)
}

// Entry is what is proposed: the commands that a node had gathered.
type Entry struct {
	Version     uint16
	Client      NodeID
	Incarnation uint64 // of the node's process, rising
	Seq         uint64 // of the entry within the incarnation, from 1 on
	Low         uint64 // the client has settled every entry up to here
	Time        int64  // when it was proposed, nanoseconds since 1970 by the proposer's clock
	Commands    []Command
}

// Command is one thing to do.
type Command interface {
	coded
	kind() kind
	apply(a *applier) Result
}

// Code says what became of a command.
type Code uint8

// The codes.
const (
	OK         Code = iota
	Waiting         // a lock was queued: an effect says when it is granted
	WouldBlock      // a lock is held by another
	Deadlock        // waiting would close a circle
	NotFound        // what it is about is not there (any more)
	NoSession       // the session does not live: it was never begun, ended, or is being fenced
	WrongEpoch      // the zone is in another epoch
	Conflict        // what it believed was not so
	Full            // a limit is reached
)

var codeText = [...]string{"ok", "waiting", "held by another", "deadlock", "not found", "no live session", "another epoch", "conflict", "limit reached"}

func (c Code) String() string {
	if int(c) < len(codeText) {
		return codeText[c]
	}
	return "code " + strconv.Itoa(int(c))
}

// Result is what a command came to.
type Result struct {
	Code  Code
	Token uint64 // of a lock that was granted: higher than all before (P20)
}

func (r *Result) code(c *codec) {
	unsigned(c, &r.Code)
	unsigned(c, &r.Token)
}

// Limits of an entry.
const (
	MaxCommands = 1024
	MaxEntry    = 4 << 20 // bytes of one encoded entry that a node aims at
)

// Encode returns the entry's bytes. A command that the entry's version does not
// have is an error: it must not be proposed yet (P19).
func (e *Entry) Encode() ([]byte, error) {
	for _, cmd := range e.Commands {
		if v := cmd.kind().since(); v > e.Version {
			return nil, fmt.Errorf("command %d needs version %d and the group uses %d: %w", cmd.kind(), v, e.Version, ErrNewer)
		}
	}
	return encode(nil, e), nil
}

// DecodeEntry reads an entry. ErrNewer if known is lower than its version.
func DecodeEntry(b []byte, known uint16) (*Entry, error) {
	e := new(Entry)
	head := codec{b: b, read: true}
	unsigned(&head, &e.Version)
	if head.err == nil && e.Version > known {
		return nil, fmt.Errorf("entry of version %d: %w", e.Version, ErrNewer)
	}
	if err := decode(b, e); err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	return e, nil
}

func (e *Entry) code(c *codec) {
	unsigned(c, &e.Version)
	unsigned(c, &e.Client)
	unsigned(c, &e.Incarnation)
	unsigned(c, &e.Seq)
	unsigned(c, &e.Low)
	signed(c, &e.Time)
	list(c, &e.Commands, codeCommand)
}

func codeCommand(c *codec, cmd *Command) {
	var k kind
	if !c.read {
		k = (*cmd).kind()
	}
	unsigned(c, &k)
	if c.read {
		if *cmd = k.make(); *cmd == nil {
			c.damaged()
			return
		}
	}
	(*cmd).code(c)
}

// kind numbers the commands. The values are stored: append only.
type kind uint8

const (
	kindAnnounce kind = 1 + iota
	kindAdvance
	kindBeginSession
	kindRenewSession
	kindEndSession
	kindFence
	kindFenced
	kindLock
	kindUnlock
	kindReleaseHandle
	kindCancel
	kindAcquire
	kindRenewNamed
	kindReleaseNamed
	kindExpireNamed
	kindBreakFile
	kindSetMember
	kindRemoveMembers
	kindAddToken
	kindUseToken
	kindActivate
	kindDescribeMember
)

// make returns an empty command of a kind, nil for one that is not known.
func (k kind) make() Command {
	all := [...]func() Command{
		kindAnnounce: func() Command { return new(Announce) }, kindAdvance: func() Command { return new(Advance) },
		kindBeginSession: func() Command { return new(BeginSession) }, kindRenewSession: func() Command { return new(RenewSession) },
		kindEndSession: func() Command { return new(EndSession) }, kindFence: func() Command { return new(Fence) },
		kindFenced: func() Command { return new(Fenced) }, kindLock: func() Command { return new(Lock) },
		kindUnlock: func() Command { return new(Unlock) }, kindReleaseHandle: func() Command { return new(ReleaseHandle) },
		kindCancel: func() Command { return new(Cancel) }, kindAcquire: func() Command { return new(Acquire) },
		kindRenewNamed: func() Command { return new(RenewNamed) }, kindReleaseNamed: func() Command { return new(ReleaseNamed) },
		kindExpireNamed: func() Command { return new(ExpireNamed) }, kindBreakFile: func() Command { return new(BreakFile) },
		kindSetMember: func() Command { return new(SetMember) }, kindRemoveMembers: func() Command { return new(RemoveMembers) },
		kindAddToken: func() Command { return new(AddToken) }, kindUseToken: func() Command { return new(UseToken) },
		kindActivate: func() Command { return new(Activate) }, kindDescribeMember: func() Command { return new(DescribeMember) },
	}
	if int(k) >= len(all) || all[k] == nil {
		return nil
	}
	return all[k]()
}

// since returns the version that a kind came with.
func (k kind) since() uint16 { return 1 }

// validZone reports whether a zone or a lock may have that name.
func validName(s string) bool { return s != "" && len(s) <= 255 && !slices.Contains([]byte(s), 0) }
