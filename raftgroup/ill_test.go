package raftgroup

import (
	"context"
	"testing"
	"time"

	"dfsd/dfs"
)

// TestQuarantineOutlivesARecovery: a replica that met a broken invariant is set aside and
// taken back like any other, and stays in quarantine: nothing is recovered from it, and it
// takes no part. It is sound again once its state came anew, or in the next start.
func TestQuarantineOutlivesARecovery(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 0
		c := newCluster(t, 1, 3, g)
		defer c.stop()
		c.boot()
		c.lead(g, 1)
		c.propose(g, "put k v")
		c.converge(1, 2, 3)
		broken := dfs.Errorf(dfs.Internal, "test", "broken")
		ill := func(when string) {
			t.Helper()
			time.Sleep(5 * time.Second)
			st, _ := c.h(2).Status(g)
			if st.Role != RoleQuarantined || st.Fault == nil {
				t.Errorf("%s it is %v, %v", when, st.Role, st.Fault)
			}
			if _, err := c.read(2, g, "k"); dfs.KindOf(err) != dfs.Unavailable {
				t.Errorf("%s it serves: %v", when, err)
			}
			s := c.survivor(2, g)
			if s.Unfit == nil {
				t.Errorf("%s it may be recovered from: %+v", when, s)
			}
			rec := stepOf(s, 9)
			rec.Term = s.Term
			wantKind(t, c.h(2).Recover(rec), dfs.Unavailable)
		}
		c.h(2).replica(g).quarantine(broken)
		ill("at first")
		if err := c.setAside(2, g, 7); err != nil {
			t.Fatal(err)
		}
		ill("set aside")
		if err := c.h(2).TakeBack(g); err != nil {
			t.Fatal(err)
		}
		ill("taken back")
		c.crash(2, 0)
		c.propose(g, "put k again")
		c.converge(1, 2, 3)

		// Its group goes on without it: it begins anew, with nothing of what it was.
		c.h(2).replica(g).quarantine(broken)
		c.isolate(1, true)
		if _, err := c.recoverGroup(g, 10, 2, 3); err != nil {
			t.Fatal(err)
		}
		c.aloneOn(3, g)
		c.growFrom(g, 2)
		c.converge(2, 3)
	})
}

// TestDestroyEndedReplica: a replica whose group has moved on is destroyed though it takes
// no part any more, set aside or in quarantine, and its node may have another one, in a
// later term than the old one ever knew.
func TestDestroyEndedReplica(t *testing.T) {
	const g = 1
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, c *cluster)
	}{
		{"set aside", func(t *testing.T, c *cluster) {
			c.isolate(3, true)
			c.retry("set aside", func() error { return c.setAside(3, g, 7) })
			c.isolate(3, false)
		}},
		{"in quarantine", func(t *testing.T, c *cluster) {
			c.h(3).replica(g).quarantine(dfs.Errorf(dfs.Internal, "test", "broken"))
		}},
		{"both", func(t *testing.T, c *cluster) {
			c.h(3).replica(g).quarantine(dfs.Errorf(dfs.Internal, "test", "broken"))
			if err := c.setAside(3, g, 7); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 4, g)
				defer c.stop()
				swapped(t, c, g, false)
				tc.end(t, c)
				old := c.survivor(3, g)
				notConfirmed := func(context.Context) (bool, error) { return false, dfs.Errorf(dfs.Unavailable, "confirm", "no") }
				wantKind(t, c.h(3).DestroyReplica(t.Context(), g, notConfirmed), dfs.Unavailable)
				if _, ok := c.h(3).Leader(g); !ok {
					t.Fatal("it was destroyed without a word of the leader")
				}
				if err := c.h(3).DestroyReplica(t.Context(), g, c.confirm(g, 3)); err != nil {
					t.Fatal(err)
				}
				wantKind(t, c.h(3).DestroyReplica(t.Context(), g, c.confirm(g, 3)), dfs.NotExist)
				if log, state := rowsOf(t, c.h(3), g); log+state != 0 {
					t.Errorf("%d rows of the log and %d of the state are left", log, state)
				}
				c.crash(3, 0)
				if err := c.h(3).JoinGroup(g); err != nil {
					t.Fatal(err)
				}
				if st, _ := c.h(3).Status(g); st.Term <= old.Term {
					t.Errorf("it begins in term %d, the old one was in %d", st.Term, old.Term)
				}
				c.grow(g, 3)
				c.propose(g, "put k1 again")
				c.converge(1, 2, 3, 4)
			})
		})
	}
}
