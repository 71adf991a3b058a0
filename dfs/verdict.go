package dfs

// Verdict is what the group that owns a block's inode says of the block. Numbers
// are on the wire and never change their meaning.
type Verdict uint8

// The verdicts. Whoever reads another number takes it for Pending.
const (
	Pending    Verdict = iota // not to be told yet: ask again
	Referenced                // metadata names the block, and will have it deleted when it does no longer
	Garbage                   // metadata does not name the block and never will
)

func (v Verdict) String() string {
	switch v {
	case Referenced:
		return "referenced"
	case Garbage:
		return "garbage"
	}
	return "pending"
}
