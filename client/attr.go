package client

import (
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Type is the type of an inode.
type Type uint8

// The types.
const (
	TypeFile    = Type(wire.FileType_FILE)
	TypeDir     = Type(wire.FileType_DIR)
	TypeSymlink = Type(wire.FileType_SYMLINK)
)

func (t Type) String() string {
	switch t {
	case TypeFile:
		return "file"
	case TypeDir:
		return "directory"
	case TypeSymlink:
		return "symlink"
	}
	return "unknown"
}

// Attr is what is known of an inode.
type Attr struct {
	Ino                 dfs.Ino
	Type                Type
	Mode                uint32 // permission bits with setuid, setgid and sticky: 0 to 07777
	UID, GID            uint32
	Nlink               uint32
	Size                int64 // bytes; of a directory: entries
	Atime, Mtime, Ctime time.Time
	Version             dfs.Version // of the last change
	Target              string      // of a symlink
	Class               string      // storage class of a file; of a directory: of what is created in it
	Parent              dfs.Ino     // of a directory
}

func toAttr(a *wire.Attr) *Attr {
	return &Attr{
		Ino: dfs.Ino(a.GetIno()), Type: Type(a.GetType()), Mode: a.GetMode(), UID: a.GetUid(), GID: a.GetGid(), Nlink: a.GetNlink(),
		Size: a.GetSize(), Atime: time.Unix(0, a.GetAtime()), Mtime: time.Unix(0, a.GetMtime()), Ctime: time.Unix(0, a.GetCtime()),
		Version: dfs.Version(a.GetVersion()), Target: string(a.GetTarget()), Class: a.GetClass(), Parent: dfs.Ino(a.GetParent()),
	}
}

// SetAttr says what to change of an inode; nil leaves a field as it is.
type SetAttr struct {
	Mode         *uint32 // 0 to 07777
	UID, GID     *uint32
	Size         *int64 // of a file: cut it off, or let it grow with zeros
	Atime, Mtime *time.Time
}

func (s *SetAttr) command(ino dfs.Ino) *wire.Command {
	op := &wire.SetAttrOp{Ino: uint64(ino), Mode: s.Mode, Uid: s.UID, Gid: s.GID, Size: s.Size}
	if s.Atime != nil {
		ns := s.Atime.UnixNano()
		op.Atime = &ns
	}
	if s.Mtime != nil {
		ns := s.Mtime.UnixNano()
		op.Mtime = &ns
	}
	return &wire.Command{Op: &wire.Command_SetAttr{SetAttr: op}}
}

// DirEntry is one entry of a directory.
type DirEntry struct {
	Name string
	Ino  dfs.Ino
	Type Type
	Attr *Attr // nil unless asked for
}

// Extent maps a range of a file to a range of a block.
type Extent struct {
	Offset, Length int64 // in the file, bytes
	Block          dfs.BlockID
	BlockOffset    uint32 // logical bytes
	BlockLength    uint32 // logical bytes of the whole block
}

// toExtent refuses an extent that does not lie within its block.
func toExtent(e *wire.Extent) (Extent, error) {
	id, err := dfs.ParseBlockID(e.GetBlock())
	if err != nil {
		return Extent{}, err
	}
	if e.Offset < 0 || e.Length <= 0 || e.Length > dfs.MaxBlockSize || e.BlockLength > dfs.MaxBlockSize ||
		int64(e.BlockOffset)+e.Length > int64(e.BlockLength) || e.Offset > dfs.MaxFileSize-e.Length {
		return Extent{}, dfs.Errorf(dfs.Corrupt, "", "extent at %d: %d bytes from %d of a block of %d", e.Offset, e.Length, e.BlockOffset, e.BlockLength)
	}
	return Extent{Offset: e.Offset, Length: e.Length, Block: id, BlockOffset: e.BlockOffset, BlockLength: e.BlockLength}, nil
}

func (e *Extent) end() int64 { return e.Offset + e.Length }
