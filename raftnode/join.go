package raftnode

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/certs"
	"nexusfs/raftnode/state"
	"nexusfs/raftnode/transport"
)

// Ticket is what a joining node needs: a one-time secret, where to find a
// member that issues certificates, and which authority to believe.
type Ticket struct {
	Secret  string `json:"s"`
	Address string `json:"a"`
	Pin     string `json:"p"`
	Group   string `json:"g"`
	Witness bool   `json:"w,omitempty"`
}

// ticketPrefix marks a ticket in a script or a log; it is as secret as a
// password until it was used.
const ticketPrefix = "nexusfs-join-"

// String returns the ticket as one word.
func (t Ticket) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and bools
	}
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseTicket reads what String returned.
func ParseTicket(s string) (Ticket, error) {
	var t Ticket
	word, ok := strings.CutPrefix(strings.TrimSpace(s), ticketPrefix)
	b, err := base64.RawURLEncoding.DecodeString(word)
	if !ok || err != nil || json.Unmarshal(b, &t) != nil || t.Secret == "" || t.Address == "" || t.Pin == "" {
		return t, errors.New("that is no join token: copy all of what nexusfs cluster token printed")
	}
	return t, nil
}

// InitCerts makes the first node's authority and certificate in its folder,
// where there are none yet.
func InitCerts(dir string, id *Identity) error {
	if _, err := certs.LoadAuthority(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now := time.Now()
	a, err := certs.NewAuthority(id.Group, now)
	if err != nil {
		return err
	}
	key, err := certs.NewKey()
	if err != nil {
		return err
	}
	cert, err := a.Issue(id.ID.String(), key.Public(), now)
	if err != nil {
		return err
	}
	if err := certs.Install(dir, key, cert, a.Certificate()); err != nil {
		return err
	}
	return a.Save(dir)
}

// Token makes a ticket with which one node may join, once, within ttl, as a
// learner, or as a learner that will be a witness. It is asked of a node that
// has the group's authority.
func (n *Node) Token(ctx context.Context, witness bool, ttl time.Duration) (Ticket, error) {
	const op = "make a join token"
	a, err := certs.LoadAuthority(n.o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Ticket{}, meta.E(op, 0, "", meta.KindNotSupported, errors.New("this node does not have the group's authority: ask the one on which the group was made"))
	} else if err != nil {
		return Ticket{}, refused(op, err)
	}
	pin, err := certs.Pin(a.Certificate())
	if err != nil {
		return Ticket{}, refused(op, err)
	}
	secret := make([]byte, 18)
	_, _ = rand.Read(secret) // does not fail (crypto/rand)
	n.mu.Lock()
	t := Ticket{Secret: base64.RawURLEncoding.EncodeToString(secret), Address: n.id.Address, Pin: pin, Group: n.id.Group, Witness: witness}
	n.mu.Unlock()
	cmd := &state.AddToken{JoinToken: state.JoinToken{Hash: sha256.Sum256([]byte(t.Secret)), Role: joinRole(witness), Expires: time.Now().Add(ttl).UnixNano()}}
	return t, n.do(ctx, op, newCall(cmd))
}

// joinRole is the role that a token is for.
func joinRole(witness bool) state.Role {
	if witness {
		return state.Witness
	}
	return state.Learner
}

type joinRequest struct {
	Secret   string
	Name     string
	Address  string
	Witness  bool
	Supports uint16
	Request  []byte // for a certificate
}

type joinAnswer struct {
	ID    state.NodeID
	Group string
	Cert  []byte
	Trust []byte
	Peers map[state.NodeID]string
}

// admit lets a node join that has a token.
func (n *Node) admit(ctx context.Context, q *joinRequest) (*joinAnswer, error) {
	a, err := certs.LoadAuthority(n.o.Dir)
	if err != nil {
		return nil, err
	}
	use := &state.UseToken{Hash: sha256.Sum256([]byte(q.Secret)), Role: joinRole(q.Witness)}
	if err := n.do(ctx, "join", newCall(use)); err != nil {
		if meta.KindOf(err) == meta.KindNotExist {
			return nil, errors.New("the join token was used, has expired, or is not of this group: make a new one (nexusfs cluster token)")
		}
		return nil, err
	}
	id := newID()
	cert, err := a.IssueTo(id.String(), q.Request, time.Now())
	if err != nil {
		return nil, err
	}
	trust, err := os.ReadFile(filepath.Join(n.o.Dir, certs.TrustFile))
	if err != nil {
		return nil, err
	}
	m := state.Member{ID: id, Name: q.Name, Address: q.Address, Witness: q.Witness, Supports: q.Supports}
	if err := n.addLearner(ctx, m); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	peers := n.addresses()
	peers[n.id.ID] = n.id.Address
	delete(peers, id)
	return &joinAnswer{ID: id, Group: n.id.Group, Cert: cert, Trust: trust, Peers: peers}, nil
}

// Join makes the folder of a new member, with a ticket that another member
// made: afterwards Open and Run follow the group. name is for people, address is
// where other members reach this node. A folder in which a node lives is
// fs.ErrExist: a node that lost its disk joins as a new one, in a new folder.
func Join(ctx context.Context, dir string, t Ticket, name, address string) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := ReadIdentity(dir); err == nil {
		return nil, fmt.Errorf("join from %s: %w: a node lives there", dir, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := certs.NewKey()
	if err != nil {
		return nil, err
	}
	request, err := certs.Request(key)
	if err != nil {
		return nil, err
	}
	q := joinRequest{Secret: t.Secret, Name: name, Address: address, Witness: t.Witness, Supports: state.Version, Request: request}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	b, err := transport.CallMember(ctx, t.Address, t.Pin, methodJoin, body)
	a, err := answered[joinAnswer]("join", b, err)
	if err != nil {
		return nil, fmt.Errorf("the group at %s: %w", t.Address, err)
	}
	if err := certs.Install(dir, key, a.Cert, a.Trust); err != nil {
		return nil, err
	}
	id := &Identity{Format: identityFormat, Group: a.Group, ID: a.ID, Name: name, Address: address, Witness: t.Witness, Peers: a.Peers}
	return id, id.write(dir)
}

type renewRequest struct{ Request []byte }

// reissue makes a new certificate for a member.
func (n *Node) reissue(id state.NodeID, q *renewRequest) (*joinAnswer, error) {
	a, err := certs.LoadAuthority(n.o.Dir)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	member := n.core.st.Members[id] != nil
	n.mu.Unlock()
	if !member {
		return nil, fmt.Errorf("node %v is no member", id)
	}
	cert, err := a.IssueTo(id.String(), q.Request, time.Now())
	if err != nil {
		return nil, err
	}
	trust, err := os.ReadFile(filepath.Join(n.o.Dir, certs.TrustFile))
	return &joinAnswer{ID: id, Cert: cert, Trust: trust}, err
}

// RenewCertificate gets a new certificate, and the authorities that are trusted
// now, from the member that has the group's authority (which may be this node),
// and installs them: connections made from then on use them, those that are
// there go on.
func (n *Node) RenewCertificate(ctx context.Context, from state.NodeID) error {
	const op = "renew the certificate"
	key, err := certs.Key(n.o.Dir)
	if err != nil {
		return refused(op, err)
	}
	q := renewRequest{}
	if q.Request, err = certs.Request(key); err != nil {
		return refused(op, err)
	}
	a := new(joinAnswer)
	if from == n.Status().ID {
		a, err = n.reissue(from, &q)
	} else {
		a, err = n.askRenewal(ctx, from, &q)
	}
	if err != nil {
		return refused(op, err)
	}
	if err := certs.Install(n.o.Dir, nil, a.Cert, a.Trust); err != nil {
		return refused(op, err)
	}
	return nil
}

func (n *Node) askRenewal(ctx context.Context, from state.NodeID, q *renewRequest) (*joinAnswer, error) {
	n.mu.Lock()
	net := n.net
	n.mu.Unlock()
	if net == nil {
		return nil, errors.New("this node has no network")
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	b, err := net.Call(ctx, from, methodRenew, body)
	return answered[joinAnswer]("renew the certificate", b, err)
}
