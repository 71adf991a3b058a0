package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
)

// rawAppend writes to a file that was made in the way of a segment, and begins
// again at its front when it is full.
type rawAppend struct {
	file     vfs.File
	size, at int64
	data     []byte
}

func openRawAppend(dir string, size int64, data []byte) (*rawAppend, error) {
	f, err := engine.PrepareFile(vfs.Default, filepath.Join(dir, "raw"), size)
	if err != nil {
		return nil, err
	}
	return &rawAppend{file: f, size: size, data: data}, nil
}

// replay writes and syncs so many bytes at a time, and counts as so many
// operations in all.
func (r *rawAppend) replay(ctx context.Context, syncs []int, ops float64) (sample, error) {
	if len(syncs) == 0 {
		return sample{}, fmt.Errorf("the round before synced nothing")
	}
	begun := time.Now()
	for _, n := range syncs {
		if ctx.Err() != nil {
			return sample{}, context.Cause(ctx)
		}
		if n > len(r.data) {
			return sample{}, fmt.Errorf("a sync of %d bytes", n)
		}
		if r.at+int64(n) > r.size {
			r.at = 0
		}
		if _, err := r.file.WriteAt(r.data[:n], r.at); err != nil {
			return sample{}, err
		}
		if err := r.file.SyncData(); err != nil {
			return sample{}, err
		}
		r.at += int64(n)
	}
	return sample{ops: ops, took: time.Since(begun)}, nil
}

// rawReads returns rounds of reading and checking pieces of a file in the page
// cache.
func rawReads(name string, data []byte, size, workers int) (func(context.Context, time.Duration) (sample, error), func() error, error) {
	if err := os.WriteFile(name, data, 0o644); err != nil {
		return nil, nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	sums := make([]uint32, len(data)/size)
	for i := range sums {
		sums[i] = crc32.Checksum(data[i*size:(i+1)*size], dfs.Castagnoli)
	}
	buffers := make([][]byte, workers)
	for i := range buffers {
		buffers[i] = make([]byte, size)
	}
	round := func(ctx context.Context, d time.Duration) (sample, error) {
		return loop(ctx, d, workers, func(_ context.Context, worker int) error {
			i := rand.IntN(len(sums))
			if _, err := f.ReadAt(buffers[worker], int64(i)*int64(size)); err != nil {
				return err
			}
			if crc32.Checksum(buffers[worker], dfs.Castagnoli) != sums[i] {
				return fmt.Errorf("%s: other bytes than were written", name)
			}
			return nil
		})
	}
	return round, f.Close, nil
}

// rawFiles returns rounds of making files in the local file system, each synced,
// in a directory for each worker.
func rawFiles(e *env, dir string, size, workers int) (func(context.Context, time.Duration) (sample, error), error) {
	for i := range workers {
		if err := os.MkdirAll(filepath.Join(dir, workerName(i)), 0o755); err != nil {
			return nil, err
		}
	}
	var next atomic.Uint64
	one := func(worker int) (err error) {
		n := next.Add(1)
		f, err := os.OpenFile(filepath.Join(dir, workerName(worker), fileName(n)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if size > 0 {
			if _, err := f.Write(e.piece(n, size)); err != nil {
				return err
			}
		}
		return f.Sync()
	}
	return func(ctx context.Context, d time.Duration) (sample, error) {
		return loop(ctx, d, workers, func(_ context.Context, worker int) error { return one(worker) })
	}, nil
}

// rawRequest is the length of a request over a bare socket: its first 4 bytes
// say how long the answer is to be.
const rawRequest = 64

// rawSocket is a server over loopback and connections to it.
type rawSocket struct {
	listener net.Listener
	conns    []net.Conn
	work     sync.WaitGroup // the server's goroutines
}

// openRawSocket starts a server that answers with the first bytes of data.
func openRawSocket(workers int, data []byte) (_ *rawSocket, err error) {
	r := &rawSocket{}
	if r.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	r.work.Go(func() {
		for {
			conn, err := r.listener.Accept()
			if err != nil {
				return // closed
			}
			r.work.Go(func() {
				defer conn.Close()
				answer(conn, data)
			})
		}
	})
	for range workers {
		conn, err := net.Dial("tcp", r.listener.Addr().String())
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.conns = append(r.conns, conn)
	}
	return r, nil
}

// answer serves one connection until it is closed.
func answer(conn net.Conn, data []byte) {
	var req [rawRequest]byte
	for {
		if _, err := io.ReadFull(conn, req[:]); err != nil {
			return
		}
		n := min(int(binary.BigEndian.Uint32(req[:])), len(data))
		if _, err := conn.Write(data[:n]); err != nil {
			return
		}
	}
}

// rounds returns rounds of requests, one at a time on each connection, each for
// size bytes.
func (r *rawSocket) rounds(size int) func(context.Context, time.Duration) (sample, error) {
	buffers := make([][]byte, len(r.conns))
	for i := range buffers {
		buffers[i] = make([]byte, size)
	}
	var req [rawRequest]byte
	binary.BigEndian.PutUint32(req[:], uint32(size))
	return func(ctx context.Context, d time.Duration) (sample, error) {
		return loop(ctx, d, len(r.conns), func(_ context.Context, worker int) error {
			if _, err := r.conns[worker].Write(req[:]); err != nil {
				return err
			}
			_, err := io.ReadFull(r.conns[worker], buffers[worker])
			return err
		})
	}
}

func (r *rawSocket) close() error {
	errs := []error{r.listener.Close()}
	for _, c := range r.conns {
		errs = append(errs, c.Close())
	}
	r.work.Wait()
	return errors.Join(errs...)
}

// workerName and fileName name what a worker makes, in the cluster and locally.
func workerName(worker int) string { return fmt.Sprintf("w%d", worker) }
func fileName(n uint64) string     { return fmt.Sprintf("f%d", n) }
