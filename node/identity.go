package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/meta"
)

const (
	identityFile   = "node.json"
	identityTmp    = "node.json.tmp"
	lockFile       = "LOCK"
	pidFile        = "PID"
	identityFormat = 1

	maxIdentityFile = 64 << 10 // bytes; a larger file is not ours
)

// identityDoc is the content of node.json: one line of JSON and one with its
// CRC32C (docs/FORMATS.md).
type identityDoc struct {
	Format   int      `json:"format"`
	Name     string   `json:"name"`
	Mark     number   `json:"mark"`
	Accepted number   `json:"accepted,omitzero"` // start, see dfs.Lineage
	Since    uint64   `json:"since,omitempty"`   // map epoch since which it is on record
	Offered  []number `json:"offered,omitempty"` // starts
	Cluster  string   `json:"cluster,omitempty"`
	Node     uint32   `json:"node,omitempty"`
	Founding bool     `json:"founding,omitempty"`
	Hosted   bool     `json:"hosted,omitempty"`
	Renewal  number   `json:"renewal,omitzero"` // mark under which the node asks to join anew
	Aside    bool     `json:"aside,omitempty"`
}

// number is a random number: 16 hexadecimal digits, since readers of JSON round
// large numbers.
type number uint64

// MarshalText implements encoding.TextMarshaler.
func (n number) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(n)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *number) UnmarshalText(p []byte) error {
	v, err := strconv.ParseUint(string(p), 16, 64)
	if err != nil || len(p) != 16 {
		return fmt.Errorf("%q is no number of 16 hexadecimal digits", p)
	}
	*n = number(v)
	return nil
}

// Identity is a node's identity in its data directory, which it keeps locked
// until Close: the name, the incarnation, and what the node knows of its
// cluster. It is safe for concurrent use.
type Identity struct {
	fs    vfs.FS
	dir   string
	lock  io.Closer
	start uint64 // of this life, see dfs.Incarnation

	mu  sync.Mutex // guards doc and writes of node.json
	doc identityDoc
}

var _ meta.Identity = (*Identity)(nil)

// OpenIdentity locks the directory and starts a new life of the identity in
// it, under a number from newMark, which never returns 0. An empty or missing
// directory is formatted with a mark from newMark; one with anything else in it,
// a locked one, and one of another name are refused.
func OpenIdentity(fs vfs.FS, dir, name string, pid int, newMark func() uint64) (_ *Identity, err error) {
	if err := mkdirSynced(fs, dir); err != nil {
		return nil, dfs.Wrap("open data directory", dir, err)
	}
	lock, err := fs.Lock(fs.PathJoin(dir, lockFile))
	if err != nil {
		return nil, &dfs.Error{Kind: dfs.Busy, Op: "open data directory", Object: dir, Text: "another process" + holder(fs, dir) + " uses it", Err: err}
	}
	id := &Identity{fs: fs, dir: dir, lock: lock}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := id.load(name, newMark); err != nil {
		return nil, dfs.Wrap("open data directory", dir, err)
	}
	if err := id.writePID(pid); err != nil {
		return nil, dfs.Wrap("open data directory", dir, err)
	}
	id.start = newMark()
	return id, nil
}

func (id *Identity) load(name string, newMark func() uint64) error {
	raw, err := readFile(id.fs, id.fs.PathJoin(id.dir, identityFile))
	if errors.Is(err, iofs.ErrNotExist) {
		if err := id.checkEmpty(); err != nil {
			return err
		}
		id.doc = identityDoc{Format: identityFormat, Name: name, Mark: number(newMark())}
		return id.save(id.doc)
	}
	if err != nil {
		return err
	}
	line, sum, ok := strings.Cut(strings.TrimSuffix(string(raw), "\n"), "\n")
	if !ok || sum != checksum(line) {
		return dfs.Errorf(dfs.Corrupt, "", "%s is damaged: its checksum does not match", identityFile)
	}
	if err := json.Unmarshal([]byte(line), &id.doc); err != nil {
		return dfs.Errorf(dfs.Corrupt, "", "%s is damaged: %v", identityFile, err)
	}
	if id.doc.Format != identityFormat {
		return dfs.Errorf(dfs.Unsupported, "", "format %d is not known to this release (it knows %d)", id.doc.Format, identityFormat)
	}
	if id.doc.Name != name {
		return dfs.Errorf(dfs.Invalid, "", "it belongs to node %q, the configuration says %q", id.doc.Name, name)
	}
	if id.doc.Mark == 0 || len(id.doc.Offered) > dfs.MaxOffered {
		return dfs.Errorf(dfs.Corrupt, "", "%s is damaged: mark %016x, %d offered starts", identityFile, uint64(id.doc.Mark), len(id.doc.Offered))
	}
	return syncDir(id.fs, id.dir) // what was read may be in the page cache only
}

