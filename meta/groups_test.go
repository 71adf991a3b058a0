package meta

import (
	"context"
	"errors"
	"slices"
	"testing"

	"dfsd/dfs"
	"dfsd/meta/namespace"
)

// TestNoIntentStarves goes through more intents than a page has, of which most
// cannot be resolved: each is tried once in a turn, also when the time of a round
// is over after each.
func TestNoIntentStarves(t *testing.T) {
	const n = 2*intentPage + 5
	page := func(past dfs.Ino) (out []namespace.Intent) {
		for child := past + 1; child <= n && len(out) < intentPage; child++ {
			out = append(out, namespace.Intent{Child: child})
		}
		return out
	}
	stuck := errors.New("no leader")
	for _, slow := range []bool{false, true} {
		var tried []dfs.Ino
		rounds, past := 0, dfs.Ino(0)
		for rounds == 0 || past != 0 {
			ctx, cancel := context.WithCancel(t.Context())
			var err error
			past, err = eachIntent(ctx, page(past), func(in namespace.Intent) error {
				tried = append(tried, in.Child)
				if slow {
					cancel()
				}
				if in.Child%intentPage == 9 {
					return nil
				}
				return stuck
			})
			cancel()
			if err != nil && !errors.Is(err, stuck) {
				t.Fatal(err)
			}
			if rounds++; rounds > n+1 {
				t.Fatalf("no end: past %v after %d rounds", past, rounds)
			}
		}
		want := make([]dfs.Ino, n)
		for i := range want {
			want[i] = dfs.Ino(i + 1)
		}
		if !slices.Equal(tried, want) {
			t.Errorf("slow %v: tried %v", slow, tried)
		}
	}
}
