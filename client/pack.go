package client

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"dfsd/dfs"
)

// packer compresses one chunk to the beginning of dst and returns what it wrote
// there. REQUIRES: dst has room for slack.
type packer func(dst, chunk []byte) []byte

// unpacker fills the whole of dst with what a compressed chunk holds. It fails when
// the chunk holds more or less, and writes and keeps nothing beyond dst then.
type unpacker func(dst, chunk []byte) error

// packers are the compressors of a client. Those of zstd have memory of their own,
// some 1 MiB each, and are kept between blocks: as many as there are blocks in hand
// at a time, and they start no goroutines.
type packers struct {
	encoders, decoders sync.Pool // of *zstd.Encoder and *zstd.Decoder
}

// packer returns the compressor of a codec that is known and not none; done gives
// it back.
func (p *packers) packer(codec dfs.Codec) (pack packer, done func()) {
	if codec == dfs.CodecS2 {
		return s2.Encode, func() {}
	}
	enc, ok := p.encoders.Get().(*zstd.Encoder)
	if !ok {
		enc = newEncoder()
	}
	return func(dst, chunk []byte) []byte { return enc.EncodeAll(chunk, dst[:0]) }, func() { p.encoders.Put(enc) }
}

// unpacker returns the decompressor of a codec; done gives it back.
func (p *packers) unpacker(codec dfs.Codec) (unpack unpacker, done func()) {
	switch codec {
	case dfs.CodecS2:
		return unpackS2, func() {}
	case dfs.CodecZstd:
		dec, ok := p.decoders.Get().(*zstd.Decoder)
		if !ok {
			dec = newDecoder()
		}
		return func(dst, chunk []byte) error { return unpackZstd(dec, dst, chunk) }, func() { p.decoders.Put(dec) }
	}
	return func(_, _ []byte) error { return fmt.Errorf("chunks of codec %v are not compressed", codec) }, func() {}
}

func unpackS2(dst, chunk []byte) error {
	n, err := s2.DecodedLen(chunk)
	if err != nil {
		return err
	}
	if n != len(dst) {
		return fmt.Errorf("it holds %d", n)
	}
	_, err = s2.Decode(dst, chunk)
	return err
}

func unpackZstd(dec *zstd.Decoder, dst, chunk []byte) error {
	out, err := dec.DecodeAll(chunk, dst[:0:len(dst)])
	if err != nil {
		return err
	}
	if len(out) != len(dst) {
		return fmt.Errorf("it holds %d", len(out))
	}
	return nil // in place: the decoder keeps to the room that it has
}

// newEncoder makes what compresses chunks one by one: without checksums, since
// chunks have their own.
func newEncoder() *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(dfs.ChunkSize),
		zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		panic("client: options of a zstd encoder: " + err.Error())
	}
	return enc
}

// newDecoder makes what inflates chunks, to a chunk at the most whatever they say.
func newDecoder() *zstd.Decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(dfs.ChunkSize), zstd.WithDecoderMaxMemory(dfs.ChunkSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("client: options of a zstd decoder: " + err.Error())
	}
	return dec
}
