package raftgroup

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
)

func TestOneVoterRestarts(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, testGroups(3)...)
		defer c.stop()
		c.boot()
		for i := range 3 {
			for _, g := range c.groups {
				want := strings.Repeat("x", i+1)
				if got := c.propose(g, "app k x"); got != want {
					t.Fatalf("%v: reply %q, want %q", g, got, want)
				}
			}
			c.crash(1, 0)
		}
		for _, g := range c.groups {
			c.leader(g)
			if got, err := c.read(1, g, "k"); err != nil || got != "xxx" {
				t.Fatalf("%v: read %q, %v", g, got, err)
			}
		}
	})
}

func TestThreeVoters(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, testGroups(9)...)
		defer c.stop()
		c.boot()
		for i := range 20 {
			for _, g := range c.groups {
				c.propose(g, fmt.Sprintf("put k%d v%d", i, i))
			}
		}
		for _, g := range c.groups {
			for id := range c.nodes {
				if got, err := c.read(id, g, "k19"); err != nil || got != "v19" {
					t.Fatalf("%v on node %v: read %q, %v", g, id, got, err)
				}
			}
		}
		c.converge(c.all()...)
	})
}

func TestProposeErrors(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.MaxProposalBytes = 100; o.MaxProposals = 2 }
		defer c.stop()
		c.boot()
		c.propose(0, "put a 1")
		lead := c.leader(0)
		follower := lead%3 + 1

		_, err := c.h(follower).Propose(t.Context(), 0, []byte("put a 2"))
		wantKind(t, err, dfs.NotLeader)
		if e, ok := err.(*dfs.Error); !ok || e.LeaderHint != lead {
			t.Errorf("hint of %v: want node %v", err, lead)
		}
		_, err = c.h(lead).Propose(t.Context(), 0, make([]byte, 101))
		wantKind(t, err, dfs.TooLarge)
		_, err = c.h(lead).Propose(t.Context(), 77, nil)
		wantKind(t, err, dfs.NotExist)

		c.isolate(lead, true)
		errs := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := c.h(lead).Propose(context.Background(), 0, []byte("put a 3"))
				errs <- err
			}()
		}
		wantKind(t, <-errs, dfs.Busy)    // the third has no room
		wantKind(t, <-errs, dfs.Unknown) // the others lose their leader
		wantKind(t, <-errs, dfs.Unknown)
		_, err = c.h(lead).Propose(t.Context(), 0, []byte("put a 4"))
		wantKind(t, err, dfs.NotLeader)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantKind(t, c.h(lead).Read(ctx, 0, func(Reader) error { return nil }), dfs.Unavailable)
		c.heal()
		c.converge(c.all()...)
		if got, err := c.read(lead, 0, "a"); err != nil || got != "1" {
			t.Errorf("read %q, %v: the minority's proposals must be gone", got, err)
		}
	})
}

func wantKind(t *testing.T, err error, k dfs.Kind) {
	t.Helper()
	if dfs.KindOf(err) != k {
		t.Errorf("error %v of kind %v, want %v", err, dfs.KindOf(err), k)
	}
}

func TestCloseEndsWhatWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		c.boot()
		c.propose(0, "put a 1")
		lead := c.leader(0)
		c.isolate(lead, true)
		errs := make(chan error, 2)
		go func() {
			_, err := c.h(lead).Propose(context.Background(), 0, []byte("put a 2"))
			errs <- err
		}()
		go func() { errs <- c.h(lead).Read(context.Background(), 0, func(Reader) error { return nil }) }()
		time.Sleep(10 * time.Millisecond)
		if err := c.h(lead).Close(); err != nil {
			t.Error(err)
		}
		kinds := map[dfs.Kind]bool{dfs.KindOf(<-errs): true, dfs.KindOf(<-errs): true}
		if !kinds[dfs.Unknown] || !kinds[dfs.Unavailable] {
			t.Errorf("a proposal and a read ended as %v", kinds)
		}
		_, err := c.h(lead).Propose(t.Context(), 0, nil)
		wantKind(t, err, dfs.Unavailable)
		wantKind(t, c.h(lead).ReadLocal(0, nil), dfs.Unavailable)
	})
}

func TestBrokenInvariantQuarantines(t *testing.T) {
	for _, cmd := range []string{"bad", "panic"} {
		t.Run(cmd, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 1, 0, 1)
				defer c.stop()
				c.boot()
				c.propose(0, "put a 1")
				_, err := c.h(1).Propose(t.Context(), 0, []byte(cmd))
				wantKind(t, err, dfs.Unknown)
				st, _ := c.h(1).Status(0)
				if st.Role != RoleQuarantined || st.Fault == nil {
					t.Errorf("status %+v", st)
				}
				wantKind(t, c.h(1).ReadLocal(0, func(Reader) error { return nil }), dfs.Unavailable)
				_, err = c.h(1).Propose(t.Context(), 0, []byte("put a 2"))
				wantKind(t, err, dfs.Unavailable)
				c.propose(1, "put a 1") // the other group does not notice
			})
		})
	}
}
