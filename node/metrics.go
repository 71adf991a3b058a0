package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dfsd/dfs"
)

// Metrics counts what a node does. Its names are stable: docs/OPERATIONS.md
// lists them.
type Metrics struct {
	Registry *prometheus.Registry

	served  *prometheus.HistogramVec
	calls   *prometheus.HistogramVec
	breaker *prometheus.GaugeVec
}

// latencyBuckets cover a cached read to a request that ran into its deadline
// (seconds).
var latencyBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}

// NewMetrics returns counters in a registry of their own.
func NewMetrics() *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		served: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dfsd_request_seconds", Help: "Time to serve a request, by method and outcome.", Buckets: latencyBuckets,
		}, []string{"method", "outcome"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dfsd_call_seconds", Help: "Time of a call to a peer, by method and outcome.", Buckets: latencyBuckets,
		}, []string{"method", "outcome"}),
		breaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "dfsd_breaker_open", Help: "1 while the circuit breaker of a peer is open, 0.5 while it tries again, else 0.",
		}, []string{"peer"}),
	}
	m.Registry.MustRegister(m.served, m.calls, m.breaker)
	return m
}

func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return dfs.KindOf(err).Error()
}

func (m *Metrics) observeServed() func(method string, err error, took time.Duration) {
	if m == nil {
		return nil
	}
	return func(method string, err error, took time.Duration) {
		m.served.WithLabelValues(method, outcome(err)).Observe(took.Seconds())
	}
}

func (m *Metrics) observeCall() func(addr, method string, err error, took time.Duration) {
	if m == nil {
		return nil
	}
	return func(_, method string, err error, took time.Duration) {
		m.calls.WithLabelValues(method, outcome(err)).Observe(took.Seconds())
	}
}

func (m *Metrics) observeBreaker() func(addr, state string) {
	if m == nil {
		return nil
	}
	return func(addr, state string) {
		m.breaker.WithLabelValues(addr).Set(map[string]float64{"open": 1, "half-open": .5}[state])
	}
}

// collector reads the node's state when it is scraped.
type collector struct{ n *Node }

// figure describes one figure of the state.
type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// gauge describes a figure that goes up and down.
func gauge(name, help string, labels ...string) figure {
	return figure{prometheus.NewDesc("dfsd_"+name, help, labels, nil), prometheus.GaugeValue}
}

// counter describes a figure that only grows; its name ends in _total.
func counter(name, help string, labels ...string) figure {
	return figure{prometheus.NewDesc("dfsd_"+name+"_total", help, labels, nil), prometheus.CounterValue}
}

// Describe implements prometheus.Collector: the set of figures depends on the
// roles, so it is unchecked.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	send := func(f figure, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(f.desc, f.kind, v, labels...)
	}
	if c.n.meta != nil {
		c.collectRaft(send)
		c.collectMap(send)
	}
	if c.n.storage != nil {
		c.collectStores(send)
	}
}

func (c collector) collectRaft(send func(figure, float64, ...string)) {
	applied := gauge("raft_applied_index", "Index of the last applied entry.", "group")
	term := gauge("raft_term", "Raft term.", "group")
	leads := gauge("raft_leader", "1 on the group's leader.", "group")
	if d := c.n.meta.Disk(); d != nil {
		full := 0.0
		if d.Full {
			full = 1
		}
		send(gauge("meta_disk_free_bytes", "Free bytes of the disk of the metadata."), float64(d.Free))
		send(gauge("meta_disk_full", "1 while the free bytes are less than the reserve."), full)
	}
	damaged := 0.0
	if c.n.meta.Damaged() {
		damaged = 1
	}
	send(gauge("meta_damaged", "1 while the Raft log of this node is damaged and it waits to join anew."), damaged)
	send(counter("meta_restarts", "Restarts of the meta role after damage that it met while it ran."), float64(c.n.meta.Restarts()))
	log := c.n.meta.Log()
	send(counter("raft_log_syncs", "Syncs of the Raft log since start."), float64(log.Syncs))
	send(counter("raft_log_bytes", "Bytes that these syncs made durable."), float64(log.Bytes))
	send(gauge("raft_log_queue", "Writes that wait for the next sync of the Raft log."), float64(log.Queue))
	c.collectSnapshots(send)
	txns := c.n.meta.Txns()
	send(gauge("txns", "Operations over several groups that this node drives."), float64(txns.Driven))
	send(gauge("txn_oldest_seconds", "Time since the oldest of them began."), txns.Oldest.Seconds())
	send(gauge("txn_shares_waiting", "Shares of other groups' operations that wait for a decision, in groups that this node leads."), float64(txns.Shares))
	send(counter("txns_committed", "Operations over several groups that this node committed, since start."), float64(txns.Committed))
	aborted := counter("txns_aborted", "Attempts at such operations that it aborted, since start.", "reason")
	for kind, n := range txns.Aborted {
		send(aborted, float64(n), outcome(kind))
	}
	me := c.n.id.Membership().Node
	awake := 0
	for _, st := range c.n.meta.Groups() {
		g := st.Group.String()
		send(applied, float64(st.Applied), g)
		send(term, float64(st.Term), g)
		v := 0.0
		if st.Leader == me {
			v = 1
		}
		send(leads, v, g)
		if !st.Asleep && st.Fault == nil {
			awake++
		}
	}
	send(gauge("raft_awake", "Groups in which something happens."), float64(awake))
}

