package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"sync/atomic"
	"time"

	"dfsd/client"
)

// How many files the reading figures choose from, by size: enough for every
// store to hold some, and no more than the page cache does.
const (
	smallFiles = 256
	largeFiles = 8
)

func clientFigures() []figure {
	open := func(name, of string, size, workers int, fn func(context.Context, *env, *clientRig) (*pair, error)) figure {
		return figure{name: "client/" + name, of: of, bytes: size, open: func(ctx context.Context, e *env) (*pair, error) {
			return openClient(ctx, e, &clientRig{name: "client/" + name, size: size, workers: workers}, fn)
		}}
	}
	put := func(name string, size, workers int) figure {
		return open(name, "local-files", size, workers, openClientPuts)
	}
	get := func(name string, size, workers int) figure {
		return open(name, "loopback", size, workers, openClientGets)
	}
	stat := func(name string, workers int) figure { return open(name, "loopback", 0, workers, openClientStats) }
	return []figure{
		put("put-4k-w1", 4<<10, 1), put("put-4k-w16", 4<<10, 16), put("put-4m-w1", 4<<20, 1),
		get("get-4k-w1", 4<<10, 1), get("get-4k-w16", 4<<10, 16), get("get-4m-w1", 4<<20, 1),
		put("create-w1", 0, 1), put("create-w16", 0, 16),
		stat("stat-w1", 1), stat("stat-w16", 16),
	}
}

// clientRig is what a figure of the client has in the cluster.
type clientRig struct {
	name          string // of the figure, and of its directory in the cluster
	size, workers int

	cluster *cluster
	local   string         // directory of the baseline
	dirs    []client.Inode // in the cluster, one for each worker
	next    atomic.Uint64  // files made
}

// openClient makes the directories of a figure, and then what fn does.
func openClient(ctx context.Context, e *env, r *clientRig, fn func(context.Context, *env, *clientRig) (*pair, error)) (_ *pair, err error) {
	if r.cluster, err = e.cluster(ctx, wholeCluster); err != nil {
		return nil, err
	}
	if r.local, err = e.subdir(r.name); err != nil {
		return nil, err
	}
	for i := range r.workers {
		dir := path.Join("/", r.name, workerName(i))
		if _, err := r.cluster.client.MkdirAll(ctx, dir, 0o755); err != nil {
			return nil, err
		}
		h, err := r.cluster.client.Resolve(ctx, dir)
		if err != nil {
			return nil, err
		}
		r.dirs = append(r.dirs, h)
	}
	p, err := fn(ctx, e, r)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(r.local))
	}
	done := p.close
	p.cpu = r.cluster.cpu
	p.close = func() error {
		err := os.RemoveAll(r.local)
		if done != nil {
			err = errors.Join(err, done())
		}
		return err
	}
	return p, nil
}

// put makes the n-th file in the directory of a worker.
func (r *clientRig) put(ctx context.Context, e *env, worker int, n uint64) error {
	var content io.Reader
	if r.size > 0 {
		content = bytes.NewReader(e.piece(n, r.size))
	}
	_, err := r.dirs[worker].PutFile(ctx, fileName(n), client.PutOptions{Mode: 0o644}, content)
	return err
}

// openClientPuts measures files made whole, with content or empty, beside files
// made and synced in the local file system.
func openClientPuts(_ context.Context, e *env, r *clientRig) (*pair, error) {
	base, err := rawFiles(e, r.local, r.size, r.workers)
	if err != nil {
		return nil, err
	}
	return &pair{base: base, work: func(ctx context.Context, d time.Duration) (sample, error) {
		return loop(ctx, d, r.workers, func(ctx context.Context, worker int) error {
			return r.put(ctx, e, worker, r.next.Add(1))
		})
	}}, nil
}

// fill makes the files that a reading figure chooses from, and returns their
// paths.
func (r *clientRig) fill(ctx context.Context, e *env) (paths []string, err error) {
	n := smallFiles
	if r.size >= 1<<20 {
		n = largeFiles
	}
	for i := range n {
		worker := i % r.workers
		if err := r.put(ctx, e, worker, uint64(i)); err != nil {
			return nil, err
		}
		paths = append(paths, path.Join("/", r.name, workerName(worker), fileName(uint64(i))))
	}
	return paths, nil
}

// openClientGets measures whole files, found by their paths, beside as many bytes
// over as many sockets.
func openClientGets(ctx context.Context, e *env, r *clientRig) (*pair, error) {
	get := func(ctx context.Context, name string) error {
		n, err := r.cluster.client.GetFile(ctx, name, io.Discard)
		if err == nil && n != int64(r.size) {
			err = fmt.Errorf("%s: %d bytes of %d", name, n, r.size)
		}
		return err
	}
	return openAsking(ctx, e, r, r.size, get)
}

// openClientStats measures attributes of files, found by their paths, beside
// bare requests over as many sockets.
func openClientStats(ctx context.Context, e *env, r *clientRig) (*pair, error) {
	stat := func(ctx context.Context, name string) error {
		_, err := r.cluster.client.Stat(ctx, name)
		return err
	}
	return openAsking(ctx, e, r, rawRequest, stat)
}

// openAsking measures what only asks, beside requests whose answers have size
// bytes.
func openAsking(ctx context.Context, e *env, r *clientRig, size int, ask func(ctx context.Context, path string) error) (*pair, error) {
	paths, err := r.fill(ctx, e)
	if err != nil {
		return nil, err
	}
	raw, err := openRawSocket(r.workers, e.data)
	if err != nil {
		return nil, err
	}
	return &pair{base: raw.rounds(size), close: raw.close, work: func(ctx context.Context, d time.Duration) (sample, error) {
		return loop(ctx, d, r.workers, func(ctx context.Context, _ int) error {
			return ask(ctx, paths[rand.IntN(len(paths))])
		})
	}}, nil
}
