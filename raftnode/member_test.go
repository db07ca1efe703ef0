package raftnode

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/certs"
	"nexusfs/raftnode/state"
)

// TestP17WitnessKeepsTheGroup: two data nodes and a witness survive the loss of
// either data node, in every order of loss and commit, also when the log that
// the other lacks was compacted away.
func TestP17WitnessKeepsTheGroup(t *testing.T) {
	r := newRig(t)
	second := r.grow(false, true)
	witness := r.grow(true, true)
	for round := range 4 {
		survivor, dies := r.nodes[0], second
		if round%2 == 1 {
			survivor, dies = second, r.nodes[0]
		}
		rev := r.announce(dies, 2)
		dies.kill()
		r.eventually("the survivor goes on", survivor.Ready)
		more := r.announce(survivor, 1)
		if more <= rev {
			t.Fatalf("revision %d after %d", more, rev)
		}
		check(t, survivor.zone.Fresh(t.Context()))
		r.start(dies)
		check(t, dies.zone.Wait(t.Context(), more))
	}
	heads, err := witness.Heads("z")
	check(t, err)
	if len(heads) == 0 {
		t.Error("the witness keeps no chain heads (P33)")
	}
	for i, h := range heads {
		if i > 0 && h.Rev <= heads[i-1].Rev {
			t.Errorf("heads out of order: %d after %d", h.Rev, heads[i-1].Rev)
		}
	}
	if _, err := witness.OpenZone(t.Context(), "z", newFakeConsumer()); meta.KindOf(err) != meta.KindNotSupported {
		t.Errorf("a witness opened a zone: %v", err)
	}
	if err := r.nodes[0].Transfer(t.Context(), witness.id.ID); meta.KindOf(err) != meta.KindInvalid {
		t.Errorf("leadership was given to the witness: %v", err)
	}
}

func TestMembership(t *testing.T) {
	r := newRig(t)
	first := r.nodes[0]
	second := r.grow(false, true)
	third := r.grow(false, false)
	if m := first.Status().Members; len(m) != 3 {
		t.Fatalf("members: %+v", m)
	}
	if err := first.Promote(t.Context(), second.id.ID); meta.KindOf(err) != meta.KindExist {
		t.Errorf("promoted twice: %v", err)
	}
	// Any member may be asked to promote.
	r.eventually("promoted by a follower", func() error { return second.Promote(t.Context(), third.id.ID) })
	check(t, second.Transfer(t.Context(), third.id.ID))
	if lead := r.leader(); lead != third {
		t.Errorf("node %v leads", lead.id.ID)
	}
	// Two leave at once, by joint consensus; they learn it.
	gone, lost := first.id.ID, third.id.ID
	check(t, second.Remove(t.Context(), gone, lost))
	for _, n := range []*rigNode{first, third} {
		if err := <-n.done; !errors.Is(err, ErrRemoved) {
			t.Errorf("a removed node's end: %v", err)
		}
		n.done <- ErrRemoved
		if err := n.zone.Announce(t.Context(), r.sql.commit(1)); !errors.Is(err, ErrRemoved) {
			t.Errorf("announced by a removed node: %v", err)
		}
		n.to.until(t, "no lease any more", func(c *fakeConsumer) bool { return !c.lease })
	}
	r.eventually("alone again", func() error {
		if st := second.Status(); !st.Alone || st.Leader != st.ID {
			return errors.New("it is not")
		}
		return nil
	})
	rev := r.announce(second, 1)
	if second.zone.Prefix() != rev {
		t.Error("what the removed nodes had committed was not announced")
	}
	if err := second.Remove(t.Context(), second.id.ID); meta.KindOf(err) != meta.KindInvalid {
		t.Errorf("the last voter was removed: %v", err)
	}
}

// TestRemovedWhileAway: a node that was down when it was removed is told so when
// it comes back.
func TestRemovedWhileAway(t *testing.T) {
	r := newRig(t)
	r.grow(false, true)
	third := r.grow(false, true)
	id := third.id.ID
	third.kill()
	check(t, r.nodes[0].Remove(t.Context(), id))
	node, err := Open(r.options(third))
	check(t, err)
	third.run(node)
	select {
	case err := <-third.done:
		wantErr(t, err, ErrRemoved, "join again")
		third.done <- err
	case <-time.After(20 * time.Second):
		t.Error("it was not told")
	}
}

