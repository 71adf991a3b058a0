package namespace

import (
	"cmp"
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
	return m.once(c, cmd, func(running *wire.TxnRecord) ([]byte, bool, error) {
		if running != nil {
			return nil, false, refuse(dfs.Busy, "command %d is under way as a transaction", cmd.Seq)
		}
		return c.carryOut(cmd)
	})
}

// once does what a client asks for by a session and sequence number, unless that
// was done. It hands over the record of a transaction that is under way for it;
// do returns the reply and whether it is to be remembered.
func (m *Machine) once(c *change, cmd *wire.Command, do func(running *wire.TxnRecord) ([]byte, bool, error)) ([]byte, error) {
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
	var running *wire.TxnRecord
	if cmd.Seq <= row.last && !m.opts.ForgetReplies {
		reply, ok, err := c.tx.Get(key)
		if err != nil {
			return nil, err
		}
		if ok {
			return reply, nil
		}
		if c.st.txns > 0 {
			if running, err = readTxn(c.tx, c.session, cmd.Seq); err != nil {
				return nil, err
			}
		}
	}
	if cmd.Seq-row.floor >= MaxUnacknowledged {
		return nil, refuse(dfs.Busy, "command %d is %d or more above the acknowledged floor %d", cmd.Seq, MaxUnacknowledged, row.floor)
	}
	reply, remember, err := do(running)
	if err != nil {
		return nil, err
	}
	if cmd.Seq > row.last {
		row.last = cmd.Seq
		if err := c.writeFloor(row); err != nil {
			return nil, err
		}
	}
	if !remember {
		return reply, nil
	}
	return reply, c.tx.Set(key, reply)
}

// carryOut evaluates a command's operation and returns the reply to remember.
func (c *change) carryOut(cmd *wire.Command) ([]byte, bool, error) {
	res, err := c.operate(cmd)
	if err != nil {
		return c.refused(err)
	}
	reply, err := c.reply(res, nil)
	return reply, true, err
}

// refused returns the reply to remember of a refusal that is final.
func (c *change) refused(err error) ([]byte, bool, error) {
	var r *refusal
	if !errors.As(err, &r) || !c.final(r.kind) {
		return nil, false, err
	}
	reply, err := encodeRefusal(r, c.st.version)
	return reply, true, err
}

// final reports whether a refusal of a kind is remembered. What takes more groups
// than this one may succeed as a transaction under the same number.
func (c *change) final(kind dfs.Kind) bool {
	return !kind.Retryable() && kind != dfs.Fenced && (kind != dfs.CrossGroup || c.st.level < LevelTransactions)
}

// reply ends an entry and returns its answer.
func (c *change) reply(res outcome, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	version, err := c.finish()
	if err != nil {
		return nil, err
	}
	out := &wire.Result{Version: uint64(cmp.Or(res.version, version)), Leased: res.leased, Attr: res.attr, Txn: res.txn, Absorbed: res.absorbed}
	if res.inode != nil {
		out.Attr = res.inode.wire()
	}
	return deterministic.Marshal(out)
}

// outcome is what an operation answers beside the version.
type outcome struct {
	inode  *inode     // made or changed; its attributes as they are after the entry
	attr   *wire.Attr // of an inode that is not changed yet, or of another group
	leased []*wire.InoRange

	absorbed []uint64    // inodes of other groups
	txn      *wire.TxnID // that was begun
	version  dfs.Version // of the entry that did what is asked for again; 0: this one
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
