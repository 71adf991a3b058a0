package control

import (
	"encoding/binary"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// MaxSessions bounds the live sessions: the control leader keeps a renewal
// time for each in memory, and a fence, which is one log entry, names the live
// ones, in the worst case each in a range of 12 bytes.
const MaxSessions = 32_768

func (ev *entry) openSession(op *wire.OpenSessionRequest) (*wire.OpenSessionReply, error) {
	if op.Mark == 0 || len(op.Holder) > dfs.MaxName {
		return nil, dfs.Errorf(dfs.Invalid, "open session", "malformed request")
	}
	v, ok, err := ev.tx.Get(key64(tagSessionMark, op.Mark))
	if err != nil {
		return nil, err
	}
	if ok {
		id := binary.BigEndian.Uint64(v)
		row := &wire.SessionRow{}
		if _, err := get(ev.tx, key64(tagSession, id), row); err != nil {
			return nil, err
		}
		if row.Expiring { // it may be fenced already; once it is gone the mark gets another one
			return nil, dfs.Errorf(dfs.Unavailable, "open session", "session %d, which this request opened before, is about to end", id)
		}
		return &wire.OpenSessionReply{Session: id}, nil
	}
	if ev.st.LastSession >= uint64(dfs.MaxSessionID) {
		return nil, dfs.Errorf(dfs.NoSpace, "open session", "session numbers are used up")
	}
	ev.st.LastSession++
	id := ev.st.LastSession
	if err := put(ev.tx, key64(tagSession, id), &wire.SessionRow{Holder: op.Holder, Mark: op.Mark, Opened: ev.now}); err != nil {
		return nil, err
	}
	ev.sessions = true
	return &wire.OpenSessionReply{Session: id}, ev.tx.Set(key64(tagSessionMark, op.Mark), binary.BigEndian.AppendUint64(nil, id))
}

// endSession forgets a session; one that is not there has ended already. Its
// number is above no fence that is made from now on, so it stays fenced.
func (ev *entry) endSession(id dfs.SessionID) error {
	row := &wire.SessionRow{}
	ok, err := get(ev.tx, key64(tagSession, uint64(id)), row)
	if err != nil || !ok {
		return err
	}
	ev.sessions = true
	if err := ev.tx.Delete(key64(tagSessionMark, row.Mark)); err != nil {
		return err
	}
	return ev.tx.Delete(key64(tagSession, uint64(id)))
}

func (ev *entry) expire(ids []uint64) error {
	for _, id := range ids {
		row := &wire.SessionRow{}
		ok, err := get(ev.tx, key64(tagSession, id), row)
		if err != nil {
			return err
		}
		if !ok || row.Expiring {
			continue
		}
		row.Expiring = true
		ev.sessions = true
		if err := put(ev.tx, key64(tagSession, id), row); err != nil {
			return err
		}
	}
	return nil
}

// expired ends sessions that every namespace group has fenced.
func (ev *entry) expired(op *wire.ExpiredOp) error {
	for _, id := range op.Sessions {
		row := &wire.SessionRow{}
		ok, err := get(ev.tx, key64(tagSession, id), row)
		if err != nil {
			return err
		}
		if !ok || !row.Expiring {
			continue
		}
		if err := ev.endSession(dfs.SessionID(id)); err != nil {
			return err
		}
	}
	return nil
}
