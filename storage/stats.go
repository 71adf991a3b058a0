package storage

import (
	"dfsd/dfs"
)

// Stats is what a Service has done since its start and is about to do.
type Stats struct {
	MapEpoch dfs.Epoch // of the newest map that is known
	Stores   []StoreStats

	Puts, Gets, Deletes, Scans uint64 // answered; of puts and deletes: with success
	Busy                       uint64 // requests refused for want of memory
	Corrupt                    uint64 // reads that found a damaged block
	Repaired                   uint64 // of these, replaced by a good copy
	Pulled, PulledBytes        uint64 // blocks that refills and repairs brought
	Garbage                    uint64 // blocks that went to the trash
	Emptied                    uint64 // of these, deleted
	Rescued                    uint64 // of these, read by somebody and taken out again: there should be none
	Doubted                    uint64 // blocks of a member that came back, about which the owners are asked anew
	Forgotten                  uint64 // blocks of placement groups that their store has left
}

// StoreStats is the part of one store.
type StoreStats struct {
	Store     dfs.StoreID
	Persisted dfs.Epoch // newest map epoch on its disk
	Refills   []RefillStats
}

// RefillStats is the progress of one placement group's refill.
type RefillStats struct {
	PG         dfs.PGID
	Done, Left uint64 // bytes; Left as far as they are known
}

// Stats returns the counters, for metrics.
func (s *Service) Stats() Stats {
	c := &s.count
	out := Stats{
		MapEpoch: s.maps.epoch(),
		Puts:     c.puts.Load(), Gets: c.gets.Load(), Deletes: c.deletes.Load(), Scans: c.scans.Load(),
		Busy: c.busy.Load(), Corrupt: c.corrupt.Load(), Repaired: c.repaired.Load(),
		Pulled: c.pulled.Load(), PulledBytes: c.pulledBytes.Load(),
		Garbage: c.garbage.Load(), Emptied: c.emptied.Load(), Rescued: c.rescued.Load(), Doubted: c.doubted.Load(), Forgotten: c.forgotten.Load(),
	}
	for _, st := range s.stores {
		x := StoreStats{Store: st.ID(), Persisted: st.MapEpoch()}
		for _, b := range s.refill.progressOf(st) {
			x.Refills = append(x.Refills, RefillStats{PG: dfs.PGID(b.Pg), Done: b.Done, Left: b.Left})
		}
		out.Stores = append(out.Stores, x)
	}
	return out
}

// Map returns the newest cluster map that is known, nil before the first.
func (s *Service) Map() *dfs.Map {
	m, _ := s.maps.current.get()
	return m
}
