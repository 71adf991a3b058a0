package engine

import "dfsd/dfs"

// PGEpoch is the newest epoch that a map, proposals included, has for a PG.
type PGEpoch struct {
	PG     dfs.PGID
	Newest dfs.Epoch
}

// SetEpochs persists a map epoch and fences the PGs by it. When it returns,
// no append admitted under an epoch below a PG's newest is unfinished, no
// other will be admitted, and the map epoch is on the disk. PGs that were
// never named take no client's writes. Stale: the store has persisted a later
// map.
func (s *Store) SetEpochs(mapEpoch dfs.Epoch, pgs []PGEpoch) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	for _, p := range pgs {
		if p.PG == 0 || p.Newest > mapEpoch {
			return dfs.Errorf(dfs.Invalid, "persist epoch", "%s has epoch %d in map %d", p.PG, p.Newest, mapEpoch)
		}
	}
	// A channel and not a mutex: the holder waits for the writer.
	s.epochTurn <- struct{}{}
	defer func() { <-s.epochTurn }()
	if err := s.failure(); err != nil {
		return err
	}
	if have := s.MapEpoch(); mapEpoch < have {
		return dfs.Errorf(dfs.Stale, "persist epoch", "map %d: this store has persisted %d", mapEpoch, have)
	}
	var older []*op
	for _, p := range pgs {
		older = append(older, s.pg(p.PG, true).raise(p.Newest)...)
	}
	for _, o := range older {
		<-o.done // durable or failed: either way it is over
	}
	if mapEpoch == s.MapEpoch() {
		return s.failure()
	}
	r := epochRecord{epoch: mapEpoch, seq: s.durableSeq.Load()}
	if err := s.files.epoch.both(r.encode()); err != nil {
		s.fail(err)
		return s.failure()
	}
	s.mapEpoch.Store(uint64(mapEpoch))
	return nil
}

// MapEpoch is the newest map epoch that is on the disk.
func (s *Store) MapEpoch() dfs.Epoch { return dfs.Epoch(s.mapEpoch.Load()) }
