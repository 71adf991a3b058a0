package config

import (
	"fmt"
	"strings"
	"time"

	"dfsd/dfs"
)

// side says whose setting a row is.
type side uint8

const (
	forServer side = 1 << iota
	forClient
	forBoth = forServer | forClient
)

func (s side) String() string {
	switch s {
	case forServer:
		return "server"
	case forClient:
		return "client"
	}
	return "both"
}

// values is what the rows of the table write to.
type values struct {
	shared Shared
	server Server
	client Client
}

// setting is one row of the table.
type setting struct {
	key     string
	side    side
	def     string // in the form of the environment; "": none
	derived string // what an empty def stands for, in words
	doc     string
	kind    kind
}

func (s *setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }

func (s *setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// table is every setting there is, with its default, in the order in which
// the documentation shows them.
func table() []setting {
	return append(append(append(placeSettings(), clusterSettings()...), serverSettings()...), callSettings()...)
}

// placeSettings say who this process is and where the others are.
func placeSettings() []setting {
	return []setting{
		{"role", forServer, "", required, "roles of this process: meta, storage, or both",
			roles(func(v *values) *dfs.Role { return &v.server.Roles })},
		{"name", forServer, "", required, "name of this node, unique in the cluster and kept for its life",
			name(func(v *values) *string { return &v.server.Name })},
		{"dir", forServer, "", required, "data directory of this node: its identity and, with the meta role, the metadata",
			path(func(v *values) *string { return &v.server.Dir })},
		{"stores", forServer, "", "DIR/store0", "with the storage role: a directory for each disk",
			paths(func(v *values) *[]string { return &v.server.Stores })},
		{"listen", forServer, "", "127.0.0.1:7400, with the storage role alone 127.0.0.1:7410", "where this node listens",
			address(func(v *values) *string { return &v.server.Listen })},
		{"advertise", forServer, "", "listen", "where others reach this node",
			address(func(v *values) *string { return &v.server.Advertise })},
		{"http", forServer, "", "listen, its port + 100", "where metrics, health and, on loopback, profiles are served",
			address(func(v *values) *string { return &v.server.HTTP })},
		{"meta", forBoth, "127.0.0.1:7400,127.0.0.1:7401,127.0.0.1:7402", "", "the first meta nodes; with the meta role as name=host:port, the same list on each",
			metaNodes(func(v *values) *[]MetaNode { return &v.shared.Meta })},
		{"cluster_id", forBoth, "", "learned", "the one cluster that this process may talk to",
			clusterID(func(v *values) *dfs.ClusterID { return &v.shared.ClusterID })},
		{"tls.ca", forBoth, "", "no TLS", "PEM file with the authority that signed every certificate of the cluster",
			path(func(v *values) *string { return &v.shared.TLS.CA })},
		{"tls.cert", forBoth, "", "no TLS", "PEM file with the certificate of this process",
			path(func(v *values) *string { return &v.shared.TLS.Cert })},
		{"tls.key", forBoth, "", "no TLS", "PEM file with the key of that certificate",
			path(func(v *values) *string { return &v.shared.TLS.Key })},
		{"insecure", forServer, "false", "", "listen without TLS on addresses that are not loopback: anyone who reaches them may read and write all",
			boolean(func(v *values) *bool { return &v.server.Insecure })},
		{"labels", forServer, "", "none", "failure domains of this node, such as rack=r1,zone=east; the host is its name",
			labels(func(v *values) *map[string]string { return &v.server.Labels })},
	}
}

// clusterSettings are taken when a cluster is formed, and for the choice of
// who lives.
func clusterSettings() []setting {
	return []setting{
		{"groups", forServer, "8", "", "namespace groups of a new cluster",
			integer(1, 1024, func(v *values) *int { return &v.server.Groups })},
		{"pgs_per_class", forServer, "256", "", "placement groups of each storage class in a new cluster",
			integer(1, dfs.MaxPGs, func(v *values) *int { return &v.server.PGsPerClass })},
		{"default_class", forServer, "rep3", "", "storage class of a new cluster's files where no directory says otherwise",
			class(func(v *values) *dfs.Class { return &v.server.DefaultClass })},
		{"block_size", forServer, "4MiB", "", "largest block of a new cluster",
			size(dfs.ChunkSize, dfs.MaxBlockSize, dfs.ChunkSize, func(v *values) *int { return &v.server.BlockSize })},
		{"heartbeat", forServer, "500ms", "", "how often a storage node reports to every meta node",
			duration(50*time.Millisecond, time.Minute, func(v *values) *time.Duration { return &v.server.Heartbeat })},
		{"health_check.mode", forServer, "adaptive", "", "how a meta node judges silence: adaptive learns each node's rhythm, fixed waits the time-out, exponential doubles it with each silence that ended",
			oneOf(func(v *values) *string { return &v.server.Health.Mode }, "adaptive", "fixed", "exponential")},
		{"health_check.interval", forServer, "", "heartbeat", "how often a report is expected",
			duration(50*time.Millisecond, time.Minute, func(v *values) *time.Duration { return &v.server.Health.Interval })},
		{"health_check.timeout", forServer, "", "2s, or 4 intervals where that is longer", "silence after which a store is suspect, longer than the interval",
			duration(50*time.Millisecond, 10*time.Minute, func(v *values) *time.Duration { return &v.server.Health.Timeout })},
		{"health_check.max_failures", forServer, "3", "", "reports in a row that must be missing at least; with exponential also how often the time-out doubles at most",
			integer(1, dfs.MaxMissedBeats, func(v *values) *int { return &v.server.Health.MaxFailures })},
		{"health_check.disk_timeout", forServer, "", "10s, or the interval where that is longer", "how long a write, sync or read may wait on a disk that completes none before its store is suspect",
			duration(100*time.Millisecond, 10*time.Minute, func(v *values) *time.Duration { return &v.server.Health.DiskTimeout })},
		{"grace_period", forServer, "10m", "", "how long a store may be down before its data is copied elsewhere",
			duration(time.Second, 30*24*time.Hour, func(v *values) *time.Duration { return &v.server.GracePeriod })},
		{"session_ttl", forServer, "30s", "", "how long a client's session lives without a word from it",
			duration(5*time.Second, time.Hour, func(v *values) *time.Duration { return &v.server.SessionTTL })},
		{"raft.tick", forServer, "100ms", "", "unit of Raft's time: of heartbeats, elections and leases",
			duration(10*time.Millisecond, 10*time.Second, func(v *values) *time.Duration { return &v.server.Raft.Tick })},
		{"raft.election_ticks", forServer, "10", "", "ticks of silence after which a follower campaigns",
			integer(3, 1000, func(v *values) *int { return &v.server.Raft.ElectionTicks })},
		{"raft.snapshot_rate", forServer, "64MiB", "", "bytes a second of all snapshots of metadata that this node sends and receives, 256KiB at least; 0: no limit",
			size(0, 1<<40, 1, func(v *values) *int64 { return &v.server.Raft.SnapshotRate })},
	}
}

// serverSettings are what one process may use, and what it says.
func serverSettings() []setting {
	return []setting{
		{"segment_size", forServer, "256MiB", "", "size of a segment file of a store",
			size(2*dfs.MaxBlockSize, 1<<30, 1<<20, func(v *values) *int64 { return &v.server.SegmentSize })},
		{"meta_cache_size", forServer, "64MiB", "", "memory for cached metadata",
			size(1<<20, 1<<40, 1, func(v *values) *int64 { return &v.server.MetaCacheSize })},
		{"store_cache_size", forServer, "32MiB", "", "memory for the cached index of each store",
			size(1<<20, 1<<40, 1, func(v *values) *int64 { return &v.server.StoreCacheSize })},
		{"reserve", forServer, "1GiB", "", "free space of a disk below which a store takes no writes, and at half of which a meta node takes only what frees space",
			size(1<<20, 1<<50, 1, func(v *values) *int64 { return &v.server.Reserve })},
		{"refill_rate", forServer, "0", "", "bytes a second that this node pulls to repair its stores; 0: no limit",
			size(0, 1<<40, 1, func(v *values) *int64 { return &v.server.RefillRate })},
		{"compaction.rate", forServer, "64MiB", "", "bytes a second that each store copies out of segments with much that is deleted, while neither space is short nor too much is dead",
			size(1<<20, 1<<40, 1, func(v *values) *int64 { return &v.server.Compaction.Rate })},
		{"compaction.age", forServer, "1m", "", "how long a full segment is left alone before it is compacted, unless space is short",
			duration(time.Second, 30*24*time.Hour, func(v *values) *time.Duration { return &v.server.Compaction.Age })},
		{"compaction.dead_percent", forServer, "20", "", "share of the bytes in full segments that may be of deleted blocks",
			integer(1, 90, func(v *values) *int { return &v.server.Compaction.DeadPercent })},
		{"scrub.period", forServer, "336h", "", "how often every byte of a store is read and checked",
			duration(time.Minute, 365*24*time.Hour, func(v *values) *time.Duration { return &v.server.Scrub.Period })},
		{"scrub.rate", forServer, "32MiB", "", "bytes a second that are read for it at most",
			size(1<<20, 1<<40, 1, func(v *values) *int64 { return &v.server.Scrub.Rate })},
		{"undecided_age", forServer, "2m", "", "how old a block is when a store asks whether a file names it",
			duration(time.Second, 24*time.Hour, func(v *values) *time.Duration { return &v.server.UndecidedAge })},
		{"trash_keep", forServer, "24h", "", "how long blocks that no file names, and those of placement groups that a store has left, are kept; none while a store is short of space",
			duration(time.Second, 365*24*time.Hour, func(v *values) *time.Duration { return &v.server.TrashKeep })},
		{"log.level", forServer, "info", "", "least level that is logged",
			oneOf(func(v *values) *string { return &v.server.Log.Level }, "debug", "info", "warn", "error")},
		{"log.format", forServer, "text", "", "form of the log lines on stderr",
			oneOf(func(v *values) *string { return &v.server.Log.Format }, "text", "json")},
	}
}

// callSettings say how the others are called.
func callSettings() []setting {
	return []setting{
		{"timeout", forClient, "60s", "", "time for one operation, repetitions included",
			duration(time.Millisecond, 24*time.Hour, func(v *values) *time.Duration { return &v.client.Timeout })},
		{"retry.base", forClient, "50ms", "", "bound of the first pause before a repetition; a pause is drawn between 0 and its bound",
			duration(time.Millisecond, time.Minute, func(v *values) *time.Duration { return &v.client.Retry.Base })},
		{"retry.factor", forClient, "2", "", "by which the bound grows",
			number(1, 10, func(v *values) *float64 { return &v.client.Retry.Factor })},
		{"retry.max", forClient, "2s", "", "largest bound",
			duration(time.Millisecond, 10*time.Minute, func(v *values) *time.Duration { return &v.client.Retry.Max })},
		{"hedge.min", forClient, "50ms", "", "least wait for an answer before another member is asked too",
			duration(time.Millisecond, time.Minute, func(v *values) *time.Duration { return &v.client.Hedge.Min })},
		{"hedge.factor", forClient, "3", "", "the wait in 95th percentiles of the answers so far",
			number(1, 100, func(v *values) *float64 { return &v.client.Hedge.Factor })},
		{"circuit_breaker.request_volume_threshold", forBoth, "20", "", "calls to a peer within 10 s below which its breaker stays closed",
			integer(1, 1_000_000, func(v *values) *int { return &v.shared.Breaker.RequestVolumeThreshold })},
		{"circuit_breaker.error_threshold_percentage", forBoth, "50", "", "share of failed calls that opens it",
			integer(1, 100, func(v *values) *int { return &v.shared.Breaker.ErrorThresholdPercentage })},
		{"circuit_breaker.sleep_window", forBoth, "5s", "", "how long it stays open before one call is let through",
			duration(time.Millisecond, 10*time.Minute, func(v *values) *time.Duration { return &v.shared.Breaker.SleepWindow })},
	}
}

// required is the derived default of settings that have none.
const required = "required"

// Table is the table of all settings in Markdown, for the documentation.
func Table() string {
	var b strings.Builder
	b.WriteString("| key | for | value | default | meaning |\n|---|---|---|---|---|\n")
	for _, s := range table() {
		def := s.derived
		if s.def != "" {
			def = "`" + s.def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", s.key, s.side, s.kind.want, def, s.doc)
	}
	return b.String()
}