// checkEmpty refuses to format a directory that holds something.
func (id *Identity) checkEmpty() error {
	names, err := id.fs.List(id.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n {
		case lockFile, pidFile, identityTmp, "lost+found":
		default:
			return dfs.Errorf(dfs.Invalid, "", "it holds %q but no %s: not a data directory, and not empty", n, identityFile)
		}
	}
	return nil
}

func checksum(line string) string {
	return fmt.Sprintf("crc32c %08x", crc32.Checksum([]byte(line), dfs.Castagnoli))
}

// save replaces node.json durably.
func (id *Identity) save(doc identityDoc) error {
	line, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	body := string(line) + "\n" + checksum(string(line)) + "\n"
	tmp, final := id.fs.PathJoin(id.dir, identityTmp), id.fs.PathJoin(id.dir, identityFile)
	if err := writeSynced(id.fs, tmp, body); err != nil {
		return err
	}
	if err := id.fs.Rename(tmp, final); err != nil {
		return err
	}
	return syncDir(id.fs, id.dir)
}

func (id *Identity) writePID(pid int) error {
	return writeSynced(id.fs, id.fs.PathJoin(id.dir, pidFile), strconv.Itoa(pid)+"\n")
}

// holder names the process that the directory's PID file names.
func holder(fs vfs.FS, dir string) string {
	raw, err := readFile(fs, fs.PathJoin(dir, pidFile))
	if err != nil || len(raw) == 0 {
		return ""
	}
	return " (PID " + strings.TrimSpace(string(raw)) + ")"
}

// Incarnation implements meta.Identity.
func (id *Identity) Incarnation() dfs.Incarnation {
	id.mu.Lock()
	defer id.mu.Unlock()
	return dfs.Incarnation{Mark: uint64(id.doc.Mark), Start: id.start}
}

// InPlace implements meta.Identity.
func (id *Identity) InPlace() error {
	raw, err := readFile(id.fs, id.fs.PathJoin(id.dir, identityFile))
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return dfs.Wrap("look at data directory", id.dir, err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	var there identityDoc
	if err == nil && json.Unmarshal([]byte(line), &there) == nil && uint64(there.Mark) == id.Incarnation().Mark {
		return nil
	}
	return dfs.Errorf(dfs.Stale, "look at data directory", "%s is another directory by now than the one that this process was started in: its disk was mounted, or it was replaced; start again", id.dir)
}

// Lineage implements meta.Identity.
func (id *Identity) Lineage() (dfs.Lineage, dfs.Epoch) {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.doc.lineage(), dfs.Epoch(id.doc.Since)
}

func (d *identityDoc) lineage() dfs.Lineage {
	l := dfs.Lineage{Accepted: uint64(d.Accepted)}
	for _, n := range d.Offered {
		l.Offered = append(l.Offered, uint64(n))
	}
	return l
}

// Offer implements meta.Identity.
func (id *Identity) Offer() error {
	id.mu.Lock()
	defer id.mu.Unlock()
	l := id.doc.lineage()
	if l.Holds(id.start) {
		return nil
	}
	doc := id.doc
	doc.offer(id.start)
	return id.replaceLocked(doc)
}

// Renewing reports whether the node is about to join anew.
func (id *Identity) Renewing() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.doc.Renewal != 0
}

// Renew implements meta.Identity.
func (id *Identity) Renew(mark uint64) (dfs.Incarnation, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.doc.Renewal == 0 {
		doc := id.doc
		doc.Renewal = number(mark)
		if err := id.replaceLocked(doc); err != nil {
			return dfs.Incarnation{}, err
		}
	}
	return dfs.Incarnation{Mark: uint64(id.doc.Renewal), Start: id.start}, nil
}

