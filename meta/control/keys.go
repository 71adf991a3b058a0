package control

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// Keys: one tag byte, then big-endian numbers. Values: protobuf.
const (
	tagState        = 'a' // wire.ControlState
	tagNode         = 'n' // + node ID: wire.NodeRow
	tagStore        = 's' // + store ID: wire.MapStore
	tagPG           = 'p' // + PG ID: wire.MapPG
	tagGroup        = 'g' // + group: wire.MapGroup
	tagSession      = 'v' // + session ID: wire.SessionRow
	tagSessionMark  = 'w' // + mark: session ID, 8 bytes
	tagIncarnations = 'i' // + incarnation mark of a node or store: kind byte, ID 4 bytes, barred starts 8 bytes each
)

var stateKey = []byte{tagState}

func key32(tag byte, n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{tag}, n) }
func key64(tag byte, n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{tag}, n) }

// get reads a row into msg and reports whether it exists.
func get(r raftgroup.Reader, key []byte, msg proto.Message) (bool, error) {
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return false, err
	}
	if err := proto.Unmarshal(v, msg); err != nil {
		return false, dfs.Wrap("read control row", fmt.Sprintf("%x", key), errors.Join(dfs.Corrupt, err))
	}
	return true, nil
}

var deterministic = proto.MarshalOptions{Deterministic: true}

func put(tx raftgroup.Tx, key []byte, msg proto.Message) error {
	v, err := deterministic.Marshal(msg)
	if err != nil {
		return err
	}
	return tx.Set(key, v)
}

// scan calls fn with each row under a tag.
func scan[T any, M interface {
	*T
	proto.Message
}](r raftgroup.Reader, tag byte, fn func(key []byte, msg M) error) error {
	return r.Scan([]byte{tag}, []byte{tag + 1}, func(key, value []byte) (bool, error) {
		msg := M(new(T))
		if err := proto.Unmarshal(value, msg); err != nil {
			return false, dfs.Wrap("read control row", fmt.Sprintf("%x", key), errors.Join(dfs.Corrupt, err))
		}
		return true, fn(key, msg)
	})
}

// ReadState returns the counters and settings; nil before the cluster is formed.
func ReadState(r raftgroup.Reader) (*wire.ControlState, error) {
	st := &wire.ControlState{}
	ok, err := get(r, stateKey, st)
	if err != nil || !ok {
		return nil, err
	}
	return st, nil
}

// ReadMap assembles the cluster map; nil before the cluster is formed.
func ReadMap(r raftgroup.Reader) (*dfs.Map, error) {
	st, err := ReadState(r)
	if err != nil || st == nil {
		return nil, err
	}
	return readMap(r, st)
}

func readMap(r raftgroup.Reader, st *wire.ControlState) (*dfs.Map, error) {
	c := &wire.ClusterMap{
		Cluster: st.Form.Cluster, Epoch: st.Epoch, DefaultClass: st.Form.DefaultClass, BlockSize: st.Form.BlockSize,
		Settings: st.Settings,
	}
	err := scan(r, tagGroup, func(_ []byte, g *wire.MapGroup) error {
		c.Groups = append(c.Groups, g)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = scan(r, tagNode, func(_ []byte, n *wire.NodeRow) error {
		c.Nodes = append(c.Nodes, n.Node)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = scan(r, tagStore, func(_ []byte, s *wire.MapStore) error {
		c.Stores = append(c.Stores, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = scan(r, tagPG, func(_ []byte, p *wire.MapPG) error {
		c.Pgs = append(c.Pgs, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.ToDFS()
}

// ReadGroup returns a Raft group, nil when there is none.
func ReadGroup(r raftgroup.Reader, g dfs.GroupID) (*dfs.Group, error) {
	row := &wire.MapGroup{}
	ok, err := get(r, key32(tagGroup, uint32(g)), row)
	if err != nil || !ok {
		return nil, err
	}
	return row.ToDFS()
}

// ReadNamespace lists the namespace groups that are ready, ascending.
func ReadNamespace(r raftgroup.Reader) ([]dfs.GroupID, error) {
	var out []dfs.GroupID
	err := scan(r, tagGroup, func(_ []byte, g *wire.MapGroup) error {
		if g.Id != 0 && g.Founder == 0 {
			out = append(out, dfs.GroupID(g.Id))
		}
		return nil
	})
	return out, err
}

// Sessions is what the control group knows of sessions.
type Sessions struct {
	Highest  dfs.SessionID   // highest ever issued
	Live     []dfs.SessionID // in order
	Expiring []dfs.SessionID // in order
	Index    uint64          // version of this answer: grows with every change of a session
}

// ReadSessions lists the sessions.
func ReadSessions(r raftgroup.Reader) (Sessions, error) {
	st, err := ReadState(r)
	if err != nil || st == nil {
		return Sessions{}, err
	}
	out := Sessions{Highest: dfs.SessionID(st.LastSession), Index: st.SessionIndex}
	err = scan(r, tagSession, func(key []byte, s *wire.SessionRow) error {
		id := dfs.SessionID(binary.BigEndian.Uint64(key[1:]))
		if s.Expiring {
			out.Expiring = append(out.Expiring, id)
		} else {
			out.Live = append(out.Live, id)
		}
		return nil
	})
	return out, err
}

// SessionLive reports whether a session is open and not expiring.
func SessionLive(r raftgroup.Reader, id dfs.SessionID) (bool, error) {
	row := &wire.SessionRow{}
	ok, err := get(r, key64(tagSession, uint64(id)), row)
	return ok && !row.Expiring, err
}
