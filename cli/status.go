package cli

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// The values of a cluster's health.
const (
	healthOK          = "ok"          // reads and writes, and every copy is where it should be
	healthDegraded    = "degraded"    // reads and writes, and copies or replicas of groups are missing or on the move
	healthUnavailable = "unavailable" // reads or writes are not taken
)

// status is what dfsd status says; with --json as it is.
type status struct {
	Version    int              `json:"version"`
	Cluster    clusterStatus    `json:"cluster"`
	Nodes      []nodeStatus     `json:"nodes"`
	Stores     []storeStatus    `json:"stores"`
	Groups     []groupStatus    `json:"groups"`
	Redundancy redundancyStatus `json:"redundancy"`
	Repair     repairStatus     `json:"repair"`

	m *dfs.Map
}

type clusterStatus struct {
	ID           string   `json:"id"`
	MapEpoch     uint64   `json:"map_epoch"`
	Health       string   `json:"health"`
	Problems     []string `json:"problems"`  // why reads or writes are not taken
	Recovered    uint64   `json:"recovered"` // when groups were recovered after a loss that nobody has acknowledged, milliseconds since 1970; 0: they were not
	DefaultClass string   `json:"default_class"`
	BlockSize    int      `json:"block_size"`
	Capacity     uint64   `json:"capacity"` // bytes of the disks of stores that are up, each disk of a machine once
	Used         uint64   `json:"used"`     // bytes of blocks on them, copies included
	Shared       bool     `json:"shared_disks"`
	Sessions     uint64   `json:"sessions"`
	Trash        uint64   `json:"trash"` // bytes of blocks that no file names; part of Used
}

type nodeStatus struct {
	ID      uint32            `json:"id"`
	Name    string            `json:"name"`
	Addr    string            `json:"addr"`
	Roles   []string          `json:"roles"`
	State   string            `json:"state"` // up, down, partly where its roles and stores differ; joining: of a cluster that forms, not heard of yet
	Release string            `json:"release"`
	Labels  map[string]string `json:"labels"`
	Stores  []uint32          `json:"stores"`
	Disk    *diskStatus       `json:"disk"` // of a meta node's metadata; null: not known
}

// diskStatus is the disk of a meta node's metadata.
type diskStatus struct {
	Full     bool   `json:"full"`     // to its reserve: only what frees space is taken
	Free     uint64 `json:"free"`     // bytes
	Capacity uint64 `json:"capacity"` // bytes
	Reserve  uint64 `json:"reserve"`  // bytes
	Dir      string `json:"dir"`      // on the node
}

type storeStatus struct {
	ID        uint32    `json:"id"`
	Node      string    `json:"node"`
	State     string    `json:"state"` // up, down, out
	Since     time.Time `json:"since"`
	Suspect   bool      `json:"suspect"`     // a meta node suspects it
	Current   bool      `json:"current"`     // it has reported under the current map epoch
	BeatAge   int64     `json:"beat_age_ms"` // since its last report; -1: none yet
	Condition string    `json:"condition"`   // ok, read-only, failed
	Disk      uint32    `json:"disk"`        // the first store of the machine that is on the same disk; 0: not known
	Capacity  uint64    `json:"capacity"`    // bytes of the disk
	Used      uint64    `json:"used"`        // bytes of blocks
	Allocated uint64    `json:"allocated"`   // bytes of segment files, whatever is in them
	Blocks    uint64    `json:"blocks"`
	PGs       int       `json:"pgs"`       // placement groups that it acts for
	Undecided uint64    `json:"undecided"` // blocks of which it is not known yet whether a file names them
	TrashN    uint64    `json:"trash_blocks"`
	Trash     uint64    `json:"trash"` // bytes of blocks that no file names; part of Used
}