func TestTokensAreForOne(t *testing.T) {
	r := newRig(t)
	first := r.nodes[0]
	ticket, err := first.Token(t.Context(), false, time.Minute)
	check(t, err)
	dir := t.TempDir()
	_, err = Join(t.Context(), dir, ticket, "a", freeAddr(t))
	check(t, err)
	_, err = Join(t.Context(), t.TempDir(), ticket, "b", freeAddr(t))
	wantErr(t, err, err, "make a new one")
	_, err = Join(t.Context(), dir, ticket, "c", freeAddr(t))
	wantErr(t, err, err, "a node lives there")
	old, err := first.Token(t.Context(), false, -time.Second)
	check(t, err)
	_, err = Join(t.Context(), t.TempDir(), old, "d", freeAddr(t))
	wantErr(t, err, err, "expired")
	wrong := ticket
	wrong.Pin = "00"
	_, err = Join(t.Context(), t.TempDir(), wrong, "e", freeAddr(t))
	wantErr(t, err, err, "does not belong")
	forWitness, err := first.Token(t.Context(), true, time.Minute)
	check(t, err)
	forWitness.Witness = false
	if _, err := Join(t.Context(), t.TempDir(), forWitness, "f", freeAddr(t)); err == nil {
		t.Error("a token for a witness let a data node join")
	}
	for _, s := range []string{"", "nexusfs-join-", "nexusfs-join-e30", "x"} {
		if _, err := ParseTicket(s); err == nil {
			t.Errorf("ticket %q was read", s)
		}
	}
	// The node that joined never ran: the group goes on without it.
	r.announce(first, 1)
	if got := first.Status(); got.Alone || len(got.Members) != 2 || got.Members[0].Role == state.Witness {
		t.Errorf("status: %+v", got)
	}
}

// TestP19MixedVersions: a group of old and new members uses what all know; what
// the old do not know is refused before it is proposed, and comes into use when
// the last of them was replaced.
func TestP19MixedVersions(t *testing.T) {
	r := newRig(t)
	second := r.grow(false, true)
	newer := func(n *rigNode) {
		n.end(t)
		o := r.options(n)
		o.known = 2
		node, err := Open(o)
		check(t, err)
		n.run(node)
		n.to = newFakeConsumer()
		r.follow(n)
	}
	newer(second)
	r.announce(second, 1)
	r.announce(r.nodes[0], 1)
	second.mu.Lock()
	version := second.core.st.Version
	second.mu.Unlock()
	if version != 1 {
		t.Errorf("version %d is in use with an old member", version)
	}
	newer(r.nodes[0])
	r.eventually("the new version is in use", func() error {
		if v := second.Status().Version; v != 2 {
			return errors.New("it is not")
		}
		return nil
	})
	r.announce(second, 1)
	// An old program does not go on with what it does not know.
	second.end(t)
	if _, err := Open(r.options(second)); !errors.Is(err, state.ErrNewer) {
		t.Errorf("opened by an old version: %v", err)
	}
}

// TestRejoinUnderANewIdentity: a node that lost its disk comes back as a new
// member; the old one is removed in the same change that makes the new one vote.
func TestRejoinUnderANewIdentity(t *testing.T) {
	r := newRig(t)
	second := r.grow(false, true)
	third := r.grow(false, true)
	r.announce(third, 1)
	old := third.id.ID
	third.kill()
	again := r.grow(false, true)
	check(t, second.Remove(t.Context(), old))
	if again.id.ID == old {
		t.Error("it has its old identity")
	}
	rev := r.announce(again, 2)
	check(t, second.zone.Wait(t.Context(), rev))
	if n := len(second.Status().Members); n != 3 {
		t.Errorf("%d members", n)
	}
}

// TestCertificatesAreRenewed: nodes get new certificates while they run, from the
// one that has the authority, itself included; new connections use them.
func TestCertificatesAreRenewed(t *testing.T) {
	r := newRig(t)
	second := r.grow(false, true)
	first := r.nodes[0]
	before, err := os.ReadFile(filepath.Join(second.dir, certs.CertFile))
	check(t, err)
	check(t, second.RenewCertificate(t.Context(), first.id.ID))
	check(t, first.RenewCertificate(t.Context(), first.id.ID))
	after, err := os.ReadFile(filepath.Join(second.dir, certs.CertFile))
	check(t, err)
	if bytes.Equal(before, after) {
		t.Error("the certificate is the old one")
	}
	r.announce(second, 1)
	second.end(t)
	r.start(second)
	check(t, first.zone.Wait(t.Context(), r.announce(second, 1)))
	if err := first.RenewCertificate(t.Context(), second.id.ID); err == nil {
		t.Error("renewed by a node without the authority")
	}
}
