package config

import (
	"time"

	"dfsd/dfs"
)

// Shared is what servers and clients have in common.
type Shared struct {
	ClusterID dfs.ClusterID // pins the cluster; zero: learned from the first meta node that answers
	Meta      []MetaNode    // where the cluster is; never empty
	TLS       TLS
	Breaker   CircuitBreaker
}

// MetaNode is one meta node of the configuration.
type MetaNode struct {
	Name string // "" where only the address is given
	Addr string // host:port
}

// TLS names the PEM files for mutual TLS. Invariant: all are set, or none is.
type TLS struct {
	CA, Cert, Key string
}

// Enabled reports whether connections are to use TLS.
func (t TLS) Enabled() bool { return t.CA != "" }

// CircuitBreaker says when a peer that fails is left alone for a while.
type CircuitBreaker struct {
	RequestVolumeThreshold   int
	ErrorThresholdPercentage int // 1..100
	SleepWindow              time.Duration
}

// Server is the configuration of a process with roles.
type Server struct {
	Shared

	Name      string
	Roles     dfs.Role // never empty
	Dir       string
	Stores    []string // a directory each; empty without the storage role
	Listen    string   // host:port
	Advertise string   // host:port; never an unspecified host
	HTTP      string   // host:port
	Insecure  bool     // a listener off loopback may go without TLS
	Labels    map[string]string

	// Of a new cluster; one that exists has its own values.
	Groups       int
	PGsPerClass  int
	DefaultClass dfs.Class
	BlockSize    int // bytes

	SegmentSize    int64 // bytes
	MetaCacheSize  int64 // bytes
	StoreCacheSize int64 // bytes, for each store
	Reserve        int64 // bytes, on each disk; half of it for metadata
	RefillRate     int64 // bytes a second, for each node; 0: no limit
	Compaction     Compaction
	Scrub          Scrub

	UndecidedAge time.Duration
	TrashKeep    time.Duration

	Heartbeat   time.Duration
	Health      HealthCheck
	GracePeriod time.Duration
	SessionTTL  time.Duration
	Raft        Raft
	Log         Log
}

// Compaction says how a store gives back the space of deleted blocks.
type Compaction struct {
	Rate        int64 // bytes a second
	Age         time.Duration
	DeadPercent int
}

// Scrub says how everything on a store is read and checked.
type Scrub struct {
	Period time.Duration
	Rate   int64 // bytes a second
}

// HealthCheck says how a meta node judges the silence of a storage node.
type HealthCheck struct {
	Mode        string // adaptive, fixed or exponential
	Interval    time.Duration
	Timeout     time.Duration
	MaxFailures int
	DiskTimeout time.Duration // never shorter than Interval
}

// Raft is the time base of the Raft groups.
type Raft struct {
	Tick          time.Duration
	ElectionTicks int
	SnapshotRate  int64 // bytes a second; 0: no limit
}

// Log says what is logged and how.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
}

// Client is the configuration of everything that uses a cluster.
type Client struct {
	Shared

	Timeout time.Duration // of one operation, repetitions included
	Retry   Retry
	Hedge   Hedge
}

// Retry says how a request that was not applied is repeated.
type Retry struct {
	Base   time.Duration // bound of the first pause
	Factor float64       // by which the bound grows
	Max    time.Duration // where it stops to grow
}

// Hedge says when a second member is asked: after max(Min, Factor × the
// 95th percentile of the answers so far).
type Hedge struct {
	Min    time.Duration
	Factor float64
}
