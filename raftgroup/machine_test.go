package raftgroup

import (
	"errors"
	"strings"
)

// kvMachine is a key-value store with three commands:
//
//	put KEY VALUE   replies the old value
//	app KEY VALUE   appends to the value, replies the new one
//	bad             breaks an invariant
type kvMachine struct{}

func (kvMachine) Apply(tx Tx, e Entry) ([]byte, error) {
	op, rest, _ := strings.Cut(string(e.Data), " ")
	key, value, _ := strings.Cut(rest, " ")
	old, _, err := tx.Get([]byte(key))
	if err != nil {
		return nil, err
	}
	switch op {
	case "put":
		return old, tx.Set([]byte(key), []byte(value))
	case "app":
		now := append(old, value...)
		return now, tx.Set([]byte(key), now)
	case "panic":
		panic("asked to")
	}
	return nil, errors.New("unknown command")
}
