package namespace

import (
	"encoding/binary"
	"fmt"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// rowFormat is the first byte of every value. A row of another format is
// damage, never guessed at.
const rowFormat = 1

// damaged reports a row that no machine of this version writes.
func damaged(key []byte, format string, args ...any) error {
	return dfs.Errorf(dfs.Corrupt, "read row", "%x: %s", key, fmt.Sprintf(format, args...))
}

// decoder takes fields off the front of a value. The first short field makes
// all later ones zero and done fail.
type decoder struct {
	b   []byte
	bad bool
}

func decode(value []byte) decoder {
	d := decoder{b: value}
	if d.u8() != rowFormat {
		d.bad = true
	}
	return d
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.bad || n <= 0 || n > 1 && d.b[n-1] == 0 { // a row is written in one way only
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.bad = true
	}
	return uint32(v)
}

// text takes a length and so many bytes.
func (d *decoder) text() []byte { return d.take(int(min(d.uvarint(), 1<<31-1))) }

// rest takes what is left.
func (d *decoder) rest() []byte { return d.take(len(d.b)) }

// done fails unless the value was taken whole.
func (d *decoder) done(key []byte) error {
	if d.bad || len(d.b) > 0 {
		return damaged(key, "malformed value")
	}
	return nil
}

func appendText[T ~string | ~[]byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// state is the row of counters, written with every entry that changes anything.
type state struct {
	group        dfs.GroupID
	version      dfs.Version // of the last entry that changed anything
	next         uint64      // Invariant: above every local inode number ever given out
	inodes       uint64
	trimmed      dfs.Version // Invariant: no history row ended before it; trimmed <= version
	defaultClass string

	// recovered is the generation of a recovery that nobody has acknowledged, 0: none.
	// unfenced says that the group may have lost fences: no command is taken.
	recovered uint64
	unfenced  bool

	// level is the feature level. What follows is 0 below LevelTransactions.
	level uint32
	locks uint64 // rows that are locked
	parts uint64 // shares of transactions that are prepared here
	txns  uint64 // transactions that this group coordinates

	untold   uint64 // inodes that count for something else than they have told: rows of both queues
	counting bool   // what was there before accounts is being counted
}

// flags of the state row
const (
	flagUnfenced = 1
	flagLeveled  = 2 // level and counts follow
	flagCounting = 4
)

func (s *state) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(s.version))
	b = binary.BigEndian.AppendUint64(b, uint64(s.trimmed))
	b = binary.AppendUvarint(b, uint64(s.group))
	b = binary.AppendUvarint(b, s.next)
	b = binary.AppendUvarint(b, s.inodes)
	b = binary.AppendUvarint(b, s.recovered)
	var flags byte
	if s.unfenced {
		flags |= flagUnfenced
	}
	if s.level == 0 {
		return append(append(b, flags), s.defaultClass...)
	}
	if s.counting {
		flags |= flagCounting
	}
	b = binary.AppendUvarint(append(b, flags|flagLeveled), uint64(s.level))
	b = binary.AppendUvarint(b, s.locks)
	b = binary.AppendUvarint(b, s.parts)
	b = binary.AppendUvarint(b, s.txns)
	b = binary.AppendUvarint(b, s.untold)
	return append(b, s.defaultClass...)
}

// readState returns the counters, nil before the group's first entry.
func readState(r raftgroup.Reader) (*state, error) {
	key := []byte{tagState}
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodeState(key, v)
}

