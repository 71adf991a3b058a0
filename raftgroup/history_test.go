package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"dfsd/dfs"
)

// history is what clients asked for and what they were told.
type history struct {
	clock atomic.Int64

	mu    sync.Mutex
	ops   []porcupine.Operation
	acked map[string]place // appended for certain
	never map[string]place // refused for certain
	all   int
}

// place is where an appended word belongs.
type place struct {
	g   dfs.GroupID
	key string
}

// listInput is an append of a word to a list, or a read of it.
type listInput struct {
	at   place
	word string // "" reads
}

// listModel is one list: a state is its text.
func listModel() porcupine.Model {
	return porcupine.Model{
		Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
			by := map[place][]porcupine.Operation{}
			for _, op := range ops {
				at := op.Input.(listInput).at
				by[at] = append(by[at], op)
			}
			var out [][]porcupine.Operation
			for _, l := range by {
				out = append(out, l)
			}
			return out
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			list, in := state.(string), input.(listInput)
			next := list + in.word
			// An output of nil is one that nobody was told.
			return output == nil || output.(string) == next, next
		},
	}
}

func newHistory() *history {
	return &history{acked: map[string]place{}, never: map[string]place{}}
}

// record adds an operation. certain says that its outcome is known.
func (h *history) record(in listInput, call int64, out string, err error, certain bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all++
	op := porcupine.Operation{Input: in, Call: call, Output: any(out), Return: h.clock.Add(1)}
	switch {
	case err == nil && certain:
		if in.word != "" {
			h.acked[in.word] = in.at
		}
	case in.word == "":
		return // a failed read says nothing
	case certain && dfs.KindOf(err).Retryable():
		h.never[in.word] = in.at
		return
	default:
		op.Output, op.Return = nil, math.MaxInt64
	}
	h.ops = append(h.ops, op)
}

// check compares the history with what the lists hold in the end.
func (h *history) check(final func(place) (string, error)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	lists := map[place][]string{}
	count := func(word string, at place) (int, error) {
		if lists[at] == nil {
			text, err := final(at)
			if err != nil {
				return 0, err
			}
			lists[at] = append(strings.Split(text, ","), "")
			for _, w := range lists[at] {
				if n := len(slices.DeleteFunc(slices.Clone(lists[at]), func(o string) bool { return o != w })); w != "" && n > 1 {
					return 0, fmt.Errorf("%v %s: %q was applied %d times", at.g, at.key, w, n)
				}
			}
		}
		if slices.Contains(lists[at], strings.TrimSuffix(word, ",")) {
			return 1, nil
		}
		return 0, nil
	}
	for word, at := range h.acked {
		if n, err := count(word, at); err != nil || n != 1 {
			return fmt.Errorf("%v %s: %q was acknowledged and is there %d times (%v)", at.g, at.key, word, n, err)
		}
	}
	for word, at := range h.never {
		if n, err := count(word, at); err != nil || n != 0 {
			return fmt.Errorf("%v %s: %q was refused for certain and is there %d times (%v)", at.g, at.key, word, n, err)
		}
	}
	switch porcupine.CheckOperationsTimeout(listModel(), h.ops, 0) {
	case porcupine.Ok:
		return nil
	default:
		return fmt.Errorf("the history of %d operations is not linearizable", len(h.ops))
	}
}

// client appends and reads until stop, on whatever node it likes.
func (c *cluster) client(h *history, id int, rnd func(n int) int, keys int, stop <-chan struct{}) {
	leaders := map[dfs.GroupID]dfs.NodeID{}
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		at := place{c.groups[rnd(len(c.groups))], fmt.Sprintf("k%d", rnd(keys))}
		all := c.all()
		on := all[rnd(len(all))]
		in := listInput{at: at}
		if rnd(10) < 6 {
			in.word = fmt.Sprintf("%d.%d,", id, n)
			if l := leaders[at.g]; l != 0 && rnd(10) > 0 {
				on = l
			}
		}
		if err := c.run(h, on, in); err != nil {
			leaders[at.g] = 0
			var e *dfs.Error
			if errors.As(err, &e) {
				leaders[at.g] = e.LeaderHint
			}
			time.Sleep(time.Duration(1+rnd(100)) * time.Millisecond)
		}
		time.Sleep(time.Duration(rnd(100)) * time.Millisecond)
	}
}

// run executes one operation on a node and records it.
func (c *cluster) run(h *history, on dfs.NodeID, in listInput) error {
	c.mu.Lock()
	n := c.nodes[on]
	host := n.host
	c.mu.Unlock()
	if host == nil {
		return dfs.Errorf(dfs.Unavailable, "run", "node %v is down", on)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	call := h.clock.Add(1)
	var out []byte
	var err error
	if in.word != "" {
		out, err = host.Propose(ctx, in.at.g, []byte("app "+in.at.key+" "+in.word))
	} else {
		err = host.Read(ctx, in.at.g, func(r Reader) (err error) {
			out, _, err = r.Get([]byte(in.at.key))
			return err
		})
	}
	// What a node says after its disk was cloned was not said by the node that
	// goes on from the clone.
	h.record(in, call, string(out), err, !n.dead.Load())
	return err
}
