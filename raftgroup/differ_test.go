package raftgroup

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
)

// liar is a state machine that writes something else once it is told to.
type liar struct {
	kvMachine
	lies *atomic.Int32 // how many more
}

func (l liar) Apply(tx Tx, e Entry) ([]byte, error) {
	out, err := l.kvMachine.Apply(tx, e)
	if err == nil && l.lies.Load() > 0 && l.lies.Add(-1) >= 0 {
		err = tx.Set([]byte("a"), []byte("a lie"))
	}
	return out, err
}

// TestDifferingStateIsFetched gives one member another state than the others have: the
// leader, or another. It is found out, and has the right one in the end.
func TestDifferingStateIsFetched(t *testing.T) {
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader=%v", leads), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				lies := map[dfs.NodeID]*atomic.Int32{1: {}, 2: {}, 3: {}}
				c.tune = func(o *Options) {
					o.StateMachine = func(dfs.GroupID) StateMachine { return liar{lies: lies[o.Node]} }
				}
				defer c.stop()
				c.boot()
				c.propose(0, "put a 1")
				victim := c.leader(0)
				if !leads {
					victim = victim%3 + 1
				}
				lies[victim].Store(1)
				for i := range 3 * checkEvery {
					c.propose(0, fmt.Sprintf("put k%d %d", i, i))
				}
				time.Sleep(20 * time.Second)
				if leads && c.leader(0) == victim {
					t.Error("who lied leads still")
				}
				c.propose(0, "put b 2")
				c.converge(c.all()...)
				if got, err := c.read(victim, 0, "a"); got != "1" || err != nil {
					t.Errorf("it reads %q, %v", got, err)
				}
				// For good.
				c.crash(victim, 0)
				c.propose(0, "put b 3")
				c.converge(c.all()...)
			})
		})
	}
}

// TestDifferingStatesOfTwo: nobody knows who is right, and who is in doubt is
// quarantined.
func TestDifferingStatesOfTwo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 2, 0)
		lies := map[dfs.NodeID]*atomic.Int32{1: {}, 2: {}}
		c.tune = func(o *Options) {
			o.StateMachine = func(dfs.GroupID) StateMachine { return liar{lies: lies[o.Node]} }
		}
		defer c.stop()
		c.boot()
		c.propose(0, "put a 1")
		victim := c.leader(0)%2 + 1
		lies[victim].Store(1)
		for i := range 3 * checkEvery {
			c.propose(0, fmt.Sprintf("put k%d %d", i, i))
		}
		time.Sleep(5 * time.Second)
		wantKind(t, c.h(victim).ReadLocal(0, func(Reader) error { return nil }), dfs.Unavailable)
		time.Sleep(time.Minute)
		if st, _ := c.h(victim).Status(0); st.Role != RoleQuarantined || !errors.Is(st.Fault, dfs.Corrupt) {
			t.Errorf("it is %+v", st)
		}
	})
}
