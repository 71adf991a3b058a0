package meta

import (
	"context"
	"fmt"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// levelText says why a group takes no part in operations over several groups yet.
func levelText(g dfs.GroupID) string {
	return fmt.Sprintf("operations over several groups wait until every meta node of %v runs a release that knows them", g)
}

// carryOut carries a command out in a group that this node leads, and with the help of
// others where it takes more than one.
func (s *Service) carryOut(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, cmd *wire.Command) (*wire.Result, error) {
	key := keyOf(g, cmd)
	for d := s.txns.find(key); d != nil; d = nil {
		if res, err := d.await(ctx); res != nil || err != nil {
			return res, err
		}
	}
	place, crosses, err := s.crosses(h, g, cmd)
	if err != nil {
		return nil, err
	}
	w := s.txns.wait(h, g)
	defer w.done()
	for !crosses {
		res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}})
		if err != nil {
			return nil, err
		}
		switch kind := dfs.Kind(res.Kind); {
		case kind == dfs.CrossGroup && s.level(h, g) < namespace.LevelTransactions:
			return nil, dfs.Errorf(dfs.Unavailable, "change", "%s", levelText(g))
		case kind == dfs.CrossGroup && namespace.Coordinator(cmd) == g, kind == dfs.Busy && s.underway(h, key):
			crosses = true
		case res.Locked == nil || !w.over(ctx, res.Locked):
			return res, nil
		}
	}
	d := newDrive(s, h, key)
	d.cmd, d.place = cmd, place
	if d, err = s.txns.start(d, d.run); err != nil {
		return nil, err
	}
	res, err := d.await(ctx)
	if res == nil && err == nil { // it was carried out under another leader
		return s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}})
	}
	return res, err
}

func keyOf(g dfs.GroupID, cmd *wire.Command) txnKey {
	return txnKey{g, dfs.SessionID(cmd.Session), cmd.Seq}
}

// mayCross reports whether a command is one for carryOut to look at: it may take more
// than its own group.
func (s *Service) mayCross(h *raftgroup.Host, g dfs.GroupID, cmd *wire.Command) bool {
	if cmd.GetMkdir() != nil || s.txns.find(keyOf(g, cmd)) != nil {
		return true
	}
	_, crosses, err := s.crosses(h, g, cmd)
	return crosses || err != nil
}

// underway reports whether a transaction of a command is under way.
func (s *Service) underway(h *raftgroup.Host, key txnKey) bool {
	txn, err := (&drive{h: h, g: key.group, key: key}).find()
	return err == nil && txn != nil
}

// level is the feature level of a group as applied here.
func (s *Service) level(h *raftgroup.Host, g dfs.GroupID) (level uint32) {
	_ = h.ReadLocal(g, func(r raftgroup.Reader) (err error) { // 0 is what is not known
		level, err = namespace.Level(r)
		return err
	})
	return level
}

// crosses guesses, by what is applied here, whether a command takes more than its own
// group, so that this is not found out by an entry; and it chooses the group of a new
// directory. Error: Unavailable, when the group is of a level that knows of no such thing.
func (s *Service) crosses(h *raftgroup.Host, g dfs.GroupID, cmd *wire.Command) (place dfs.GroupID, crosses bool, err error) {
	if namespace.Coordinator(cmd) != g {
		return g, false, nil
	}
	var level uint32
	place = g
	err = h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		if level, err = namespace.Level(r); err != nil {
			return err
		}
		look := func(parent uint64, name []byte) (namespace.Entry, bool) {
			if dfs.Ino(parent).Group() != g {
				return namespace.Entry{}, true
			}
			res, err := namespace.Query(r, g, &wire.Query{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: parent, Name: name}}})
			e := namespace.Entry{Ino: dfs.Ino(res.GetEntry().GetIno()), Type: res.GetEntry().GetType()}
			return e, err == nil && e.Ino != 0 && e.Ino.Group() != g
		}
		switch op := cmd.Op.(type) {
		case *wire.Command_Mkdir:
			if level >= namespace.LevelTransactions {
				place = s.placeDir(r, g, op.Mkdir)
				crosses = place != g
			}
		case *wire.Command_Rmdir:
			_, crosses = look(op.Rmdir.Parent, op.Rmdir.Name)
		case *wire.Command_Create:
			if op.Create.Replace {
				_, crosses = look(op.Create.Parent, op.Create.Name)
			}
		case *wire.Command_Unlink:
			_, crosses = look(op.Unlink.Parent, op.Unlink.Name)
		case *wire.Command_Link:
			crosses = dfs.Ino(op.Link.Ino).Group() != g
		case *wire.Command_Rename:
			e, away := look(op.Rename.Parent, op.Rename.Name)
			_, over := look(op.Rename.NewParent, op.Rename.NewName)
			moves := e.Type == wire.FileType_DIR && op.Rename.Parent != op.Rename.NewParent && g != dfs.RootIno.Group()
			crosses = away || over || moves
		}
		return nil
	})
	if err == nil && crosses && level < namespace.LevelTransactions {
		err = dfs.Errorf(dfs.Unavailable, "change", "%s", levelText(g))
	}
	return place, crosses, err
}

// placeDir chooses the group of a new directory: the parent's for a parent that is
// not there.
func (s *Service) placeDir(r raftgroup.Reader, g dfs.GroupID, op *wire.MkdirOp) dfs.GroupID {
	q := &wire.PlaceDirQuery{Parent: op.Parent, Name: op.Name}
	res, err := namespace.Query(r, g, &wire.Query{Query: &wire.Query_PlaceDir{PlaceDir: q}})
	m := s.maps.current()
	if err != nil || m == nil {
		return g
	}
	return s.place.choose(g, int(res.GetPlaceDir().GetParent().GetLevel()), m.Namespace(), q)
}
