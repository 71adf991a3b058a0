package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
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
	Format   int    `json:"format"`
	Name     string `json:"name"`
	Mark     uint64 `json:"mark,string"`
	Start    uint64 `json:"start"`
	Cluster  string `json:"cluster,omitempty"`
	Node     uint32 `json:"node,omitempty"`
	Founding bool   `json:"founding,omitempty"`
	Hosted   bool   `json:"hosted,omitempty"`
}

// Identity is a node's identity in its data directory, which it keeps locked
// until Close: the name, the incarnation, and what the node knows of its
// cluster. It is safe for concurrent use.
type Identity struct {
	fs    vfs.FS
	dir   string
	lock  io.Closer
	found uint64

	mu  sync.Mutex
	doc identityDoc
}

var _ meta.Identity = (*Identity)(nil)

// OpenIdentity locks the directory and starts a new life of the identity in
// it. An empty or missing directory is formatted with a mark from newMark; one
// with anything else in it, a locked one, and one of another name are refused.
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
	id.found = id.doc.Start
	id.doc.Start++
	if err := id.save(id.doc); err != nil {
		return nil, dfs.Wrap("open data directory", dir, err)
	}
	return id, nil
}

func (id *Identity) load(name string, newMark func() uint64) error {
	raw, err := readFile(id.fs, id.fs.PathJoin(id.dir, identityFile))
	if errors.Is(err, iofs.ErrNotExist) {
		if err := id.checkEmpty(); err != nil {
			return err
		}
		id.doc = identityDoc{Format: identityFormat, Name: name, Mark: newMark()}
		return nil
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
	return nil
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
func (id *Identity) Incarnation() (dfs.Incarnation, uint64) {
	id.mu.Lock()
	defer id.mu.Unlock()
	return dfs.Incarnation{Mark: id.doc.Mark, Start: id.doc.Start}, id.found
}

// Membership implements meta.Identity.
func (id *Identity) Membership() meta.Membership {
	id.mu.Lock()
	defer id.mu.Unlock()
	cluster, _ := dfs.ParseClusterID(id.doc.Cluster)
	return meta.Membership{Cluster: cluster, Node: dfs.NodeID(id.doc.Node), Founding: id.doc.Founding, Hosted: id.doc.Hosted}
}

// SaveMembership implements meta.Identity. A cluster or number that is set is
// never changed.
func (id *Identity) SaveMembership(m meta.Membership) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saveLocked(m)
}

// SaveNode stores what a registration gave, durably; the rest of the membership
// stays as it is.
func (id *Identity) SaveNode(cluster dfs.ClusterID, node dfs.NodeID) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.saveLocked(meta.Membership{Cluster: cluster, Node: node, Founding: id.doc.Founding, Hosted: id.doc.Hosted})
}

func (id *Identity) saveLocked(m meta.Membership) error {
	if id.doc.Cluster != "" && id.doc.Cluster != m.Cluster.String() || id.doc.Node != 0 && dfs.NodeID(id.doc.Node) != m.Node {
		return dfs.Errorf(dfs.WrongCluster, "save identity", "%s is node %d of cluster %s, not node %d of %v", id.dir, id.doc.Node, id.doc.Cluster, m.Node, m.Cluster)
	}
	doc := id.doc
	doc.Cluster, doc.Node, doc.Founding, doc.Hosted = m.Cluster.String(), uint32(m.Node), m.Founding, m.Hosted
	if doc == id.doc {
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
	if err := fs.MkdirAll(dir, 0o755); err != nil {
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
