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
const restReady = 3

// putSegments bounds what a round of puts writes, in segments: less than those
// that are ready, since the raw file is ready too.
const putSegments = 2

// settleTime bounds the wait for an engine's background work.
const settleTime = 30 * time.Second

// engineRig is an engine with nothing around it.
type engineRig struct {
	store    *engine.Store
	disk     *disk
	dir      string
	capacity uint64        // of the store; 0: all of the disk
	next     atomic.Uint64 // blocks put

	base func() error // closes the baseline; nil: nothing to close
}

func openEngine(e *env, name string, capacity uint64) (*engineRig, error) {
	dir, err := e.subdir(name)
	if err != nil {
		return nil, err
	}
	r := &engineRig{dir: dir, disk: newDisk(), capacity: capacity}
	if r.store, err = r.open(e); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, nil
}

// open opens the rig's store.
func (r *engineRig) open(e *env) (*engine.Store, error) {
	s, err := engine.Open(engine.Options{
		FS: r.disk, Dir: filepath.Join(r.dir, "store"), PID: os.Getpid(),
		NewMark:     func() uint64 { return rand.Uint64() | 1 },
		SegmentSize: e.opts.segment, Capacity: r.capacity,
	})
	if err != nil {
		return nil, err
	}
	if err := s.SetEpochs(1, []engine.PGEpoch{{PG: enginePG, Newest: 1}}); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
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

// openEnginePuts measures durable puts beside a loop that writes as many bytes in
// as many data syncs of the same sizes to a file like a segment.
func openEnginePuts(e *env, name string, size, workers int) (_ *pair, err error) {
	r, err := openEngine(e, name, 0)
	if err != nil {
		return nil, err
	}
	raw, err := openRawAppend(r.dir, e.opts.segment, e.data)
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.base = raw.file.Close
	var ops float64
	return &pair{
		work: func(ctx context.Context, d time.Duration) (sample, error) {
			end := r.next.Load() + uint64(putSegments*e.opts.segment)/uint64(size)
			r.disk.takeSyncs()
			s, err := loop(ctx, d, workers, func(ctx context.Context, _ int) error {
				if r.next.Load() >= end {
					return errEnough
				}
				return r.put(ctx, e.piece(r.next.Load(), size))
			})
			ops = s.ops
			return s, err
		},
		base: func(ctx context.Context, d time.Duration) (sample, error) {
			return raw.replay(ctx, r.disk.takeSyncs(), ops)
		},
		settle: r.settle, cpu: selfCPU, close: r.close,
	}, nil
}

// fill puts so many blocks more, from many callers.
func (r *engineRig) fill(ctx context.Context, e *env, blocks uint64, size int) error {
	const writers = 64
	end := r.next.Load() + blocks
	_, err := loop(ctx, fillTime, writers, func(ctx context.Context, _ int) error {
		if r.next.Load() >= end {
			return errEnough
		}
		return r.putWhenRoom(ctx, e.piece(r.next.Load(), size))
	})
	if err == nil && r.next.Load() < end {
		err = fmt.Errorf("%d blocks were not put in %v", blocks, fillTime)
	}
	return err
}

// putWhenRoom puts a block, and waits for compaction while there is no room.
func (r *engineRig) putWhenRoom(ctx context.Context, payload []byte) error {
	for begun := time.Now(); ; {
		err := r.put(ctx, payload)
		if dfs.KindOf(err) != dfs.NoSpace || time.Since(begun) > settleTime {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// fillTime bounds how long a store is filled before something is measured.
const fillTime = time.Hour

// openEngineGets measures reads of blocks that the page cache holds beside reads
// of as many bytes of one file, checked too.
func openEngineGets(ctx context.Context, e *env, name string, size, workers int) (*pair, error) {
	r, err := openEngine(e, name, 0)
	if err != nil {
		return nil, err
	}
	blocks := len(e.data) / size
	if err := r.fill(ctx, e, uint64(blocks), size); err != nil {
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
