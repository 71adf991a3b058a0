package storage

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport"
	"dfsd/transport/wire"
)

func TestMalformedPutsAreRefusedWithoutEffect(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1, func(o *Options) { o.PutMemory = dfs.MaxBlockSize })
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0))
		id, data := c.block(1, 3*dfs.ChunkSize)
		for _, x := range []struct {
			name string
			want dfs.Kind
			edit func(h *wire.PutHead)
		}{
			{"no ID", dfs.Invalid, func(h *wire.PutHead) { h.Id = nil }},
			{"long ID", dfs.Invalid, func(h *wire.PutHead) { h.Id = append(h.Id, 0) }},
			{"no group in the ID", dfs.Invalid, func(h *wire.PutHead) { h.Id = dfs.BlockID{Ino: 1, Counter: 1}.Bytes() }},
			{"no inode in the ID", dfs.Invalid, func(h *wire.PutHead) { h.Id = dfs.BlockID{PG: 1, Counter: 1}.Bytes() }},
			{"unknown group", dfs.Stale, func(h *wire.PutHead) { h.Id = dfs.BlockID{PG: 9, Ino: 1, Counter: 1}.Bytes() }},
			{"shard", dfs.Unsupported, func(h *wire.PutHead) { h.Shard = 1 }},
			{"shard beyond a byte", dfs.Unsupported, func(h *wire.PutHead) { h.Shard = 256 }},
			{"no epoch", dfs.Invalid, func(h *wire.PutHead) { h.Epoch = 0 }},
			{"old epoch", dfs.Stale, func(h *wire.PutHead) { h.Epoch-- }},
			{"no store", dfs.Stale, func(h *wire.PutHead) { h.Store = 0 }},
			{"another node's store", dfs.Stale, func(h *wire.PutHead) { h.Store += 7 }},
			{"no description", dfs.Invalid, func(h *wire.PutHead) { h.Desc = nil }},
			{"no length", dfs.Invalid, func(h *wire.PutHead) { h.Desc.Length = 0 }},
			{"too long", dfs.Invalid, func(h *wire.PutHead) { h.Desc.Length = dfs.MaxBlockSize + 1 }},
			{"a chunk too few", dfs.Invalid, func(h *wire.PutHead) { h.Desc.Chunks = h.Desc.Chunks[8:] }},
			{"half a chunk", dfs.Invalid, func(h *wire.PutHead) { h.Desc.Chunks = h.Desc.Chunks[:20] }},
			{"unknown codec", dfs.Unsupported, func(h *wire.PutHead) { h.Desc.Codec = 7 }},
			{"codec beyond a byte", dfs.Invalid, func(h *wire.PutHead) { h.Desc.Codec = 256 }},
			{"wrong checksum", dfs.Corrupt, func(h *wire.PutHead) { h.Desc.Chunks[9]++; h.Desc.Chunks[15]++; h.Desc.Chunks[9]-- }},
		} {
			h := headOf(id, a.store(0), e, data)
			x.edit(h)
			head, err := proto.Marshal(h)
			if err != nil {
				t.Fatal(err)
			}
			wantKind(t, x.name, c.putFrames(a.store(0), head, data), x.want)
		}
		head, _ := proto.Marshal(headOf(id, a.store(0), e, data))
		wantKind(t, "too little data", c.putFrames(a.store(0), head, data[:len(data)-1]), dfs.Invalid)
		wantKind(t, "too much data", c.putFrames(a.store(0), head, append(data[:len(data):len(data)], 1)), dfs.Invalid)
		wantKind(t, "far too much data", c.putFrames(a.store(0), head, make([]byte, dfs.FrameSize+len(data))), dfs.Invalid)
		wantKind(t, "no head", c.putFrames(a.store(0), nil, data), dfs.Invalid)
		wantKind(t, "no protobuf", c.putFrames(a.store(0), []byte{0xff, 0xff}, data), dfs.Invalid)
		_, _, err := c.get(a.store(0), id, 0, 0)
		wantKind(t, "the block", err, dfs.NotExist)

		// All memory came back: the greatest block still finds room.
		big, bigData := c.block(1, 400_000)
		if err := c.put(a.store(0), big, e, bigData); err != nil {
			t.Error(err)
		}
		if !a.service.memory.TryAcquire(dfs.MaxBlockSize) {
			t.Error("memory of refused puts is held")
		}
		a.service.memory.Release(dfs.MaxBlockSize)
	})
}

