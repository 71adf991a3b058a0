package namespace

import (
	"cmp"
	"encoding/binary"

	"dfsd/dfs"
	"dfsd/raftgroup"
)

// Keys: one tag byte, then big-endian numbers, then a name where there is one.
// Values begin with the byte rowFormat. docs/FORMATS.md has the layouts.
const (
	tagAccount = 'a' // inode of a directory: sums of all that lies below it
	tagBlock   = 'b' // inode, block ID (24): how often the block is named, and its length
	tagChild   = 'c' // inode of another group: where it is linked here
	tagDentry  = 'd' // parent, name: inode and type
	tagExtent  = 'e' // inode, end of the extent: the extent
	tagFence   = 'f' // alone: which sessions are fenced
	tagCount   = 'g' // alone: how far what was there before accounts has been counted
	tagHistory = 'h' // version at which it ended, key of the row: the value it had
	tagInode   = 'i' // inode: attributes
	tagLock    = 'k' // key of a row, or tagTree: the transactions that hold it
	tagLease   = 'l' // session, local number >> 8: which of the 256 numbers are leased and unused
	tagMark    = 'm' // session: below which block counter its blocks are committed or given up
	tagIntent  = 'n' // inode of the child: intent of a mkdir or rmdir over a boundary
	tagFloor   = 'o' // session: its acknowledged floor
	tagPart    = 'p' // group of the coordinator (8), version that began it: this group's share of a transaction
	tagQueue   = 'q' // block ID: the stores have it to delete
	tagReply   = 'r' // session, sequence number: the encoded result
	tagState   = 's' // alone: counters
	tagTxn     = 't' // session, sequence number: a transaction that this group coordinates
	tagTree    = 'T' // alone, locked only, in the root's group: the shape of the tree of directories
	tagUntold  = 'u' // inode: it counts for something else than its home, of this group, has taken in
	tagReport  = 'v' // inode: likewise, and its home is in another group
	tagSweep   = 'w' // alone, empty: rows of fenced sessions are left to be swept
	tagTaken   = 'x' // inode of another group, directory that names it: what that has taken in
	tagNames   = 'y' // inode of a file, directory: how many names it has there
)

func key8(tag byte, a uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9), tag), a)
}

func key16(tag byte, a, b uint64) []byte {
	k := append(make([]byte, 0, 17), tag)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(k, a), b)
}

func inodeKey(ino dfs.Ino) []byte  { return key8(tagInode, uint64(ino)) }
func childKey(ino dfs.Ino) []byte  { return key8(tagChild, uint64(ino)) }
func intentKey(ino dfs.Ino) []byte { return key8(tagIntent, uint64(ino)) }

func dentryKey(parent dfs.Ino, name []byte) []byte {
	k := append(make([]byte, 0, 9+len(name)), tagDentry)
	return append(binary.BigEndian.AppendUint64(k, uint64(parent)), name...)
}

// extentKey orders a file's extents by their ends: as extents never overlap
// this is also their order by offset, and the first key past (inode, x) is the
// first extent that reaches beyond x.
func extentKey(ino dfs.Ino, end int64) []byte { return key16(tagExtent, uint64(ino), uint64(end)) }

func blockKey(id dfs.BlockID) []byte {
	k := append(make([]byte, 0, 9+dfs.BlockIDLen), tagBlock)
	return id.Append(binary.BigEndian.AppendUint64(k, uint64(id.Ino)))
}

func queueKey(id dfs.BlockID) []byte {
	return id.Append(append(make([]byte, 0, 1+dfs.BlockIDLen), tagQueue))
}

func floorKey(s dfs.SessionID) []byte             { return key8(tagFloor, uint64(s)) }
func markKey(s dfs.SessionID) []byte              { return key8(tagMark, uint64(s)) }
func replyKey(s dfs.SessionID, seq uint64) []byte { return key16(tagReply, uint64(s), seq) }
func leaseKey(s dfs.SessionID, chunk uint64) []byte {
	return key16(tagLease, uint64(s), chunk)
}

func txnKey(s dfs.SessionID, seq uint64) []byte { return key16(tagTxn, uint64(s), seq) }
func partKey(h holder) []byte                   { return key16(tagPart, uint64(h.group), uint64(h.begun)) }
func lockKey(row []byte) []byte                 { return append(append(make([]byte, 0, 1+len(row)), tagLock), row...) }

// treeKey is what a transaction locks that gives a directory a new parent. There
// is no such row.
func treeKey() []byte { return []byte{tagTree} }

func historyKey(ended dfs.Version, key []byte) []byte {
	k := append(make([]byte, 0, 9+len(key)), tagHistory)
	return append(binary.BigEndian.AppendUint64(k, uint64(ended)), key...)
}

// keyGroup reads the coordinator in the key of a share.
func keyGroup(key []byte) dfs.GroupID { return dfs.GroupID(binary.BigEndian.Uint64(key[1:])) }

// sessionSeq reads the key of a command's row.
func sessionSeq(key []byte) (dfs.SessionID, uint64) {
	return dfs.SessionID(binary.BigEndian.Uint64(key[1:])), binary.BigEndian.Uint64(key[9:])
}

// scan calls fn with the rows in [lower, upper) and returns its error as it is,
// whatever the reader makes of it. The slices are valid only inside fn.
func scan(r raftgroup.Reader, lower, upper []byte, fn func(key, value []byte) (bool, error)) error {
	var stopped error
	err := r.Scan(lower, upper, func(key, value []byte) (more bool, err error) {
		more, stopped = fn(key, value)
		return more, stopped
	})
	return cmp.Or(stopped, err)
}

// after returns the first key past every key that starts with k.
func after(k []byte) []byte {
	for i := len(k) - 1; i >= 0; i-- {
		if k[i] != 0xff {
			end := append(make([]byte, 0, i+1), k[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}