func decodeState(key, v []byte) (*state, error) {
	d := decode(v)
	s := &state{version: dfs.Version(d.u64()), trimmed: dfs.Version(d.u64()), group: dfs.GroupID(d.uvarint()), next: d.uvarint(), inodes: d.uvarint()}
	s.recovered = d.uvarint()
	flags := d.uvarint()
	s.unfenced = flags&flagUnfenced != 0
	if flags&flagLeveled != 0 {
		s.level, s.locks, s.parts, s.txns, s.untold = d.u32(), d.uvarint(), d.uvarint(), d.uvarint(), d.uvarint()
		s.counting = flags&flagCounting != 0
	} else if flags&flagCounting != 0 {
		d.bad = true
	}
	if flags > flagUnfenced|flagLeveled|flagCounting || flags&flagLeveled != 0 && s.level == 0 || s.level > NewestLevel {
		d.bad = true
	}
	s.defaultClass = string(d.rest())
	return s, d.done(key)
}

// inode is an inode's attributes.
type inode struct {
	ino                  dfs.Ino
	typ                  wire.FileType
	mode, uid, gid       uint32
	nlink                uint32
	size                 int64 // bytes; of a directory: its entries
	atime, mtime, ctime  int64 // nanoseconds since 1970 UTC
	version              dfs.Version
	class                string
	target               []byte  // of a symlink
	level                uint32  // of a directory
	parent               dfs.Ino // of a directory
	home                 dfs.Ino // of a file or symlink: the directory in which it counts; 0: in none yet
	frozen, unlinked     bool    // of a directory. Invariant: at most one of them, and only with an intent
	stored               []byte  // the row as it was read; nil: the inode is new
	was                  counted // as it was read
	changed, disappeared bool    // what the entry does to it
	rehomed              bool    // it has another home, and may be the same otherwise
}

// counted is what of an inode its account goes by.
type counted struct {
	home  dfs.Ino // of a directory: its parent
	size  int64
	nlink uint32
}

const (
	flagFrozen   = 1
	flagUnlinked = 2
	flagHome     = 4 // of a file or symlink: its home follows
)

func (n *inode) append(b []byte) []byte {
	var flags byte
	if n.frozen {
		flags |= flagFrozen
	}
	if n.unlinked {
		flags |= flagUnlinked
	}
	if n.home != 0 {
		flags |= flagHome
	}
	b = append(b, rowFormat, byte(n.typ), flags)
	b = binary.BigEndian.AppendUint64(b, uint64(n.version))
	b = binary.BigEndian.AppendUint64(b, uint64(n.atime))
	b = binary.BigEndian.AppendUint64(b, uint64(n.mtime))
	b = binary.BigEndian.AppendUint64(b, uint64(n.ctime))
	b = binary.AppendUvarint(b, uint64(n.mode))
	b = binary.AppendUvarint(b, uint64(n.uid))
	b = binary.AppendUvarint(b, uint64(n.gid))
	b = binary.AppendUvarint(b, uint64(n.nlink))
	b = binary.AppendUvarint(b, uint64(n.size))
	b = appendText(b, n.class)
	if n.typ == wire.FileType_DIR {
		b = binary.BigEndian.AppendUint64(b, uint64(n.parent))
		b = binary.AppendUvarint(b, uint64(n.level))
	}
	if n.home != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(n.home))
	}
	return append(b, n.target...)
}

func decodeInode(ino dfs.Ino, v []byte) (*inode, error) {
	d := decode(v)
	n := &inode{ino: ino, typ: wire.FileType(d.u8()), stored: v}
	flags := d.u8()
	n.frozen, n.unlinked = flags&flagFrozen != 0, flags&flagUnlinked != 0
	n.version = dfs.Version(d.u64())
	n.atime, n.mtime, n.ctime = int64(d.u64()), int64(d.u64()), int64(d.u64())
	n.mode, n.uid, n.gid, n.nlink = d.u32(), d.u32(), d.u32(), d.u32()
	n.size = int64(d.uvarint())
	n.class = string(d.text())
	if n.typ == wire.FileType_DIR {
		n.parent, n.level = dfs.Ino(d.u64()), d.u32()
		n.was.home = n.parent
	}
	if flags&flagHome != 0 {
		n.home = dfs.Ino(d.u64())
		n.was.home = n.home
		d.bad = d.bad || n.isDir() || n.home == 0
	}
	n.was.size, n.was.nlink = n.size, n.nlink
	n.target = d.rest()
	if flags > flagFrozen|flagUnlinked|flagHome || n.typ < wire.FileType_FILE || n.typ > wire.FileType_SYMLINK || n.size < 0 || len(n.target) > 0 && n.typ != wire.FileType_SYMLINK {
		d.bad = true
	}
	return n, d.done(inodeKey(ino))
}