type redundancyStatus struct {
	PGs           uint32 `json:"pgs"`
	FullPGs       uint32 `json:"full_pgs"`
	Degraded      uint32 `json:"degraded"`
	BelowMinimum  uint32 `json:"below_minimum"`
	Stalled       uint32 `json:"stalled"`
	BytesToRepair uint64 `json:"bytes_to_repair"`
	Full          bool   `json:"full"`
}

type repairStatus struct {
	Active    bool         `json:"active"`
	Why       []string     `json:"why"` // not everything is where it should be, or is not to be
	Refills   []refillJSON `json:"refills"`
	BytesDone uint64       `json:"bytes_done"`
	BytesLeft uint64       `json:"bytes_left"`
	Rate      *float64     `json:"bytes_per_second"` // null: not known from one look
	ETA       *float64     `json:"eta_seconds"`      // null: not known
}

type refillJSON struct {
	Store uint32 `json:"store"`
	Node  string `json:"node"`
	PGs   int    `json:"pgs"`
	Done  uint64 `json:"bytes_done"`
	Left  uint64 `json:"bytes_left"`
}

// toStatus puts an answer of the control leader in words.
func toStatus(r *wire.StatusReply, now time.Time) (*status, error) {
	m, err := r.GetMap().ToDFS()
	if err != nil {
		return nil, err
	}
	s := &status{Version: jsonVersion, m: m}
	s.Cluster = clusterStatus{
		ID: m.Cluster.String(), MapEpoch: uint64(m.Epoch), DefaultClass: m.DefaultClass.String(), BlockSize: m.BlockSize,
		Problems: append([]string{}, r.GetProblems()...), Sessions: r.GetSessions(), Recovered: r.GetRecovered(),
	}
	s.addStores(r)
	s.addNodes(r)
	s.addGroups(r)
	red := r.GetRedundancy()
	s.Redundancy = redundancyStatus{
		PGs: red.GetPgs(), FullPGs: red.GetFull(), Degraded: red.GetDegraded(), BelowMinimum: red.GetBelowMinimum(), Stalled: red.GetStalled(),
		BytesToRepair: red.GetBytesToRepair(), Full: red.GetAllFull(),
	}
	s.addRepair(r, now)
	switch {
	case len(s.Cluster.Problems) > 0:
		s.Cluster.Health = healthUnavailable
	case !s.Redundancy.Full, s.shortGroups() > 0, s.thinGroups(r) > 0, s.Cluster.Recovered > 0:
		s.Cluster.Health = healthDegraded
	default:
		s.Cluster.Health = healthOK
	}
	return s, nil
}

// nodeName is a node's name for people, also of one that the map lost.
func (s *status) nodeName(id dfs.NodeID) string {
	if n := s.m.Node(id); n != nil {
		return n.Name
	}
	return id.String()
}

func (s *status) addStores(r *wire.StatusReply) {
	acts := map[dfs.StoreID]int{}
	for _, pg := range s.m.PGs {
		for _, id := range pg.Active.Stores {
			acts[id]++
		}
	}
	beats := map[uint32]*wire.StoreStatus{}
	for _, b := range r.GetStores() {
		beats[b.GetBeat().GetStore()] = b
	}
	type diskOf struct{ host, device string }
	disks := map[diskOf]struct {
		id      uint32 // of the first store on it
		counted bool
	}{}
	s.Stores = []storeStatus{}
	for _, st := range s.m.Stores {
		b := beats[uint32(st.ID)]
		out := storeStatus{
			ID: uint32(st.ID), Node: s.nodeName(st.Node), State: st.State.String(), Since: time.UnixMilli(st.StateSince).UTC(),
			Suspect: b.GetSuspect(), Current: b.GetCurrent(), BeatAge: -1, Capacity: st.Capacity, PGs: acts[st.ID],
			Used: b.GetBeat().GetLive(), Allocated: b.GetBeat().GetUsed(), Blocks: b.GetBeat().GetBlocks(),
			Undecided: b.GetBeat().GetUndecided(), TrashN: b.GetBeat().GetTrash(), Trash: b.GetBeat().GetTrashBytes(),
		}
		out.Condition = condition(b.GetBeat().GetState())
		if b != nil {
			out.BeatAge = b.GetBeatAge()
			out.Capacity = cmp.Or(b.GetBeat().GetCapacity(), out.Capacity)
		}
		if st.State == dfs.StoreUp {
			s.Cluster.Used += out.Used
			s.Cluster.Trash += out.Trash
			s.Cluster.Capacity += out.Capacity
		}
		if device := b.GetBeat().GetDevice(); device != "" {
			disk := diskOf{s.hostOf(st.Node), device}
			first, ok := disks[disk]
			if !ok {
				first.id = out.ID
			}
			if st.State == dfs.StoreUp && first.counted {
				s.Cluster.Capacity -= out.Capacity
				s.Cluster.Shared = true
			}
			first.counted = first.counted || st.State == dfs.StoreUp
			disks[disk], out.Disk = first, first.id
		}
		s.Stores = append(s.Stores, out)
	}
}

