// Package metas finds the meta node that can answer: an address book of meta
// nodes with the last known leader of each group, and calls that follow hints,
// go round the nodes and back off until their context ends.
//
// Storage nodes, meta nodes and clients all reach the meta service through it.
// It starts no goroutine but the ones of a running call.
package metas

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// AttemptTimeout bounds one attempt at one node, so that a silent node costs a
// fraction of a caller's deadline.
const AttemptTimeout = 5 * time.Second

// BaseBackoff and MaxBackoff bound the pause between rounds; full jitter.
const (
	BaseBackoff = 50 * time.Millisecond
	MaxBackoff  = 2 * time.Second
)

// Book knows the meta nodes of a cluster. It is safe for concurrent use.
type Book struct {
	dial  func(addr string) drpc.Conn
	delay func(round int) time.Duration

	mu      sync.Mutex
	seeds   []string // as configured
	addrs   map[dfs.NodeID]string
	groups  map[dfs.GroupID][]dfs.NodeID // who should have a replica
	leaders map[dfs.GroupID]dfs.NodeID
	epoch   dfs.Epoch
}

// New returns a book that starts from the configured addresses. Dial returns a
// connection that is made when it is first used.
func New(dial func(addr string) drpc.Conn, seeds []string) *Book {
	return &Book{dial: dial, delay: backoff, seeds: slices.Clone(seeds), addrs: map[dfs.NodeID]string{}, leaders: map[dfs.GroupID]dfs.NodeID{}}
}

// backoff is the pause after a number of rounds, from 1 up.
func backoff(round int) time.Duration {
	return rand.N(min(BaseBackoff<<min(round-1, 10), MaxBackoff))
}

// SetDelay sets the pause after a number of rounds, from 1 up. It must come
// before the first call.
func (b *Book) SetDelay(delay func(round int) time.Duration) { b.delay = delay }

// Update learns addresses from a map; older maps are ignored.
func (b *Book) Update(m *dfs.Map) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.Epoch < b.epoch {
		return
	}
	b.epoch = m.Epoch
	b.groups = make(map[dfs.GroupID][]dfs.NodeID, len(m.Groups))
	for _, g := range m.Groups {
		b.groups[g.ID] = g.Replicas
	}
	clear(b.addrs)
	for _, n := range m.MetaNodes() {
		b.addrs[n.ID] = n.Addr
	}
}

// SetLeader notes who leads a group; 0 forgets.
func (b *Book) SetLeader(g dfs.GroupID, n dfs.NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n == 0 {
		delete(b.leaders, g)
		return
	}
	b.leaders[g] = n
}

// Addrs lists the addresses of all known meta nodes, sorted; the configured
// ones while no map was seen.
func (b *Book) Addrs() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.addrs) == 0 {
		return slices.Clone(b.seeds)
	}
	out := slices.Sorted(maps.Values(b.addrs))
	return slices.Compact(out)
}

// order lists the addresses to try for a group: its leader first, then the nodes
// that should have a replica, then all others, who may know better; each of the
// two in random order.
func (b *Book) order(g dfs.GroupID) []string {
	addrs := b.Addrs()
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	b.mu.Lock()
	defer b.mu.Unlock()
	listed := map[string]bool{}
	for _, n := range b.groups[g] {
		listed[b.addrs[n]] = true
	}
	slices.SortStableFunc(addrs, func(x, y string) int {
		switch {
		case listed[x] == listed[y]:
			return 0
		case listed[x]:
			return -1
		}
		return 1
	})
	if first := b.addrs[b.leaders[g]]; first != "" {
		addrs = slices.DeleteFunc(addrs, func(a string) bool { return a == first })
		addrs = slices.Insert(addrs, 0, first)
	}
	return addrs
}

// CallAny is Call for what any replica of the group answers: the nodes are asked
// in random order, so that many callers spread over them.
func (b *Book) CallAny(ctx context.Context, g dfs.GroupID, fn func(context.Context, wire.DRPCMetaClient) error) error {
	return b.call(ctx, g, true, func() []string {
		addrs := b.Addrs()
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		return addrs
	}, fn)
}