func (n *inode) isDir() bool { return n.typ == wire.FileType_DIR }

func (n *inode) wire() *wire.Attr {
	return &wire.Attr{
		Ino: uint64(n.ino), Type: n.typ, Mode: n.mode, Uid: n.uid, Gid: n.gid, Nlink: n.nlink, Size: n.size,
		Atime: n.atime, Mtime: n.mtime, Ctime: n.ctime, Version: uint64(n.version), Target: n.target, Class: n.class,
		Level: n.level, Parent: uint64(n.parent), Frozen: n.frozen, Unlinked: n.unlinked,
	}
}

// readInode returns an inode of this group, nil when there is none.
func readInode(r raftgroup.Reader, ino dfs.Ino) (*inode, error) {
	v, ok, err := r.Get(inodeKey(ino))
	if err != nil || !ok {
		return nil, err
	}
	return decodeInode(ino, v)
}

// dentry is a directory's entry.
type dentry struct {
	ino     dfs.Ino // of this group or of another
	typ     wire.FileType
	version dfs.Version // at which it was entered
	stored  []byte      // the row as it was read
}

func (e *dentry) append(b []byte) []byte {
	b = append(b, rowFormat, byte(e.typ))
	b = binary.BigEndian.AppendUint64(b, uint64(e.version))
	return binary.BigEndian.AppendUint64(b, uint64(e.ino))
}

func decodeDentry(key, v []byte) (*dentry, error) {
	d := decode(v)
	e := &dentry{typ: wire.FileType(d.u8()), version: dfs.Version(d.u64()), ino: dfs.Ino(d.u64()), stored: v}
	return e, d.done(key)
}

// readDentry returns the entry of a name, nil when there is none.
func readDentry(r raftgroup.Reader, parent dfs.Ino, name []byte) (*dentry, error) {
	key := dentryKey(parent, name)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodeDentry(key, v)
}

// extent maps [offset, end) of a file to a range of a block.
// Invariant: offset < end and blockOffset + (end-offset) <= blockLength.
type extent struct {
	offset, end int64
	block       dfs.BlockID
	blockOffset uint32
	blockLength uint32
	version     dfs.Version // at which it was committed
	stored      []byte      // the row as it was read
}

func (e *extent) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(e.version))
	b = e.block.Append(b)
	b = binary.AppendUvarint(b, uint64(e.end-e.offset))
	b = binary.AppendUvarint(b, uint64(e.blockOffset))
	return binary.AppendUvarint(b, uint64(e.blockLength))
}

// decodeExtent reads a row; its key gives the end.
func decodeExtent(key, v []byte) (extent, error) {
	if len(key) != 17 {
		return extent{}, damaged(key, "malformed key of an extent")
	}
	e := extent{end: int64(binary.BigEndian.Uint64(key[9:])), stored: v}
	d := decode(v)
	e.version = dfs.Version(d.u64())
	if id, err := dfs.ParseBlockID(d.take(dfs.BlockIDLen)); err == nil {
		e.block = id
	}
	length := d.uvarint()
	e.blockOffset, e.blockLength = d.u32(), d.u32()
	if length == 0 || length > dfs.MaxBlockSize || int64(length) > e.end || uint64(e.blockOffset)+length > uint64(e.blockLength) {
		d.bad = true
	}
	e.offset = e.end - int64(length)
	return e, d.done(key)
}