func TestMalformedGetsAndScans(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0))
		id, data := c.block(1, 100)
		if err := c.putAll(id, data); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.get(a.store(0), dfs.BlockID{PG: 1}, 0, 0)
		wantKind(t, "no inode", err, dfs.Invalid)
		_, _, err = c.get(a.store(0), id, dfs.MaxBlockSize, 1)
		wantKind(t, "offset past every block", err, dfs.Invalid)
		if _, _, err = c.get(a.store(0), id, 1<<32-1, 1<<32-1); dfs.KindOf(err) != dfs.Invalid {
			t.Error(err)
		}
		if _, got, err := c.get(a.store(0), id, 99, 1<<32-1); err != nil || len(got) != 100 {
			t.Errorf("a range past the end: %d bytes, %v", len(got), err)
		}
		scan := func(pool *transport.Pool, edit func(*wire.ScanRequest)) error {
			req := &wire.ScanRequest{Store: uint32(a.store(0)), Pg: 1, Before: uint64(e), Limit: 10}
			edit(req)
			_, err := c.conn(pool, a.store(0)).Scan(t.Context(), req)
			return err
		}
		if err := scan(c.peer, func(*wire.ScanRequest) {}); err != nil {
			t.Error(err)
		}
		wantKind(t, "a client's scan", scan(c.client, func(*wire.ScanRequest) {}), dfs.Permission)
		wantKind(t, "no limit", scan(c.peer, func(r *wire.ScanRequest) { r.Limit = 0 }), dfs.Invalid)
		wantKind(t, "limit", scan(c.peer, func(r *wire.ScanRequest) { r.Limit = maxScan + 1 }), dfs.Invalid)
		wantKind(t, "no end", scan(c.peer, func(r *wire.ScanRequest) { r.Before = 0 }), dfs.Invalid)
		wantKind(t, "cursor", scan(c.peer, func(r *wire.ScanRequest) { r.Cursor = []byte("x") }), dfs.Invalid)
		wantKind(t, "group", scan(c.peer, func(r *wire.ScanRequest) { r.Pg = 5 }), dfs.Stale)
		wantKind(t, "store", scan(c.peer, func(r *wire.ScanRequest) { r.Store = 99 }), dfs.Stale)

		_, err = c.conn(c.client, a.store(0)).Delete(t.Context(), &wire.DeleteRequest{Store: uint32(a.store(0))})
		wantKind(t, "a client's delete", err, dfs.Permission)
		_, err = c.conn(a.pool, a.store(0)).Delete(t.Context(), &wire.DeleteRequest{Store: uint32(a.store(0))})
		wantKind(t, "a storage node's delete", err, dfs.Permission)
		items := make([]*wire.DeleteItem, maxDeletes+1)
		for i := range items {
			items[i] = &wire.DeleteItem{}
		}
		_, err = c.conn(c.peer, a.store(0)).Delete(t.Context(), &wire.DeleteRequest{Store: uint32(a.store(0)), Items: items})
		wantKind(t, "too many deletes", err, dfs.TooLarge)
		reply, err := c.conn(c.peer, a.store(0)).Delete(t.Context(), &wire.DeleteRequest{Store: uint32(a.store(0)), Items: []*wire.DeleteItem{
			{Id: id.Bytes()}, {Id: id.Bytes()[1:], Epoch: uint64(e)}, {Id: id.Bytes(), Epoch: uint64(e - 1)}, {Id: id.Bytes(), Shard: 1, Epoch: uint64(e)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []dfs.Kind{dfs.Invalid, dfs.Invalid, dfs.Stale, dfs.Unsupported} {
			if got := dfs.Kind(reply.Kinds[i]); got != want {
				t.Errorf("item %d: %v, want %v", i, got, want)
			}
		}
		c.holds(a.store(0), id, data)
	})
}

func TestDeletesShareSyncs(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.newNode("a", 1)
		a.tuneEng = func(_ int, o *engine.Options) { o.FS = &sickFS{FS: o.FS, delay: time.Millisecond} }
		a.run()
		a.ready()
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0))
		var items []*wire.DeleteItem
		for range 500 {
			id, _ := c.block(1, 1)
			items = append(items, &wire.DeleteItem{Id: id.Bytes(), Epoch: uint64(e)})
		}
		before := a.engines[0].Stats().Syncs
		reply, err := c.conn(c.peer, a.store(0)).Delete(t.Context(), &wire.DeleteRequest{Store: uint32(a.store(0)), Items: items})
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range reply.Kinds {
			if k != 0 {
				t.Fatalf("item %d: %v", i, dfs.Kind(k))
			}
		}
		if n := a.engines[0].Stats().Syncs - before; n > 50 {
			t.Errorf("%d deletes took %d syncs", len(items), n)
		}
		if st := a.service.Stats(); st.Deletes != 500 {
			t.Errorf("%d deletes counted", st.Deletes)
		}
	})
}

func TestPutsAreRefusedWhenMemoryIsTaken(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1, func(o *Options) { o.PutMemory = dfs.MaxBlockSize })
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0))
		// A client that says how much it will send, and then sends nothing.
		id, data := c.block(1, dfs.MaxBlockSize)
		head, _ := proto.Marshal(headOf(id, a.store(0), e, data))
		stream, err := c.conn(c.client, a.store(0)).Put(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&wire.BlockFrame{Head: head}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		small, smallData := c.block(1, 10)
		start := time.Now()
		wantKind(t, "a put beside it", c.put(a.store(0), small, e, smallData), dfs.Busy)
		if d := time.Since(start); d < queueWait || d > 2*queueWait {
			t.Errorf("refused after %v", d)
		}
		if a.service.Stats().Busy != 1 {
			t.Errorf("stats %+v", a.service.Stats())
		}
		// It is cut off in the end, and the others go on.
		time.Sleep(receiveLimit)
		if err := c.put(a.store(0), small, e, smallData); err != nil {
			t.Error(err)
		}
		if _, err := stream.CloseAndRecv(); err == nil {
			t.Error("the idle put succeeded")
		}
		_ = stream.Close()
	})
}

func TestCloseEndsAPutUnderWay(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.create(1, dfs.Replicated(1))
		e := c.plane.activate(t, 1, a.store(0))
		id, data := c.block(1, dfs.MaxBlockSize)
		head, _ := proto.Marshal(headOf(id, a.store(0), e, data))
		stream, err := c.conn(c.client, a.store(0)).Put(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&wire.BlockFrame{Head: head}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		start := time.Now()
		a.service.Close()
		if d := time.Since(start); d > time.Second {
			t.Errorf("closing took %v", d)
		}
		wantKind(t, "after Close", c.put(a.store(0), id, e, data[:1]), dfs.Unavailable)
		_ = stream.Close()
	})
}
