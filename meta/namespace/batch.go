package namespace

import (
	"errors"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// MaxBatch is how many commands a batch may hold: it bounds an entry's work, and
// what those of others wait for it. Like the limits of one command it changes only
// behind a feature level.
const MaxBatch = 128

// batch carries out commands of one session in order, each as if it had an entry
// of its own: with a version, a floor and a remembered answer that are its alone.
// So any part of a batch may be sent again, in another batch or by itself.
//
//	done, now or before ─────────▶ the next one
//	refused for good (Exist, …) ─▶ the next one; with STOP the end
//	refused for now (Busy, …) ───▶ the end, since nothing may overtake what will
//	                               be sent again; with APART the next one
//	MaxCut extents were cut ─────▶ the end: the rest is for another entry
//
// The reply has an answer for each command up to the end. Those behind it were
// not carried out, and leave no trace.
func (m *Machine) batch(tx raftgroup.Tx, proposed dfs.Version, op *wire.BatchOp) ([]byte, error) {
	if err := checkBatch(op); err != nil {
		return nil, err
	}
	out := &wire.Result{}
	for room := MaxCut; room > 0 && len(out.Members) < len(op.Commands); {
		st, err := readState(tx) // anew: a command that was refused may have taken numbers in it
		if err != nil {
			return nil, err
		}
		c := newChange(tx, st, proposed)
		reply, err := m.command(c, op.Commands[len(out.Members)])
		var r *refusal
		now := errors.As(err, &r)
		if now {
			reply, err = encodeRefusal(r, 0)
		}
		if err != nil {
			return nil, err
		}
		out.Members = append(out.Members, reply)
		room -= c.cuts
		if end, err := ends(op.Refusals, now, reply); err != nil {
			return nil, err
		} else if end {
			break
		}
	}
	return deterministic.Marshal(out)
}

// ends reports whether an answer ends a batch; now says that it is a refusal that
// is not remembered.
func ends(after wire.BatchOp_Refusals, now bool, reply []byte) (bool, error) {
	switch after {
	case wire.BatchOp_APART:
		return false, nil
	case wire.BatchOp_STOP:
		return isRefusal(reply)
	}
	return now, nil
}

// isRefusal reports whether a reply says that the command was not carried out.
func isRefusal(reply []byte) (bool, error) {
	res := &wire.Result{}
	if err := proto.Unmarshal(reply, res); err != nil {
		return false, broken("a remembered answer is malformed: %v", err)
	}
	return res.ToError("", "") != nil, nil
}

func checkBatch(op *wire.BatchOp) error {
	if n := len(op.GetCommands()); n == 0 || n > MaxBatch {
		return refuse(dfs.Invalid, "a batch of %d commands: want 1 to %d", n, MaxBatch)
	}
	if _, ok := wire.BatchOp_Refusals_name[int32(op.Refusals)]; !ok {
		return refuse(dfs.Unsupported, "a batch of an unknown kind")
	}
	for _, cmd := range op.Commands[1:] {
		if cmd.Session != op.Commands[0].Session {
			return refuse(dfs.Invalid, "a batch of sessions %d and %d: want one", op.Commands[0].Session, cmd.Session)
		}
	}
	return nil
}
