package dfs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// ClusterID names one cluster for ever. The zero value means "not known yet".
type ClusterID [16]byte

// ParseClusterID reads the 32 hexadecimal digits that String writes.
func ParseClusterID(s string) (ClusterID, error) {
	var id ClusterID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, Errorf(Invalid, "parse", "cluster ID %q: want 32 hexadecimal digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// ClusterIDFromBytes reads the 16 bytes of an identifier; no bytes give the
// zero value.
func ClusterIDFromBytes(b []byte) (ClusterID, error) {
	var id ClusterID
	if len(b) == 0 {
		return id, nil
	}
	if len(b) != len(id) {
		return id, Errorf(Invalid, "parse", "cluster ID of %d bytes, want %d", len(b), len(id))
	}
	copy(id[:], b)
	return id, nil
}

// IsZero reports whether the identifier is unset.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// Bytes returns the identifier's bytes, nil for the zero value.
func (c ClusterID) Bytes() []byte {
	if c.IsZero() {
		return nil
	}
	return c[:]
}

func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// NodeID names one incarnation mark of a node: a node whose data directory was
// formatted anew gets a new one. It is also the node's Raft ID in every group.
// 0 is none.
type NodeID uint32

func (n NodeID) String() string { return "n" + strconv.FormatUint(uint64(n), 10) }

// StoreID names one formatted store (disk). 0 is none.
type StoreID uint32

func (s StoreID) String() string { return "s" + strconv.FormatUint(uint64(s), 10) }

// GroupID names a Raft group: ControlGroup, or a namespace group from 1 up.
type GroupID uint16

// ControlGroup holds the cluster map, sessions and settings.
const ControlGroup GroupID = 0

func (g GroupID) String() string { return "g" + strconv.FormatUint(uint64(g), 10) }

// PGID names a placement group, unique in the cluster. 0 is none.
type PGID uint32

func (p PGID) String() string { return "pg" + strconv.FormatUint(uint64(p), 10) }

// Epoch is a version of the cluster map. Epochs only grow and are never
// reused. 0 is before every map.
type Epoch uint64

// Version is a hybrid logical time stamp that grows within a group: the top
// 48 bits are milliseconds since 1970 UTC, the low 16 count within one.
type Version uint64

// SessionID names one client process's lease; 48 bits, never reused, in the
// order in which sessions were opened. 0 is none.
type SessionID uint64

// MaxSessionID and MaxBlockCounter bound the 48-bit parts of a block ID.
const (
	MaxSessionID    = SessionID(1)<<48 - 1
	MaxBlockCounter = uint64(1)<<48 - 1
)

// Ino is an inode number: the top 16 bits are the group that owns it for ever.
// 0 is none.
type Ino uint64

// MakeIno joins a group and a number local to it. REQUIRES: local < 1<<48.
func MakeIno(g GroupID, local uint64) Ino { return Ino(uint64(g)<<48 | local&(1<<48-1)) }

// RootIno is the root directory, in the first namespace group.
const RootIno = Ino(1<<48 | 1)

// Group returns the group that owns the inode.
func (i Ino) Group() GroupID { return GroupID(i >> 48) }

// Local returns the part of the number below the group.
func (i Ino) Local() uint64 { return uint64(i) & (1<<48 - 1) }

func (i Ino) String() string { return fmt.Sprintf("%d:%d", i.Group(), i.Local()) }

// BlockIDLen is the length in bytes of an encoded BlockID.
const BlockIDLen = 24

// BlockID names immutable bytes. The writer makes it from its session and a
// counter that it never uses twice.
type BlockID struct {
	PG      PGID
	Ino     Ino       // the inode that owns the block
	Session SessionID // Invariant: <= MaxSessionID
	Counter uint64    // Invariant: <= MaxBlockCounter
}

// IsZero reports whether the identifier is unset.
func (b BlockID) IsZero() bool { return b == BlockID{} }

// Append appends the 24-byte big-endian form: PG (4), inode (8), session (6),
// counter (6). Byte order is the order of PG, inode, session, counter.
func (b BlockID) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(b.PG))
	dst = binary.BigEndian.AppendUint64(dst, uint64(b.Ino))
	dst = append48(dst, uint64(b.Session))
	return append48(dst, b.Counter)
}

// Bytes returns the encoded form in a new slice.
func (b BlockID) Bytes() []byte { return b.Append(make([]byte, 0, BlockIDLen)) }

// ParseBlockID reads the form that Append writes.
func ParseBlockID(p []byte) (BlockID, error) {
	if len(p) != BlockIDLen {
		return BlockID{}, Errorf(Invalid, "parse", "block ID of %d bytes, want %d", len(p), BlockIDLen)
	}
	return BlockID{
		PG:      PGID(binary.BigEndian.Uint32(p)),
		Ino:     Ino(binary.BigEndian.Uint64(p[4:])),
		Session: SessionID(get48(p[12:])),
		Counter: get48(p[18:]),
	}, nil
}

func (b BlockID) String() string {
	return fmt.Sprintf("%d/%s/%d/%d", b.PG, b.Ino, b.Session, b.Counter)
}

func append48(dst []byte, v uint64) []byte {
	return append(dst, byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func get48(p []byte) uint64 {
	return uint64(p[0])<<40 | uint64(p[1])<<32 | uint64(p[2])<<24 | uint64(p[3])<<16 | uint64(p[4])<<8 | uint64(p[5])
}

// Incarnation tells lives of one data directory apart: a random mark drawn
// when the directory was formatted, and a random number that each start draws.
// Which of two starts is the later one they do not say: see Lineage.
type Incarnation struct {
	Mark  uint64 // of the directory, never 0
	Start uint64 // of one process's life on it, never 0
}

func (i Incarnation) String() string { return fmt.Sprintf("%016x#%x", i.Mark, i.Start) }

// Role is a set of the parts that a node can play.
type Role uint8

// The roles.
const (
	RoleMeta Role = 1 << iota
	RoleStorage
)

// Has reports whether all roles of other are in r.
func (r Role) Has(other Role) bool { return r&other == other }

func (r Role) String() string {
	var parts []string
	if r.Has(RoleMeta) {
		parts = append(parts, "meta")
	}
	if r.Has(RoleStorage) {
		parts = append(parts, "storage")
	}
	return strings.Join(parts, ",")
}

// ParseRole reads the comma-separated form that String writes.
func ParseRole(s string) (Role, error) {
	var r Role
	for p := range strings.SplitSeq(s, ",") {
		switch strings.TrimSpace(p) {
		case "meta":
			r |= RoleMeta
		case "storage":
			r |= RoleStorage
		default:
			return 0, Errorf(Invalid, "parse", "role %q: want meta, storage or both with a comma", p)
		}
	}
	return r, nil
}
