package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
)

func engineFigures() []figure {
	put := func(name string, size, workers int) figure {
		return figure{name: "engine/" + name, of: "raw-append", bytes: size, open: func(ctx context.Context, e *env) (*pair, error) {
			return openEnginePuts(e, "engine/"+name, size, workers)
		}}
	}
	get := func(name string, workers int) figure {
		return figure{name: "engine/" + name, of: "pread-crc", bytes: 4 << 10, open: func(ctx context.Context, e *env) (*pair, error) {
			return openEngineGets(ctx, e, "engine/"+name, 4<<10, workers)
		}}
	}
	return []figure{
		put("put-4k-w1", 4<<10, 1), put("put-4k-w16", 4<<10, 16), put("put-4k-w64", 4<<10, 64), put("put-1m-w4", 1<<20, 4),
		get("get-4k-w1", 1), get("get-4k-w16", 16),
	}
}

// enginePG is the one placement group that blocks are put into.
const enginePG dfs.PGID = 1

// restReady is how many zero-filled segments a store at rest has.
const restReady = 2

// settleTime bounds the wait for an engine's background work.
const settleTime = 30 * time.Second

// engineRig is an engine with nothing around it.
type engineRig struct {
	store *engine.Store
	dir   string
	next  atomic.Uint64 // blocks put

	base func() error // closes the baseline; nil: nothing to close

	// Of the last round: what its data syncs made durable at a time.
	batch   int     // bytes
	perSync float64 // puts
}

func openEngine(e *env, name string) (*engineRig, error) {
	dir, err := e.subdir(name)
	if err != nil {
		return nil, err
	}
	r := &engineRig{dir: dir}
	r.store, err = engine.Open(engine.Options{
		FS: vfs.Default, Dir: filepath.Join(dir, "store"), PID: os.Getpid(),
		NewMark:     func() uint64 { return rand.Uint64() | 1 },
		SegmentSize: e.opts.segment,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := r.store.SetEpochs(1, []engine.PGEpoch{{PG: enginePG, Newest: 1}}); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *engineRig) close() error {
	errs := []error{r.store.Close()}
	if r.base != nil {
		errs = append(errs, r.base())
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// settle waits until a store has zero-filled segments ahead: the baseline shares
// the disk with what fills them.
func (r *engineRig) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, fmt.Errorf("no %d segments are ready after %v", restReady, settleTime))
	defer cancel()
	for {
		st := r.store.Stats()
		if st.Err != nil {
			return st.Err
		}
		if st.Ready >= restReady {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// put stores one block that no other has the name of.
func (r *engineRig) put(ctx context.Context, payload []byte) error {
	id := blockID(r.next.Add(1))
	info := dfs.BlockInfo{Length: uint32(len(payload)), Codec: dfs.CodecNone}
	for at := 0; at < len(payload); at += dfs.ChunkSize {
		chunk := payload[at:min(at+dfs.ChunkSize, len(payload))]
		info.Chunks = append(info.Chunks, dfs.Chunk{Len: uint32(len(chunk)), Sum: dfs.ChunkSum(id, 0, len(info.Chunks), chunk)})
	}
	return r.store.Put(ctx, engine.PutRequest{ID: id, Epoch: 1, Info: info, Payload: payload})
}

// blockID names the n-th block.
func blockID(n uint64) dfs.BlockID {
	return dfs.BlockID{PG: enginePG, Ino: dfs.MakeIno(1, 2), Session: 1, Counter: n}
}

// openEnginePuts measures durable puts beside a loop that writes the same bytes,
// with as many of them to a data sync, to a file like a segment.
func openEnginePuts(e *env, name string, size, workers int) (_ *pair, err error) {
	r, err := openEngine(e, name)
	if err != nil {
		return nil, err
	}
	raw, err := openRawAppend(r.dir, e.opts.segment, e.data)
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.base = raw.file.Close
	return &pair{
		work: func(ctx context.Context, d time.Duration) (sample, error) {
			before := r.store.Stats()
			s, err := loop(ctx, d, workers, func(ctx context.Context, _ int) error {
				return r.put(ctx, e.piece(r.next.Load(), size))
			})
			after := r.store.Stats()
			if syncs := float64(after.Syncs - before.Syncs); syncs > 0 {
				r.batch = int(float64(after.BytesWritten-before.BytesWritten)/syncs+4095) &^ 4095
				r.perSync = float64(after.Puts-before.Puts) / syncs
			}
			return s, err
		},
		base: func(ctx context.Context, d time.Duration) (sample, error) {
			return raw.round(ctx, d, r.batch, r.perSync)
		},
		settle: r.settle, cpu: selfCPU, close: r.close,
	}, nil
}

// openEngineGets measures reads of blocks that the page cache holds beside reads
// of as many bytes of one file, checked too.
func openEngineGets(ctx context.Context, e *env, name string, size, workers int) (*pair, error) {
	r, err := openEngine(e, name)
	if err != nil {
		return nil, err
	}
	blocks := len(e.data) / size
	const writers = 64
	_, err = loop(ctx, maxRound, writers, func(ctx context.Context, _ int) error {
		if r.next.Load() >= uint64(blocks) {
			return errEnough
		}
		return r.put(ctx, e.piece(r.next.Load(), size))
	})
	if !errors.Is(err, errEnough) {
		return nil, errors.Join(fmt.Errorf("put blocks to read: %w", err), r.close())
	}
	base, done, err := rawReads(filepath.Join(r.dir, "raw"), e.data, size, workers)
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.base = done
	return &pair{
		work: func(ctx context.Context, d time.Duration) (sample, error) {
			return loop(ctx, d, workers, func(ctx context.Context, _ int) error {
				got, err := r.store.Get(ctx, blockID(1+rand.Uint64N(uint64(blocks))), 0, 0, uint32(size))
				if err != nil {
					return err
				}
				defer got.Release()
				if len(got.Data) != size {
					return fmt.Errorf("%d bytes of %d", len(got.Data), size)
				}
				return nil
			})
		},
		base: base, settle: r.settle, cpu: selfCPU, close: r.close,
	}, nil
}

// errEnough ends a loop that has done what it should.
var errEnough = errors.New("enough")
