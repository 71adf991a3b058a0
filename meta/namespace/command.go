package namespace

import (
	"errors"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// command carries out a client's command exactly once.
//
//	fenced ──────────────▶ Fenced
//	below the floor ─────▶ Stale
//	reply remembered ────▶ the same bytes again
//	too far ahead ───────▶ Busy
//	else ────────────────▶ carried out; the reply is remembered unless it says
//	                       "not applied, try again"
func (m *Machine) command(c *change, cmd *wire.Command) ([]byte, error) {
	if err := checkCommand(cmd); err != nil {
		return nil, err
	}
	if c.st.unfenced {
		return nil, refuse(dfs.Unavailable, "group %v was recovered and waits to be told which sessions have ended", c.st.group)
	}
	c.session, c.cred = dfs.SessionID(cmd.Session), cmd.GetCred()
	fence, err := readFence(c.tx)
	if err != nil {
		return nil, err
	}
	if fence.fenced(c.session) {
		return nil, refuse(dfs.Fenced, "session %d has expired", cmd.Session)
	}
	row, known, err := readFloor(c.tx, c.session)
	if err != nil {
		return nil, err
	}
	if cmd.Seq < row.floor {
		return nil, refuse(dfs.Stale, "command %d is below the acknowledged floor %d", cmd.Seq, row.floor)
	}
	if cmd.Floor > row.floor || !known {
		old := row.floor
		row.floor = max(old, cmd.Floor)
		if err := c.writeFloor(row); err != nil {
			return nil, err
		}
		if err := c.forget(old, row.floor); err != nil {
			return nil, err
		}
	}
	key := replyKey(c.session, cmd.Seq)
	if cmd.Seq <= row.last && !m.opts.ForgetReplies {
		reply, ok, err := c.tx.Get(key)
		if err != nil {
			return nil, err
		}
		if ok {
			return reply, nil
		}
	}
	if cmd.Seq-row.floor >= MaxUnacknowledged {
		return nil, refuse(dfs.Busy, "command %d is %d or more above the acknowledged floor %d", cmd.Seq, MaxUnacknowledged, row.floor)
	}
	reply, err := c.carryOut(cmd)
	if err != nil {
		return nil, err
	}
	if cmd.Seq > row.last {
		row.last = cmd.Seq
		if err := c.writeFloor(row); err != nil {
			return nil, err
		}
	}
	return reply, c.tx.Set(key, reply)
}

// carryOut evaluates a command's operation and returns the reply to remember.
func (c *change) carryOut(cmd *wire.Command) ([]byte, error) {
	res, err := c.operate(cmd)
	var r *refusal
	if errors.As(err, &r) && !r.kind.Retryable() {
		return encodeRefusal(r, c.st.version)
	}
	if err != nil {
		return nil, err
	}
	version, err := c.finish()
	if err != nil {
		return nil, err
	}
	out := &wire.Result{Version: uint64(version), Leased: res.leased}
	if res.inode != nil {
		out.Attr = res.inode.wire()
	}
	return deterministic.Marshal(out)
}

// outcome is what an operation answers beside the version.
type outcome struct {
	inode  *inode // made or changed; its attributes as they are after the entry
	leased []*wire.InoRange
}

// operate dispatches a command to its operation. A refusal has changed nothing.
func (c *change) operate(cmd *wire.Command) (outcome, error) {
	switch op := cmd.Op.(type) {
	case *wire.Command_Create:
		return c.create(op.Create)
	case *wire.Command_Mkdir:
		return c.mkdir(op.Mkdir)
	case *wire.Command_Unlink:
		return c.unlink(op.Unlink)
	case *wire.Command_Rmdir:
		return c.rmdir(op.Rmdir)
	case *wire.Command_Rename:
		return c.rename(op.Rename)
	case *wire.Command_Link:
		return c.link(op.Link)
	case *wire.Command_SetAttr:
		return c.setAttr(op.SetAttr)
	case *wire.Command_Write:
		return c.write(op.Write)
	case *wire.Command_LeaseInos:
		return c.leaseInos(op.LeaseInos)
	case *wire.Command_SetPolicy:
		return c.setPolicy(op.SetPolicy)
	case *wire.Command_MkdirPrepare:
		return c.mkdirPrepare(op.MkdirPrepare)
	case *wire.Command_MkdirCommit:
		return c.mkdirCommit(op.MkdirCommit)
	case *wire.Command_RmdirFreeze:
		return c.rmdirFreeze(op.RmdirFreeze)
	case *wire.Command_RmdirCommit:
		return c.rmdirCommit(op.RmdirCommit)
	case *wire.Command_Resolve:
		return c.resolve(op.Resolve)
	}
	return outcome{}, refuse(dfs.Unsupported, "command of an unknown kind")
}

func checkCommand(cmd *wire.Command) error {
	switch {
	case cmd.GetSession() == 0 || dfs.SessionID(cmd.Session) > dfs.MaxSessionID:
		return refuse(dfs.Invalid, "there is no session %d", cmd.GetSession())
	case cmd.Seq == 0:
		return refuse(dfs.Invalid, "a command without a sequence number")
	case cmd.Floor > cmd.Seq:
		return refuse(dfs.Invalid, "command %d says that it has been answered: its floor is %d", cmd.Seq, cmd.Floor)
	}
	return nil
}
