package raftnode

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nexusfs/raftnode/state"
)

// Names of a node's files in its folder.
const (
	identityFile = "identity.json"
	storeFile    = "raft.db"
)

// Identity says who a node is. It lies beside the store, so that a lost or
// damaged store is never mistaken for a new one (P16).
type Identity struct {
	Format  int          `json:"format"`
	Group   string       `json:"group"` // 16 hexadecimal digits
	ID      state.NodeID `json:"id"`
	Name    string       `json:"name"` // for people
	Address string       `json:"address,omitempty"`
	Witness bool         `json:"witness,omitempty"`
	// Alone: there is no other member, so everything may be rebuilt from SQL.
	Alone bool `json:"alone"`
	// Boot is the machine's run in which a node that is alone last began: its
	// store is not synced, so after another one it is not trusted.
	Boot string `json:"boot,omitempty"`
	// Peers are where a node that has not heard from its group yet finds it.
	Peers map[state.NodeID]string `json:"peers,omitempty"`
}

const identityFormat = 1

// ReadIdentity reads the identity of the node whose folder dir is; fs.ErrNotExist
// when there is none.
func ReadIdentity(dir string) (*Identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	id := new(Identity)
	switch err := json.Unmarshal(b, id); {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case id.Format > identityFormat:
		return nil, fmt.Errorf("%s was written by a newer version of nexusfs: use that version or a newer one", path)
	case id.ID == 0 || id.Group == "":
		return nil, fmt.Errorf("%s names no node", path)
	}
	return id, nil
}

// write stores the identity durably, in place of what was there.
func (id *Identity) write(dir string) error {
	b, err := json.MarshalIndent(id, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, identityFile), append(b, '\n'), 0o600)
}

// writeFile replaces a file durably: afterwards it has its old content or b.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// newID draws an identity that nobody has had.
func newID() state.NodeID {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // does not fail (crypto/rand)
		if id := binary.BigEndian.Uint64(b[:]); id != 0 && id < 1<<63 {
			return state.NodeID(id)
		}
	}
}

// NewIdentity draws the identity of the first node of a new group.
func NewIdentity(name, address string) *Identity {
	return &Identity{Format: identityFormat, Group: newID().String(), ID: newID(), Name: name, Address: address, Alone: true}
}

// bootID names the machine's run.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // never equal to a run that is known
	}
	return strings.TrimSpace(string(b))
}
