package sim

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"dfsd/node"
	"dfsd/sim/bubble"
)

// planted are known bugs behind the hooks of the packages that could have
// them: a simulation that cannot find them proves nothing.
var planted = []struct {
	name  string
	plant func(*node.Options)
}{
	{"acknowledge before sync, engine", func(o *node.Options) { o.Engine.Hooks.AckBeforeSync = true }},
	{"acknowledge before sync, raft", func(o *node.Options) { o.Meta.Raft.Hooks.AckBeforeSync = true }},
	{"skip the epoch check", func(o *node.Options) {
		o.Engine.Hooks.SkipEpochCheck, o.Storage.Hooks.SkipEpochCheck = true, true
	}},
	{"forget the reply cache", func(o *node.Options) { o.Meta.Namespace.ForgetReplies = true }},
	{"drop a tombstone", func(o *node.Options) { o.Engine.Hooks.DropTombstone = true }},
	{"apply an entry twice after restart", func(o *node.Options) { o.Meta.Raft.Hooks.ApplyTwice = true }},
	{"refill done before durable", func(o *node.Options) { o.Storage.Hooks.RefillDoneBeforeDurable = true }},
	{"answer for garbage without the fence", func(o *node.Options) { o.Meta.Namespace.GuessGarbage = true }},
	{"acting counts as complete", func(o *node.Options) { o.Meta.Planner.Rules.CountActingAsComplete = true }},
}

// plantedSeeds is how many seeds a planted bug may need to be found.
const plantedSeeds = 10

// TestPlantedBugsAreFound plants one bug at a time and runs seeds until a
// check fails. It is part of make soak: DFSD_TEST_PLANTED is "all", or the number
// of one bug.
func TestPlantedBugsAreFound(t *testing.T) {
	pick := os.Getenv("DFSD_TEST_PLANTED")
	if pick == "" {
		t.Skip("DFSD_TEST_PLANTED does not say which: see make soak")
	}
	for i, p := range planted {
		if pick != "all" && pick != strconv.Itoa(i) {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= plantedSeeds; seed++ {
				if err := runPlanted(t, seed, p.plant); err != nil {
					t.Logf("found with seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("not found in %d seeds", plantedSeeds)
		})
	}
}

func runPlanted(t *testing.T, seed uint64, plant func(*node.Options)) (err error) {
	bubble.Test(t, func(t *testing.T) {
		var counts Counts
		counts, err = Run(t.Context(), Config{Seed: seed, Tweak: plant, Logger: testLogger()}, Plan{})
		if err != nil {
			err = fmt.Errorf("%w\n%v", err, counts)
		}
	})
	return err
}