// withSeeds adds the configured addresses to those of the map: one from when not
// every node had registered may know none that is up.
func (b *Book) withSeeds(addrs []string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.seeds {
		if !slices.Contains(addrs, s) {
			addrs = append(addrs, s)
		}
	}
	return addrs
}

// Call runs fn against the leader of a group. It follows hints, tries the
// other nodes, and backs off between rounds until ctx ends. Fn must be safe to
// run again after dfs.Unknown when again is true: then such an outcome is tried
// again too; else it is returned. The error of a call that ran out of time
// names every address with its last failure.
func (b *Book) Call(ctx context.Context, g dfs.GroupID, again bool, fn func(context.Context, wire.DRPCMetaClient) error) error {
	return b.call(ctx, g, again, func() []string { return b.order(g) }, fn)
}

func (b *Book) call(ctx context.Context, g dfs.GroupID, again bool, order func() []string, fn func(context.Context, wire.DRPCMetaClient) error) error {
	failures := map[string]error{}
	maybe := false // an attempt may have been carried out
	for round := 1; ; round++ {
		tried := order()
		if round > 1 {
			tried = b.withSeeds(tried)
		}
		for i := 0; i < len(tried); i++ {
			addr := tried[i]
			err := b.attempt(ctx, addr, fn)
			if err == nil {
				return nil
			}
			kind := dfs.KindOf(err)
			switch {
			case kind == dfs.NotLeader:
				if hint := b.follow(g, err); hint != "" && i < 2*len(failures)+4 && addr != hint {
					tried = slices.Insert(tried, i+1, hint)
				}
			case kind == dfs.Unknown || kind == dfs.Deadline:
				if !again {
					return err
				}
				maybe = true
				b.SetLeader(g, 0)
			case !kind.Retryable() || kind == dfs.Stale: // Stale is what no other node would say otherwise
				return err
			}
			failures[addr] = err
			if ctx.Err() != nil {
				return giveUp(ctx, maybe, failures)
			}
		}
		b.learn(ctx, g, tried)
		select {
		case <-ctx.Done():
			return giveUp(ctx, maybe, failures)
		case <-time.After(b.delay(round) + time.Millisecond):
		}
	}
}

func (b *Book) attempt(ctx context.Context, addr string, fn func(context.Context, wire.DRPCMetaClient) error) error {
	actx, cancel := context.WithTimeout(ctx, AttemptTimeout)
	defer cancel()
	return fn(actx, wire.NewDRPCMetaClient(b.dial(addr)))
}

// learn fetches a newer map when the leader of a group is a node that this one
// does not name: it joined since. Nothing else would tell a caller that asks
// for no blocks.
func (b *Book) learn(ctx context.Context, g dfs.GroupID, addrs []string) {
	for _, addr := range addrs {
		b.mu.Lock()
		leader := b.leaders[g]
		known := leader == 0 || b.addrs[leader] != ""
		b.mu.Unlock()
		if known || ctx.Err() != nil {
			return
		}
		_ = b.attempt(ctx, addr, func(ctx context.Context, c wire.DRPCMetaClient) error { // else the next may know, or the next round
			reply, err := c.GetMap(ctx, &wire.GetMapRequest{})
			if err != nil || reply.GetMap() == nil {
				return err
			}
			m, err := reply.GetMap().ToDFS()
			if err == nil {
				b.Update(m)
			}
			return err
		})
	}
}

// follow notes the leader that an error hints at and returns its address.
func (b *Book) follow(g dfs.GroupID, err error) string {
	var e *dfs.Error
	if !errors.As(err, &e) {
		return ""
	}
	b.SetLeader(g, e.LeaderHint)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addrs[e.LeaderHint]
}

func giveUp(ctx context.Context, maybe bool, failures map[string]error) error {
	kind := dfs.Unavailable
	if maybe {
		kind = dfs.Unknown
	}
	var parts []string
	for _, addr := range slices.Sorted(maps.Keys(failures)) {
		parts = append(parts, fmt.Sprintf("%s: %v", addr, failures[addr]))
	}
	return &dfs.Error{Kind: kind, Op: "ask the meta nodes", Text: strings.Join(parts, "; "), Err: ctx.Err()}
}
