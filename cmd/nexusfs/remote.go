package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"
)

// A store may lie in PostgreSQL: many machines mount it, and several times.
// Each mount then has a directory of this machine for itself, its node: with
// lock, control socket, log and the cache of remote content, as an embedded
// store's directory has them. The node's file `format` says which database and
// zone it belongs to, so the directory may be given wherever a STORE is wanted.

// remote is a zone in a PostgreSQL database.
type remote struct {
	Database string `json:"database"`          // postgres://user@host/database?..., without password and zone
	Zone     string `json:"zone"`              //
	Content  string `json:"content,omitempty"` // directory or s3:// URL; "" for what the zone says

	password string // as given in a URL; never stored, never shown
}

// isRemote reports whether a STORE is a database's URL.
func isRemote(arg string) bool {
	return strings.HasPrefix(arg, "postgres://") || strings.HasPrefix(arg, "postgresql://")
}

// parseRemote reads postgres://USER@HOST:PORT/DATABASE?zone=ZONE. Whatever else
// the URL says is for the connection. Errors never quote the password.
func parseRemote(arg string) (*remote, error) {
	u, err := url.Parse(arg)
	if err != nil {
		return nil, errors.New("the database's URL cannot be read: percent-encode special characters in user, password and names")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("the database's URL has a malformed query behind `?`")
	}
	r := &remote{Zone: defaultZone}
	if q.Has("zone") {
		r.Zone = q.Get("zone")
		q.Del("zone")
	}
	if !storeName.MatchString(r.Zone) {
		return nil, fmt.Errorf("zone=%s: a zone's name has letters, digits, dot, dash and underscore, at most 63", escapeName(r.Zone))
	}
	if q.Has("password") {
		r.password = q.Get("password")
		q.Del("password")
	}
	if pw, ok := u.User.Password(); ok {
		r.password, u.User = pw, url.User(u.User.Username())
	}
	u.Scheme, u.RawQuery, u.Fragment = "postgres", q.Encode(), ""
	r.Database = u.String()
	return r, nil
}

// address is the URL to connect with.
func (r *remote) address() string {
	if r.password == "" {
		return r.Database
	}
	u, err := url.Parse(r.Database)
	if err != nil {
		return r.Database
	}
	u.User = url.UserPassword(u.User.Username(), r.password)
	return u.String()
}

// display is the URL as users may see it.
func (r *remote) display() string {
	sep := "?"
	if strings.Contains(r.Database, "?") {
		sep = "&"
	}
	return r.Database + sep + "zone=" + r.Zone
}

// same reports whether both are the same zone, however it is reached.
func (r *remote) same(o *remote) bool {
	return o != nil && r.Database == o.Database && r.Zone == o.Zone
}

// stateDir is where nodes have their directories.
func stateDir(getenv func(string) string) (string, error) {
	if dir := getenv("NEXUSFS_STATE"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/lib/nexusfs", nil
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "nexusfs"), nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "nexusfs"), nil
	}
	return "", fail(exitUsage, "a mount of a database needs a directory of its own on this machine, and neither HOME nor XDG_STATE_HOME is set: set NEXUSFS_STATE to one")
}

// nodeDir is the directory of the mount of a zone at a mountpoint.
func (a *app) nodeDir(r *remote, mountpoint string) (storeDir, error) {
	state, err := stateDir(a.getenv)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(r.display() + "\x00" + mountpoint))
	return storeDir(filepath.Join(state, "nodes", r.Zone+"-"+hex.EncodeToString(sum[:8]))), nil
}

// node is a daemon of this machine that has a zone mounted.
type node struct {
	dir storeDir
	by  holder
}

// nodesOf lists the daemons of this user that have the zone mounted.
func (a *app) nodesOf(r *remote) ([]node, error) {
	state, err := stateDir(a.getenv)
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob(filepath.Join(state, "nodes", "*"))
	if err != nil {
		return nil, err
	}
	var out []node
	for _, dir := range dirs {
		d := storeDir(dir)
		mark, err := d.readMark()
		if err != nil || !r.same(mark.Remote) {
			continue
		}
		if by, held, err := probeLock(d); err == nil && held && by.Role == "mount" {
			out = append(out, node{d, by})
		}
	}
	return out, nil
}

// served reports whether a daemon of this machine mounts the store.
func (d storeDir) served() bool {
	by, held, err := probeLock(d)
	return err == nil && held && by.Role == "mount"
}

// hideSecrets takes passwords out of this process's command line, where ps(1)
// shows them to everybody, and returns the arguments as they were. Go's os.Args
// are the very bytes that the kernel shows.
func hideSecrets(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = strings.Clone(arg)
		for _, secret := range secretsIn(arg) {
			if secret.from < secret.to {
				shown := unsafe.Slice(unsafe.StringData(arg), len(arg))
				for j := secret.from; j < secret.to; j++ {
					shown[j] = 'x'
				}
			}
		}
	}
	return out
}

// span is a part of a string.
type span struct{ from, to int }

// secretsIn finds the passwords of a URL: behind the user's name, and as a
// parameter.
func secretsIn(arg string) []span {
	start := strings.Index(arg, "://")
	if start < 0 {
		return nil
	}
	var out []span
	start += len("://")
	end := start + strings.IndexAny(arg[start:]+"/", "/?#")
	if at := strings.LastIndexByte(arg[start:end], '@'); at >= 0 {
		if colon := strings.IndexByte(arg[start:start+at], ':'); colon >= 0 {
			out = append(out, span{start + colon + 1, start + at})
		}
	}
	for _, key := range []string{"?password=", "&password="} {
		if i := strings.Index(arg, key); i >= 0 {
			from := i + len(key)
			out = append(out, span{from, from + strings.IndexAny(arg[from:]+"&", "&#")})
		}
	}
	return out
}

// passwordEnv hands a URL's password to the daemon in the background, whose
// command line must not have it.
const passwordEnv = "NEXUSFS_DATABASE_PASSWORD"

// readRemote reads the zone that a node's directory belongs to; nil for an
// embedded store, and for what is no store.
func (d storeDir) readRemote() *remote {
	data, err := os.ReadFile(d.file("format"))
	if err != nil {
		return nil
	}
	var mark formatMark
	if json.Unmarshal(data, &mark) != nil || mark.Product != formatProduct {
		return nil
	}
	return mark.Remote
}

// lastSession reads which session the node's daemon had last. Who holds the
// node's lock knows that it is over; 0: there was none.
func (d storeDir) lastSession() int64 {
	data, err := os.ReadFile(d.session())
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0 // it ends with its lease then
	}
	return n
}

// keepSession writes down which session the node's daemon has.
func (d storeDir) keepSession(n int64) error {
	return replaceFile(d.session(), []byte(strconv.FormatInt(n, 10)+"\n"), 0o600)
}
