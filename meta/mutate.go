package meta

import (
	"context"
	"math"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// MaxCommand bounds an encoded command: a thousand extents and a long path fit
// several times over.
const MaxCommand = 512 << 10

// namespaceLeader refuses with a hint unless this node leads the group.
func (s *Service) namespaceLeader(group uint32) (dfs.GroupID, *raftgroup.Host, error) {
	h, err := s.raft()
	if err != nil {
		return 0, nil, err
	}
	g, err := s.namespaceGroup(h, group)
	if err != nil {
		return 0, nil, err
	}
	if o, _ := h.Leader(g); o.Leader != s.opts.Identity.Membership().Node {
		return 0, nil, &dfs.Error{Kind: dfs.NotLeader, Op: "ask group", Object: g.String(), LeaderHint: o.Leader}
	}
	return g, h, nil
}

// namespaceGroup refuses numbers that no namespace group has, and those of which
// there is no replica here, with a hint when this node is to have none.
func (s *Service) namespaceGroup(h *raftgroup.Host, group uint32) (dfs.GroupID, error) {
	g := dfs.GroupID(group)
	m := s.maps.current()
	switch row := (*dfs.Group)(nil); {
	case group == 0 || group > math.MaxUint16:
		return 0, dfs.Errorf(dfs.Invalid, "ask group", "there is no namespace group %d", group)
	case m == nil:
		return 0, dfs.Errorf(dfs.Unavailable, "ask group", "this node has no map yet")
	default:
		if row = m.Group(g); row == nil {
			if len(m.Groups) > 0 && g < m.Groups[len(m.Groups)-1].ID {
				return 0, dfs.Errorf(dfs.Invalid, "ask group", "there is no namespace group %d", group)
			}
			return 0, dfs.Errorf(dfs.Unavailable, "ask group", "this node knows no namespace group %d", group)
		}
		if _, ok := h.Leader(g); !ok && !row.Has(s.opts.Identity.Membership().Node) {
			return 0, &dfs.Error{Kind: dfs.NotLeader, Op: "ask group", Object: g.String(), LeaderHint: s.leaderOf(h, g)}
		}
	}
	return g, opened(h, g)
}

// opened refuses while this node, which has just started or joined, has no
// replica of the group: raftgroup's NotExist would read as that of a file.
func opened(h *raftgroup.Host, g dfs.GroupID) error {
	if _, ok := h.Leader(g); !ok {
		return dfs.Errorf(dfs.Unavailable, "ask group", "this node has not opened its replica of %v yet", g)
	}
	return nil
}

// Mutate implements the meta service.
func (s *Service) Mutate(ctx context.Context, req *wire.MutateRequest) (*wire.MutateReply, error) {
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	if !s.mutable() {
		return nil, s.notFormed()
	}
	cmd, err := s.command(ctx, h, g, req.Command)
	if err != nil {
		return nil, err
	}
	out, err := s.carryOut(ctx, h, g, cmd)
	if err != nil {
		return nil, err
	}
	s.rates.add(g, 1)
	return &wire.MutateReply{Result: out}, nil
}

// command reads and checks a command of a client.
func (s *Service) command(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, data []byte) (*wire.Command, error) {
	if len(data) > MaxCommand {
		return nil, dfs.Errorf(dfs.TooLarge, "change", "a command of %d bytes: at most %d", len(data), MaxCommand)
	}
	cmd := &wire.Command{}
	if err := proto.Unmarshal(data, cmd); err != nil {
		return nil, dfs.Errorf(dfs.Invalid, "change", "malformed command")
	}
	if err := s.checkIssued(ctx, h, dfs.SessionID(cmd.Session)); err != nil {
		return nil, err
	}
	if err := s.admit(ctx, h, g, cmd); err != nil {
		return nil, err
	}
	return cmd, nil
}

// mutable reports whether mutations are admitted: this replica, or the control
// leader, knows that the cluster is formed.
func (s *Service) mutable() bool {
	if s.maps.isFormed() {
		return true
	}
	s.beats.mu.Lock()
	defer s.beats.mu.Unlock()
	return s.beats.formed
}

func (s *Service) proposeEntry(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) {
	le.Version = s.clockVersion()
	data, err := proto.Marshal(le)
	if err != nil {
		return nil, err
	}
	reply, err := h.Propose(ctx, g, data)
	return toResult(g, reply, err)
}

// toResult reads what a group answered to an entry.
func toResult(g dfs.GroupID, reply []byte, err error) (*wire.Result, error) {
	if err != nil {
		return nil, dfs.Wrap("change", g.String(), err)
	}
	out := &wire.Result{}
	if err := proto.Unmarshal(reply, out); err != nil {
		return nil, dfs.Errorf(dfs.Internal, "change", "the answer of %v is malformed", g)
	}
	return out, nil
}

// Fence implements the meta service.
func (s *Service) Fence(ctx context.Context, req *wire.FenceRequest) (*wire.FenceReply, error) {
	if err := metaOnly(ctx, s.maps.current()); err != nil {
		return nil, err
	}
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Fence{Fence: req.Fence}})
	if err != nil {
		return nil, err
	}
	return &wire.FenceReply{}, res.ToError("fence", g.String())
}

// readable refuses unless this node has a replica of the group.
func (s *Service) readable(group uint32) (dfs.GroupID, *raftgroup.Host, error) {
	h, err := s.raft()
	if err != nil {
		return 0, nil, err
	}
	g, err := s.namespaceGroup(h, group)
	return g, h, err
}

// Read implements the meta service: a linearizable query of a group.
func (s *Service) Read(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error) {
	g, h, err := s.readable(req.Group)
	if err != nil {
		return nil, err
	}
	if req.Query == nil {
		return nil, dfs.Errorf(dfs.Invalid, "read", "there is no query")
	}
	place := req.Query.GetPlaceDir()
	if place != nil { // counts what it placed, so one node answers
		if g, h, err = s.namespaceLeader(req.Group); err != nil {
			return nil, err
		}
	}
	var out *wire.QueryResult
	read := func() error {
		return h.Read(ctx, g, func(r raftgroup.Reader) (err error) {
			out, err = namespace.Query(r, g, req.Query)
			return err
		})
	}
	if req.Now {
		err = read()
	} else {
		err = s.waitOut(ctx, h, g, read)
	}
	if err != nil {
		return nil, dfs.Wrap("read", g.String(), err)
	}
	if place != nil {
		pd := out.GetPlaceDir()
		pd.Group = uint32(s.place.choose(g, int(pd.Parent.GetLevel()), s.maps.current().Namespace(), place))
	}
	return &wire.ReadReply{Result: out}, nil
}

// countGroup is what the rows of a namespace group say of it, for a report: nothing
// where they cannot be read.
func (s *Service) countGroup(h *raftgroup.Host, g dfs.GroupID) *wire.GroupBeat {
	b := &wire.GroupBeat{}
	_ = h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		if b.Inodes, err = namespace.Inodes(r); err != nil {
			return err
		}
		if b.Level, err = namespace.Level(r); err != nil {
			return err
		}
		b.Transactions, b.Shares, err = namespace.Underway(r)
		return err
	})
	return b
}

// takeRows takes over what the rows of a group say.
func takeRows(gb, rows *wire.GroupBeat) {
	gb.Inodes, gb.Transactions, gb.Shares, gb.Level = rows.Inodes, rows.Transactions, rows.Shares, rows.Level
}
