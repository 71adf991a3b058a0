package storage

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

// Whatever a head holds, it is refused or describes a block that can be.
func FuzzPutHead(f *testing.F) {
	id := dfs.BlockID{PG: 1, Ino: 2, Session: 3, Counter: 4}
	for _, size := range []int{1, dfs.ChunkSize, 3*dfs.ChunkSize + 1} {
		head, err := proto.Marshal(headOf(id, 3, 5, make([]byte, size)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(head)
		f.Add(head[:len(head)-3])
	}
	f.Add([]byte{0xff})
	st := &store{}
	st.id.Store(3)
	s := &Service{stores: []*store{st}}
	f.Fuzz(func(t *testing.T, head []byte) {
		got, req, err := s.putRequest(head)
		if err != nil {
			return
		}
		n := req.Info.StoredLen()
		if got != st || req.Epoch == 0 || req.ID.PG == 0 || req.Info.Validate() != nil || n < 1 || n > dfs.MaxBlockSize || req.Refill {
			t.Errorf("accepted %+v", req)
		}
	})
}

// Whatever a source answers, it is refused or is the block that was asked for.
func FuzzGetHead(f *testing.F) {
	id := dfs.BlockID{PG: 1, Ino: 2, Session: 3, Counter: 4}
	info := describe(id, make([]byte, 3*dfs.ChunkSize+1))
	head, err := proto.Marshal(&wire.GetHead{Desc: wire.FromBlockInfo(&info), Epoch: 5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head, uint32(info.StoredLen()))
	f.Add(head, uint32(0))
	f.Add(head[:20], uint32(7))
	f.Fuzz(func(t *testing.T, head []byte, stored uint32) {
		req, err := blockOf(head, engine.Entry{ID: id, Epoch: 5, Stored: stored})
		if err != nil {
			return
		}
		n := req.Info.StoredLen()
		if req.ID != id || !req.Refill || req.Epoch == 0 || n < 1 || n > dfs.MaxBlockSize || stored != 0 && (n != int(stored) || req.Epoch != 5) {
			t.Errorf("accepted %+v", req)
		}
	})
}