func (e *extent) wire() *wire.Extent {
	return &wire.Extent{Offset: e.offset, Length: e.end - e.offset, Block: e.block.Bytes(), BlockOffset: e.blockOffset, BlockLength: e.blockLength}
}

// blockRow says how often an inode's extents and history name a block.
type blockRow struct {
	count  uint64 // Invariant: > 0
	length uint32 // logical bytes of the block
}

func (b *blockRow) append(dst []byte) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(append(dst, rowFormat), b.count), uint64(b.length))
}

func decodeBlock(key, v []byte) (blockRow, error) {
	d := decode(v)
	b := blockRow{count: d.uvarint(), length: d.u32()}
	if b.count == 0 {
		d.bad = true
	}
	return b, d.done(key)
}

// readBlock returns a block's row, a zero one when nothing names it.
func readBlock(r raftgroup.Reader, id dfs.BlockID) (blockRow, error) {
	key := blockKey(id)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return blockRow{}, err
	}
	return decodeBlock(key, v)
}

// childRow says where a directory of another group is linked.
type childRow struct {
	parent dfs.Ino
	name   []byte
}

func (c *childRow) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint64(append(b, rowFormat), uint64(c.parent)), c.name...)
}

// readChild returns a remote child's row, nil when it is not linked here.
func readChild(r raftgroup.Reader, ino dfs.Ino) (*childRow, error) {
	v, ok, err := r.Get(childKey(ino))
	if err != nil || !ok {
		return nil, err
	}
	return decodeChild(childKey(ino), v)
}

func decodeChild(key, v []byte) (*childRow, error) {
	d := decode(v)
	c := &childRow{parent: dfs.Ino(d.u64()), name: d.rest()}
	return c, d.done(key)
}

// IntentKind is the operation over a group boundary that left an intent.
type IntentKind uint8

// The intents.
const (
	IntentMkdir IntentKind = 1 // the child is made and not linked yet
	IntentRmdir IntentKind = 2 // the child is frozen and about to be removed
)

func (k IntentKind) String() string {
	switch k {
	case IntentMkdir:
		return "mkdir"
	case IntentRmdir:
		return "rmdir"
	}
	return "unknown"
}

// Intent is what a mkdir or rmdir over a group boundary leaves in the child's
// group until the parent's group has decided.
type Intent struct {
	Child, Parent dfs.Ino
	Name          []byte
	Kind          IntentKind
	Session       dfs.SessionID
	Version       dfs.Version // of the entry that left it
}

func (i *Intent) append(b []byte) []byte {
	b = append(b, rowFormat, byte(i.Kind))
	b = binary.BigEndian.AppendUint64(b, uint64(i.Session))
	b = binary.BigEndian.AppendUint64(b, uint64(i.Version))
	b = binary.BigEndian.AppendUint64(b, uint64(i.Parent))
	return append(b, i.Name...)
}

func decodeIntent(key, v []byte) (*Intent, error) {
	if len(key) != 9 {
		return nil, damaged(key, "malformed key of an intent")
	}
	d := decode(v)
	i := &Intent{Child: dfs.Ino(binary.BigEndian.Uint64(key[1:])), Kind: IntentKind(d.u8())}
	i.Session, i.Version, i.Parent = dfs.SessionID(d.u64()), dfs.Version(d.u64()), dfs.Ino(d.u64())
	i.Name = append([]byte(nil), d.rest()...)
	if i.Kind != IntentMkdir && i.Kind != IntentRmdir {
		d.bad = true
	}
	return i, d.done(key)
}

func readIntent(r raftgroup.Reader, child dfs.Ino) (*Intent, error) {
	v, ok, err := r.Get(intentKey(child))
	if err != nil || !ok {
		return nil, err
	}
	return decodeIntent(intentKey(child), v)
}

// History rows hold the value that ended, behind one byte that says how.
const (
	endedReplaced = 0 // another value took its place
	endedRemoved  = 1 // nothing did; of an inode: its extents stand until this row is trimmed
)
