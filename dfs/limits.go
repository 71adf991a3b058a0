package dfs

import "time"

// Limits that cross package or process boundaries, each with its reason.
const (
	// ChunkSize is the unit of checksums and compression inside a block:
	// small enough that a small read stays small, big enough that a checksum
	// costs 6 hundred-thousandths of the space.
	ChunkSize = 64 << 10

	// DefaultBlockSize and MaxBlockSize bound the bytes of one block before
	// compression.
	DefaultBlockSize = 4 << 20
	MaxBlockSize     = 16 << 20

	// FrameSize is the payload of one message of a block stream: four chunks.
	FrameSize = 4 * ChunkSize

	// MaxMessage bounds every message on the wire but block frames, which
	// are smaller anyway.
	MaxMessage = 1 << 20

	// MaxName and MaxPath are what POSIX hosts allow (bytes).
	MaxName = 255
	MaxPath = 4096

	// MaxSymlink is the longest symlink target (bytes).
	MaxSymlink = 4095

	// MaxFileSize keeps file offsets positive in 64 bits with room to add.
	MaxFileSize = int64(1) << 60

	// MaxExtentsPerCommit bounds one metadata command: 1,024 extents of 4 MiB
	// are 4 GiB of file, well under MaxMessage.
	MaxExtentsPerCommit = 1024

	// InoLease is how many inode numbers a session is given at a time.
	InoLease = 1024

	// MaxShards bounds k+m of an erasure code, and so the members of a PG.
	MaxShards = 32

	// MaxPGs bounds the placement groups of a cluster: the map is one message.
	MaxPGs = 4096

	// MaxGroups bounds the namespace groups of a cluster: each is a row of the map,
	// and a log that somebody leads.
	MaxGroups = 1024

	// MaxReplicas bounds the voters of a Raft group. Seven survive the loss of
	// three; more make every write slower and are hardly ever needed.
	MaxReplicas = 7

	// MaxStoresPerNode bounds the disks of one node, and so a registration; a
	// machine with more of them runs several nodes.
	MaxStoresPerNode = 64

	// MaxMissedBeats bounds health_check.max_failures: it keeps the time-out
	// that the exponential mode doubles finite.
	MaxMissedBeats = 16

	// HistoryKeep is how long a replaced value stays readable when no policy
	// asks for more.
	HistoryKeep = 60 * time.Second

	// SessionTTL is how long a session lives without a renewal.
	SessionTTL = 30 * time.Second
)