// hostOf is where a node is reached: nodes of one host are on one machine.
func (s *status) hostOf(id dfs.NodeID) string {
	n := s.m.Node(id)
	if n == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(n.Addr)
	if err != nil {
		return n.Addr
	}
	return host
}

// condition names what a store says of itself.
func condition(state uint32) string {
	switch state {
	case 0:
		return "ok"
	case 1:
		return "read-only"
	}
	return "failed"
}

func (s *status) addNodes(r *wire.StatusReply) {
	disks := map[uint32]*diskStatus{}
	for _, d := range r.GetDisks() {
		disks[d.GetNode()] = &diskStatus{Full: d.GetFull(), Free: d.GetFree(), Capacity: d.GetCapacity(), Reserve: d.GetReserve(), Dir: d.GetDir()}
	}
	s.Nodes = []nodeStatus{}
	for _, n := range s.m.Nodes {
		if n.Replaced {
			continue
		}
		out := nodeStatus{
			ID: uint32(n.ID), Name: n.Name, Addr: n.Addr, Roles: strings.Split(n.Roles.String(), ","), Release: n.Release,
			Labels: n.Labels, Stores: []uint32{}, Disk: disks[uint32(n.ID)],
		}
		if out.Labels == nil {
			out.Labels = map[string]string{}
		}
		up, down := 0, 0
		count := func(is bool) {
			if is {
				up++
			} else {
				down++
			}
		}
		joining := false
		if n.Roles.Has(dfs.RoleMeta) {
			heard := slices.Contains(r.GetMetaUp(), uint32(n.ID))
			joining = !heard && !r.GetFormed()
			count(heard)
		}
		for _, st := range s.m.Stores {
			if st.Node == n.ID {
				out.Stores = append(out.Stores, uint32(st.ID))
				count(st.State == dfs.StoreUp)
			}
		}
		switch {
		case joining:
			out.State = "joining"
		case down == 0:
			out.State = "up"
		case up == 0:
			out.State = "down"
		default:
			out.State = "partly"
		}
		s.Nodes = append(s.Nodes, out)
	}
}

// addRepair says what is being repaired, and why.
func (s *status) addRepair(r *wire.StatusReply, now time.Time) {
	rep := repairStatus{Why: []string{}, Refills: []refillJSON{}}
	for _, b := range r.GetStores() {
		if len(b.GetBeat().GetRefills()) == 0 {
			continue
		}
		st := s.m.Store(dfs.StoreID(b.GetBeat().GetStore()))
		if st == nil {
			continue
		}
		f := refillJSON{Store: uint32(st.ID), Node: s.nodeName(st.Node)}
		for _, p := range b.GetBeat().GetRefills() {
			f.PGs++
			f.Done += p.GetDone()
			f.Left += p.GetLeft()
		}
		rep.BytesDone += f.Done
		rep.BytesLeft += f.Left
		rep.Refills = append(rep.Refills, f)
	}
	rep.Active = len(rep.Refills) > 0
	s.Repair = rep
	why := []string{} // not null in JSON
	if g := r.GetRecovered(); g > 0 {
		why = append(why, recoveredText(g))
	}
	if n := s.thinGroups(r); n > 0 {
		why = append(why, fmt.Sprintf("%s with fewer than the %d replicas that this cluster keeps: start meta nodes, which take the places by themselves", plural(n, "group"), r.GetWidth()))
	}
	s.Repair.Why = append(append(append(why, s.reasons(now)...), s.replicaReasons(r)...), r.GetNotes()...)
}

