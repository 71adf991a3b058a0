package namespace

import (
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// inodeJump is how many inode numbers a recovery leaves out: more than were given out by
// commits that only lost nodes had. Clients may still hold such numbers, and must not
// come to name other files by them.
const inodeJump = 1 << 24

// recovered is the first entry of a group that has lost a majority. It may lack fences:
// no command is taken before the control group has said once more which sessions have
// ended. Nothing is deleted until somebody has looked.
func (c *change) recovered(op *wire.NamespaceRecoveredOp) error {
	c.st.recovered, c.st.unfenced = op.GetGeneration(), true
	if c.numbersLeft(inodeJump) {
		c.st.next += inodeJump
	}
	c.wrote = true
	return nil
}

// Recovered returns the generation of a recovery of the group that nobody has
// acknowledged, 0 for none.
func Recovered(r raftgroup.Reader) (uint64, error) {
	st, err := readState(r)
	if st == nil {
		return 0, err
	}
	return st.recovered, err
}
