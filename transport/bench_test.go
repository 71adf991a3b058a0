package transport_test

import (
	"errors"
	"io"
	"testing"

	"dfsd/dfs"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// benchServer serves over loopback.
func benchServer(b *testing.B) *transport.PeerConn {
	network := transport.TCP()
	lis, err := network.Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := transport.NewServer(transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1))})
	if err := errors.Join(wire.DRPCRegisterMeta(s, &metaService{}), wire.DRPCRegisterBlock(s, &blockService{})); err != nil {
		b.Fatal(err)
	}
	s.Start(lis)
	pool := transport.NewPool(transport.PoolOptions{Network: network, Identity: identity(clientOf(clusterA))})
	b.Cleanup(s.Close)
	b.Cleanup(pool.Close)
	return pool.Conn(lis.Addr().String())
}

// BenchmarkBlockFrames streams frames of 256 KiB over loopback: Put and Get in
// blocks of 4 MiB, and raw, the same bytes over a bare socket.
func BenchmarkBlockFrames(b *testing.B) {
	const frames = 16 // a block of 4 MiB
	b.Run("Put", func(b *testing.B) {
		client := wire.NewDRPCBlockClient(benchServer(b))
		frame := &wire.BlockFrame{Head: make([]byte, 600), Data: make([]byte, dfs.FrameSize)}
		b.SetBytes(frames * dfs.FrameSize)
		b.ReportAllocs()
		for b.Loop() {
			stream, err := client.Put(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			for range frames {
				if err := stream.Send(frame); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := stream.CloseAndRecv(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Get", func(b *testing.B) {
		client := wire.NewDRPCBlockClient(benchServer(b))
		frame := new(wire.BlockFrame)
		b.SetBytes(frames * dfs.FrameSize)
		b.ReportAllocs()
		for b.Loop() {
			stream, err := client.Get(b.Context(), &wire.GetRequest{Length: frames})
			if err != nil {
				b.Fatal(err)
			}
			receive := stream.(interface{ RecvMsg(*wire.BlockFrame) error })
			for err = nil; err == nil; {
				err = receive.RecvMsg(frame)
			}
			if err != io.EOF {
				b.Fatal(err)
			}
		}
	})
	b.Run("raw", func(b *testing.B) {
		network := transport.TCP()
		lis, err := network.Listen("127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer lis.Close()
		go func() {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			buf := make([]byte, frames*dfs.FrameSize)
			for {
				if _, err := io.ReadFull(conn, buf); err != nil {
					return
				}
				if _, err := conn.Write(buf[:1]); err != nil {
					return
				}
			}
		}()
		conn, err := network.Dial(b.Context(), lis.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		buf := make([]byte, dfs.FrameSize)
		b.SetBytes(frames * dfs.FrameSize)
		for b.Loop() {
			for range frames {
				if _, err := conn.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := io.ReadFull(conn, buf[:1]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkUnary is one small call over loopback.
func BenchmarkUnary(b *testing.B) {
	client := wire.NewDRPCMetaClient(benchServer(b))
	in := &wire.ProbeRequest{Name: "x"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Probe(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
}