// reasons says why not everything is where it should be.
func (s *status) reasons(now time.Time) []string {
	out := []string{}
	failed := map[uint32]bool{}
	for _, st := range s.Stores {
		failed[st.ID] = st.Condition == "failed"
	}
	for _, st := range s.m.Stores {
		lacks, wants := 0, 0 // placement groups that should have, and that are getting, a copy here
		for _, pg := range s.m.PGs {
			if slices.Contains(pg.Target, st.ID) && !pg.Active.Has(st.ID) {
				lacks++
			}
			if pg.Active.Has(st.ID) && !pg.IsComplete(st.ID) {
				wants++
			}
		}
		name := fmt.Sprintf("store %v on %s", st.ID, s.nodeName(st.Node))
		age := ageText(now.Sub(time.UnixMilli(st.StateSince)))
		switch {
		case st.State == dfs.StoreDown:
			what := "has been down for " + age
			if failed[uint32(st.ID)] {
				what += " since a write or sync of its disk failed (start its node anew to have it verified and used again, or replace the disk)"
			}
			out = append(out, fmt.Sprintf("%s %s: %s wait for it, until the grace period is over", name, what, plural(lacks, "placement group")))
		case st.State == dfs.StoreOut && (lacks > 0 || !s.Redundancy.Full):
			out = append(out, fmt.Sprintf("%s has been out for %s: its share goes to other stores", name, age))
		case failed[uint32(st.ID)]:
			out = append(out, fmt.Sprintf("%s has failed: a write or sync of its disk did; start its node anew to have it verified and used again, or replace the disk", name))
		case wants > 0:
			out = append(out, fmt.Sprintf("%s pulls what it lacks of %s", name, plural(wants, "placement group")))
		case lacks > 0:
			out = append(out, fmt.Sprintf("%s is to take over %s", name, plural(lacks, "placement group")))
		}
	}
	proposed, fresh := 0, 0
	for _, pg := range s.m.PGs {
		switch {
		case pg.Active.Epoch == 0:
			fresh++
		case pg.Proposed.Epoch != 0:
			proposed++
		}
	}
	if fresh > 0 {
		out = append(out, fmt.Sprintf("%s are new and have no members yet", plural(fresh, "placement group")))
	}
	if proposed > 0 {
		out = append(out, fmt.Sprintf("%s change members: the new ones have not all taken in the map", plural(proposed, "placement group")))
	}
	for _, st := range s.Stores {
		if st.State == "up" && st.Suspect {
			out = append(out, fmt.Sprintf("store s%d on %s is suspected: its reports are late", st.ID, st.Node))
		}
	}
	return out
}

// progress estimates how fast repair goes from an earlier look.
func (s *status) progress(earlier *status, took time.Duration) {
	if earlier == nil || !s.Repair.Active || took <= 0 {
		return
	}
	before := map[uint32]uint64{}
	for _, f := range earlier.Repair.Refills {
		before[f.Store] = f.Done
	}
	var moved uint64
	for _, f := range s.Repair.Refills {
		if old, ok := before[f.Store]; ok && f.Done > old {
			moved += f.Done - old
		}
	}
	rate := float64(moved) / took.Seconds()
	s.Repair.Rate = &rate
	if rate > 0 {
		eta := float64(s.Repair.BytesLeft) / rate
		s.Repair.ETA = &eta
	}
}
