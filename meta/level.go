package meta

import (
	"context"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// levels remembers which feature level the release of each meta node knows: that
// changes with a new start only.
type levels struct {
	mu    sync.Mutex
	known map[dfs.NodeID]knownLevel
}

type knownLevel struct {
	start uint64 // of the process that said it
	level uint32
}

func newLevels() *levels { return &levels{known: map[dfs.NodeID]knownLevel{}} }

// newestLevel is the newest feature level that this node knows.
func (s *Service) newestLevel() uint32 {
	if s.opts.Hooks.OldRelease {
		return 0
	}
	return namespace.NewestLevel
}

// knownBy returns the newest feature level that all of some nodes know; those that do
// not answer know none.
func (s *Service) knownBy(ctx context.Context, m *dfs.Map, nodes []dfs.NodeID) uint32 {
	ctx, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	level := s.newestLevel()
	for _, id := range nodes {
		if id != s.opts.Identity.Membership().Node {
			level = min(level, s.levelOf(ctx, m.Node(id)))
		}
	}
	return level
}

func (s *Service) levelOf(ctx context.Context, n *dfs.Node) uint32 {
	if n == nil {
		return 0
	}
	s.levels.mu.Lock()
	k, ok := s.levels.known[n.ID]
	s.levels.mu.Unlock()
	if ok && k.start == n.Incarnation.Start {
		return k.level
	}
	reply, err := wire.NewDRPCMetaClient(s.opts.Dial(n.Addr)).Probe(ctx, &wire.ProbeRequest{Name: s.opts.Name})
	if err != nil || dfs.NodeID(reply.Node) != n.ID {
		return 0
	}
	s.levels.mu.Lock()
	defer s.levels.mu.Unlock()
	s.levels.known[n.ID] = knownLevel{n.Incarnation.Start, reply.Level}
	return reply.Level
}

// raiseLevel has a group do what all its members know by now. A node that is started
// anew is in a new map, which has the group looked at.
func (s *Service) raiseLevel(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (time.Time, error) {
	if s.level(h, g) >= s.newestLevel() {
		return time.Time{}, nil
	}
	m := s.maps.current()
	st, ok := h.Status(g)
	if row := m.Group(g); !ok || row == nil {
		return time.Time{}, nil
	} else if level := s.knownBy(ctx, m, slices.Concat(st.Voters, st.Learners, row.Replicas)); level > s.level(h, g) {
		res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: level}}})
		if err == nil {
			err = res.ToError("raise the feature level", g.String())
		}
		if err == nil {
			s.log.Info("feature level raised", "group", uint16(g), "level", level)
		}
		return time.Time{}, err
	}
	return time.Time{}, nil
}