// Renewed implements meta.Identity.
func (id *Identity) Renewed(node dfs.NodeID, since dfs.Epoch) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.doc.Renewal == 0 {
		return dfs.Errorf(dfs.Invalid, "save identity", "%s was not about to join anew", id.dir)
	}
	doc := id.doc
	doc.Mark, doc.Renewal, doc.Node = doc.Renewal, 0, uint32(node)
	doc.Accepted, doc.Since, doc.Offered = number(id.start), uint64(since), nil
	doc.Founding, doc.Hosted, doc.Aside = false, false, true
	return id.replaceLocked(doc)
}

// Accept implements meta.Identity.
func (id *Identity) Accept(since dfs.Epoch) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.replaceLocked(id.acceptedLocked(since))
}

// acceptedLocked is doc with this start as the one on record.
func (id *Identity) acceptedLocked(since dfs.Epoch) identityDoc {
	doc := id.doc
	if doc.Accepted == number(id.start) {
		return doc
	}
	old := doc.Accepted
	doc.Accepted, doc.Since = number(id.start), uint64(since)
	if doc.Renewal == 0 {
		doc.Offered = nil
	} else if old != 0 {
		doc.offer(uint64(old)) // it may have asked under the other mark, and not have heard
	}
	return doc
}

// offer adds a start to those offered.
func (d *identityDoc) offer(start uint64) {
	l := d.lineage().Offer(start)
	d.Offered = nil
	for _, n := range l.Offered {
		d.Offered = append(d.Offered, number(n))
	}
}

// Membership implements meta.Identity.
func (id *Identity) Membership() meta.Membership {
	id.mu.Lock()
	defer id.mu.Unlock()
	cluster, _ := dfs.ParseClusterID(id.doc.Cluster)
	return meta.Membership{Cluster: cluster, Node: dfs.NodeID(id.doc.Node), Founding: id.doc.Founding, Hosted: id.doc.Hosted, Aside: id.doc.Aside}
}

// SaveMembership implements meta.Identity. A cluster or number that is set is
// never changed.
func (id *Identity) SaveMembership(m meta.Membership) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saveLocked(id.doc, m)
}

// SaveNode stores what a registration gave, durably: that this start is on record
// since a map epoch, and under which number. The rest of the membership stays as
// it is.
func (id *Identity) SaveNode(cluster dfs.ClusterID, node dfs.NodeID, since dfs.Epoch) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saveLocked(id.acceptedLocked(since), meta.Membership{Cluster: cluster, Node: node, Founding: id.doc.Founding, Hosted: id.doc.Hosted, Aside: id.doc.Aside})
}

// saveLocked stores doc with a membership.
func (id *Identity) saveLocked(doc identityDoc, m meta.Membership) error {
	if id.doc.Cluster != "" && id.doc.Cluster != m.Cluster.String() || id.doc.Node != 0 && dfs.NodeID(id.doc.Node) != m.Node {
		return dfs.Errorf(dfs.WrongCluster, "save identity", "%s is node %d of cluster %s, not node %d of %v", id.dir, id.doc.Node, id.doc.Cluster, m.Node, m.Cluster)
	}
	doc.Cluster, doc.Node, doc.Founding, doc.Hosted, doc.Aside = m.Cluster.String(), uint32(m.Node), m.Founding, m.Hosted, m.Aside
	return id.replaceLocked(doc)
}

// replaceLocked makes doc the identity, durably.
func (id *Identity) replaceLocked(doc identityDoc) error {
	if reflect.DeepEqual(doc, id.doc) {
		return nil
	}
	if err := id.save(doc); err != nil {
		return dfs.Wrap("save identity", id.dir, err)
	}
	id.doc = doc
	return nil
}

// Close unlocks the directory.
func (id *Identity) Close() error { return id.lock.Close() }

func readFile(fs vfs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxIdentityFile {
		return nil, dfs.Errorf(dfs.Corrupt, "read", "%s has %d bytes", name, info.Size())
	}
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func writeSynced(fs vfs.FS, name, body string) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(body))
	return errors.Join(err, f.Sync(), f.Close())
}

// mkdirSynced makes a directory and those above it that are missing, so that
// they survive a power loss: each entry is synced in its parent.
func mkdirSynced(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	parent := fs.PathDir(dir)
	if parent != dir {
		if err := mkdirSynced(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
