package cli

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"dfsd/client"
	"dfsd/config"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/transport"
)

// connectTimeout is how long a command looks for any meta node that answers:
// one who mistyped an address learns it soon.
const connectTimeout = 5 * time.Second

// app is one run of the program.
type app struct {
	proc  Process
	flags *pflag.FlagSet // of everything that uses a cluster
}

// config loads the client's configuration.
func (a *app) config() (*config.Client, error) {
	return config.LoadClient(config.Input{Flags: a.flags, Env: a.proc.Env, ReadFile: os.ReadFile})
}

// connect finds the cluster. The caller must call the returned function.
func (a *app) connect(ctx context.Context) (*client.Client, func(), error) {
	cfg, err := a.config()
	if err != nil {
		return nil, nil, err
	}
	return a.connectTo(ctx, cfg)
}

func (a *app) connectTo(ctx context.Context, cfg *config.Client) (*client.Client, func(), error) {
	pool, opts := clientOptions(cfg)
	pool.Network = cmp.Or(a.proc.Network, transport.TCP())
	if cfg.TLS.Enabled() {
		var err error
		if pool.TLS, err = node.LoadTLS(cfg.TLS); err != nil {
			return nil, nil, &verbError{err: err, code: exitUsage}
		}
	}
	opts.Cred, opts.Holder = whoami(), holder()
	opts.Logger = slog.New(slog.NewTextHandler(a.proc.Err, &slog.HandlerOptions{Level: slog.LevelError}))
	c, done, err := client.Connect(ctx, pool, opts)
	if err != nil {
		return nil, nil, unreachable(err, opts.Metas)
	}
	return c, done, nil
}

// clientOptions passes the settings on, but for the files of TLS.
func clientOptions(cfg *config.Client) (transport.PoolOptions, client.Options) {
	pool := transport.PoolOptions{
		Breaker: transport.BreakerOptions{
			RequestVolumeThreshold: cfg.Breaker.RequestVolumeThreshold, ErrorThresholdPercentage: cfg.Breaker.ErrorThresholdPercentage,
			SleepWindow: cfg.Breaker.SleepWindow,
		},
	}
	opts := client.Options{
		Cluster: cfg.ClusterID, Timeout: cfg.Timeout, ConnectTimeout: min(cfg.Timeout, connectTimeout),
		Hedge: cfg.Hedge.Min, HedgeFactor: cfg.Hedge.Factor,
		Retry: client.Retry{Base: cfg.Retry.Base, Factor: cfg.Retry.Factor, Max: cfg.Retry.Max},
	}
	for _, m := range cfg.Meta {
		opts.Metas = append(opts.Metas, m.Addr)
	}
	return pool, opts
}

// unreachable is the error of a cluster that could not be found. It names every
// address that was tried, and why it was no use.
func unreachable(err error, addrs []string) error {
	hint := ""
	switch dfs.KindOf(err) {
	case dfs.Unavailable, dfs.Deadline, dfs.Busy, dfs.NotLeader:
		hint = "is it running? name its meta nodes with --meta host:port,… or DFSD_META, or start one here with dfsd dev"
		if strings.Contains(err.Error(), "belongs to no cluster yet") {
			hint = "a cluster is made once every meta node that the configuration lists is up: the log of each says for whom it waits"
		}
	case dfs.WrongCluster:
		hint = "see cluster_id and --meta"
	case dfs.Permission:
		hint = "see tls.ca, tls.cert and tls.key"
	}
	text := cause(err).Error()
	for _, a := range addrs { // each layer below names the address
		text = strings.ReplaceAll(text, a+": connect to "+a+": dial tcp "+a+": connect: ", a+": ")
	}
	return &verbError{err: &dfs.Error{Kind: dfs.KindOf(err), Op: "reach the cluster", Text: text}, code: exitUnreachable, hint: hint}
}

// whoami is the user that runs the process.
func whoami() client.Cred {
	cred := client.Cred{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	groups, err := os.Getgroups()
	if err != nil {
		return cred
	}
	for _, g := range groups {
		cred.Groups = append(cred.Groups, uint32(g))
	}
	return cred
}

// holder names this process to people who look at sessions.
func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// umask is the process's file mode creation mask.
func umask() uint32 {
	old := syscall.Umask(0o077) // reading it means setting it
	syscall.Umask(old)
	return uint32(old)
}

// withClient runs fn with a client.
// withLook is withClient for who looks at the cluster: one that is sick does not
// keep him for longer than statusTimeout, unless --timeout says something else.
func (a *app) withLook(ctx context.Context, fn func(*client.Client) error) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if !a.flags.Changed("timeout") {
		cfg.Timeout = min(cfg.Timeout, statusTimeout)
	}
	c, done, err := a.connectTo(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	return fn(c)
}

func (a *app) withClient(ctx context.Context, fn func(*client.Client) error) error {
	c, done, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer done()
	return fn(c)
}