func (c collector) collectSnapshots(send func(figure, float64, ...string)) {
	under := gauge("raft_snapshot_progress_bytes", "Bytes so far of a snapshot on its way.", "group", "peer", "direction")
	count := gauge("raft_snapshots", "Snapshots on their way, those that wait to go on apart.", "state")
	bytes := counter("raft_snapshot_bytes", "Bytes of snapshots since start.", "direction")
	done := counter("raft_snapshots_installed", "Snapshots sent and received that were installed, since start.", "direction")
	list, stats := c.n.meta.Snapshots()
	states := map[string]int{"sending": 0, "receiving": 0, "waiting": 0}
	for _, s := range list {
		direction, state := "received", "receiving"
		if s.Sending {
			direction, state = "sent", "sending"
		}
		if s.Waiting {
			state = "waiting"
		}
		states[state]++
		send(under, float64(s.Bytes), s.Group.String(), s.Peer.String(), direction)
	}
	for state, n := range states {
		send(count, float64(n), state)
	}
	send(bytes, float64(stats.Sent), "sent")
	send(bytes, float64(stats.Received), "received")
	send(done, float64(stats.Delivered), "sent")
	send(done, float64(stats.Installed), "received")
	send(counter("raft_snapshots_resumed", "Streams of snapshots that went on where another broke, since start."), float64(stats.Resumed))
}

func (c collector) collectMap(send func(figure, float64, ...string)) {
	m := c.n.meta.Map()
	if m == nil {
		return
	}
	send(gauge("map_epoch", "Epoch of the newest applied cluster map."), float64(m.Epoch))
	full, writable := 0, 0
	for _, p := range m.PGs {
		if p.Full() {
			full++
		}
		if p.Writable() {
			writable++
		}
	}
	pgs := gauge("pgs", "Placement groups by state.", "state")
	send(pgs, float64(len(m.PGs)), "all")
	send(pgs, float64(full), "full")
	send(pgs, float64(writable), "writable")
	states := map[dfs.StoreState]int{}
	for _, s := range m.Stores {
		states[s.State]++
	}
	stores := gauge("stores", "Stores of the cluster by state.", "state")
	for _, s := range []dfs.StoreState{dfs.StoreUp, dfs.StoreDown, dfs.StoreOut} {
		send(stores, float64(states[s]), s.String())
	}
}

func (c collector) collectStores(send func(figure, float64, ...string)) {
	for _, e := range c.n.engines {
		st, scrub := e.Stats(), e.Scrub()
		for _, x := range []struct {
			figure
			value float64
		}{
			{gauge("store_blocks", "Live blocks.", "store"), float64(st.Blocks)},
			{gauge("store_tombstones", "Tombstones of deleted blocks.", "store"), float64(st.Tombstones)},
			{gauge("store_live_bytes", "Bytes of live records.", "store"), float64(st.LiveBytes)},
			{gauge("store_logical_bytes", "Bytes of live blocks before compression.", "store"), float64(st.Logical)},
			{gauge("store_stored_bytes", "Bytes of live blocks as they are stored.", "store"), float64(st.Stored)},
			{gauge("store_dead_bytes", "Bytes of dead records.", "store"), float64(st.DeadBytes)},
			{gauge("store_undecided", "Blocks of which it is not known whether a file names them.", "store"), float64(st.Undecided)},
			{gauge("store_trash_bytes", "Bytes of records of blocks that no file names.", "store"), float64(st.TrashBytes)},
			{gauge("store_used_bytes", "Bytes of segment files.", "store"), float64(st.Used)},
			{gauge("store_segments", "Segment files.", "store"), float64(st.Segments)},
			{gauge("store_queue", "Requests that wait for the writer.", "store"), float64(st.QueueDepth)},
			{counter("store_syncs", "Data syncs since start.", "store"), float64(st.Syncs)},
			{counter("store_compactions", "Segments compacted since start.", "store"), float64(st.Compactions)},
			{counter("store_moved_bytes", "Bytes copied by compaction since start.", "store"), float64(st.MovedBytes)},
			{counter("store_segments_given", "Segments given up since start.", "store"), float64(st.SegmentsGiven)},
			{counter("store_forgotten_blocks", "Blocks forgotten with placement groups that the store has left, since start.", "store"), float64(st.Forgotten)},
			{counter("store_tombstones_dropped", "Tombstones dropped by compaction since start.", "store"), float64(st.TombstonesDropped)},
			{gauge("store_scrub_pass", "Number of the scrub pass under way or waited for.", "store"), float64(scrub.Pass)},
			{gauge("store_scrub_read_bytes", "Bytes read by that pass.", "store"), float64(scrub.Read)},
			{counter("store_scrub_found", "Damaged records found by scrub since start.", "store"), float64(st.ScrubFound)},
		} {
			send(x.figure, x.value, e.Identity().Store.String())
		}
	}
}
