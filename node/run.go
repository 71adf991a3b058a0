package node

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"dfsd/config"
	"dfsd/dfs"
	"dfsd/meta"
	"dfsd/repair"
	"dfsd/transport"
)

// Run runs a node as the configuration says until ctx ends, then hands its
// leaders over, finishes what it accepted and returns. A role that can never
// serve (another cluster, a directory that was taken over) ends it with the
// reason. Log lines go to stderr.
func Run(ctx context.Context, cfg *config.Server, release string, stderr io.Writer) error {
	logger, err := newLogger(cfg.Log, stderr)
	if err != nil {
		return err
	}
	opts, err := options(cfg, release, logger)
	if err != nil {
		return err
	}
	if err := transport.CheckListen(cfg.HTTP, opts.TLS, cfg.Insecure); err != nil {
		return err
	}
	n, err := Start(opts)
	if err != nil {
		return err
	}
	opts.Metrics.Registry.MustRegister(collector{n})
	web, err := startHTTP(n, opts.Network, cfg.HTTP)
	if err != nil {
		_ = n.Close()
		return err
	}
	defer web.close()
	ready := false
	for {
		if !ready && n.Ready() {
			ready = true
			logger.Info("ready: every role takes part in the cluster")
		}
		select {
		case <-ctx.Done():
			logger.Info("stopping")
			return n.Shutdown(context.WithoutCancel(ctx))
		case <-time.After(failCheck):
		}
		if err := n.Err(); err != nil {
			return errors.Join(err, n.Close())
		}
	}
}

// failCheck is how often a running process looks whether its roles take part,
// or one has given up.
const failCheck = 500 * time.Millisecond

func newLogger(cfg config.Log, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, dfs.Errorf(dfs.Invalid, "start", "log level %q", cfg.Level)
	}
	ho := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, ho)), nil
	}
	return slog.New(slog.NewTextHandler(w, ho)), nil
}

// options turns a validated configuration into a node on this machine's disk
// and network.
func options(cfg *config.Server, release string, logger *slog.Logger) (Options, error) {
	mode, err := repair.ParseMode(cfg.Health.Mode)
	if err != nil {
		return Options{}, err
	}
	var secure *tls.Config
	if cfg.TLS.Enabled() {
		if secure, err = LoadTLS(cfg.TLS); err != nil {
			return Options{}, err
		}
	}
	o := Options{
		FS: Disk(), Network: transport.TCP(), Name: cfg.Name, Roles: cfg.Roles, Listen: cfg.Listen, Advertise: cfg.Advertise,
		Dir: cfg.Dir, Stores: cfg.Stores, Cluster: cfg.ClusterID, Release: release, Labels: cfg.Labels, PID: os.Getpid(),
		TLS: secure, Insecure: cfg.Insecure, Metrics: NewMetrics(), NewMark: newMark, Logger: logger,
		Breaker: transport.BreakerOptions{
			RequestVolumeThreshold: cfg.Breaker.RequestVolumeThreshold, ErrorThresholdPercentage: cfg.Breaker.ErrorThresholdPercentage,
			SleepWindow: cfg.Breaker.SleepWindow,
		},
	}
	for _, m := range cfg.Meta {
		o.Peers = append(o.Peers, meta.Peer{Name: m.Name, Addr: m.Addr})
	}
	o.Meta.Groups, o.Meta.PGsPerClass, o.Meta.DefaultClass, o.Meta.BlockSize = cfg.Groups, cfg.PGsPerClass, cfg.DefaultClass, cfg.BlockSize
	o.Meta.Grace, o.Meta.Heartbeat, o.Meta.SessionTTL = cfg.GracePeriod, cfg.Heartbeat, cfg.SessionTTL
	o.Meta.Reserve = uint64(cfg.Reserve) / 2 // stores on the same disk stop first
	o.Meta.Health = repair.HealthCheck{
		Mode: mode, Interval: cfg.Health.Interval, Timeout: cfg.Health.Timeout, MaxFailures: cfg.Health.MaxFailures,
		DiskTimeout: cfg.Health.DiskTimeout,
	}
	o.Meta.Raft.Tick, o.Meta.Raft.ElectionTicks, o.Meta.Raft.CacheSize = cfg.Raft.Tick, cfg.Raft.ElectionTicks, cfg.MetaCacheSize
	o.Meta.Raft.SnapshotRate = cfg.Raft.SnapshotRate
	o.Storage.Heartbeat, o.Storage.RefillRate = cfg.Heartbeat, cfg.RefillRate
	o.Storage.UndecidedAge, o.Storage.TrashKeep = cfg.UndecidedAge, cfg.TrashKeep
	o.Engine.SegmentSize, o.Engine.CacheSize, o.Engine.ReserveBytes = cfg.SegmentSize, cfg.StoreCacheSize, uint64(cfg.Reserve)
	o.Engine.CompactRate, o.Engine.CompactAge, o.Engine.DeadPercent = cfg.Compaction.Rate, cfg.Compaction.Age, cfg.Compaction.DeadPercent
	o.Engine.ScrubPeriod, o.Engine.ScrubRate = cfg.Scrub.Period, cfg.Scrub.Rate
	return o, nil
}

// LoadTLS reads the PEM files of a configuration.
func LoadTLS(cfg config.TLS) (*tls.Config, error) {
	var pem [3][]byte
	for i, name := range []string{cfg.CA, cfg.Cert, cfg.Key} {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, &dfs.Error{Kind: dfs.Invalid, Op: "read TLS file", Object: name, Err: err}
		}
		pem[i] = b
	}
	return transport.TLSConfig(pem[0], pem[1], pem[2])
}

// newMark draws a random number that is not 0.
func newMark() uint64 {
	var b [8]byte
	for {
		_, _ = crand.Read(b[:]) // never fails (documented since Go 1.24)
		if v := binary.BigEndian.Uint64(b[:]); v != 0 {
			return v
		}
	}
}
