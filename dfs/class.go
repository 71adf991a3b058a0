package dfs

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Class is a storage class, a redundancy policy such as rep3 or ec4+2.
// The zero value is none. Replicated: Parity 0, Data copies.
type Class struct {
	Data   uint8 // copies, or data shards of an erasure code (k)
	Parity uint8 // parity shards (m); 0 for replication
}

// Replicated returns the class of n whole copies.
func Replicated(n int) Class { return Class{Data: uint8(n)} }

// ParseClass reads rep1 … rep16 and ecK+M.
func ParseClass(s string) (Class, error) {
	if n, ok := strings.CutPrefix(s, "rep"); ok {
		if v, err := strconv.Atoi(n); err == nil && v >= 1 && v <= 16 {
			return Replicated(v), nil
		}
	}
	if km, ok := strings.CutPrefix(s, "ec"); ok {
		if ks, ms, ok := strings.Cut(km, "+"); ok {
			k, err1 := strconv.Atoi(ks)
			m, err2 := strconv.Atoi(ms)
			if err1 == nil && err2 == nil && k >= 2 && m >= 1 && k+m <= MaxShards {
				return Class{Data: uint8(k), Parity: uint8(m)}, nil
			}
		}
	}
	return Class{}, Errorf(Invalid, "parse", "storage class %q: want rep1 to rep16, or ecK+M with K from 2, M from 1, K+M up to %d", s, MaxShards)
}

// IsZero reports whether no class is given.
func (c Class) IsZero() bool { return c == Class{} }

// Compare orders classes: replicated ones first, by copies.
func (c Class) Compare(d Class) int {
	return cmp.Or(cmp.Compare(c.Parity, d.Parity), cmp.Compare(c.Data, d.Data))
}

// Erasure reports whether the class encodes rather than copies.
func (c Class) Erasure() bool { return c.Parity > 0 }

// Width is the number of stores in a PG of the class.
func (c Class) Width() int { return int(c.Data) + int(c.Parity) }

// MinActing is the fewest acting members that may take a write: rep1 1, rep2 2,
// rep3 2, repN ⌈(N+1)/2⌉, ecK+M min(K+1, K+M).
func (c Class) MinActing() int {
	switch {
	case c.Erasure():
		return min(int(c.Data)+1, c.Width())
	case c.Data == 2:
		return 2
	default:
		return (int(c.Data) + 2) / 2
	}
}

// NeedComplete is how many complete members hold every byte: 1 copy, or K shards.
func (c Class) NeedComplete() int {
	if c.Erasure() {
		return int(c.Data)
	}
	return 1
}

func (c Class) String() string {
	if c.Erasure() {
		return fmt.Sprintf("ec%d+%d", c.Data, c.Parity)
	}
	return fmt.Sprintf("rep%d", c.Data)
}
