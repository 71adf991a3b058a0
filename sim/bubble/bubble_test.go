package bubble

import (
	"runtime"
	"testing"
	"time"
)

// As long as one bubble is left there is one processor with -race, and then
// as many as before.
func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	want := before
	if Race {
		want = 1
	}
	t.Run("bubbles", func(t *testing.T) {
		for range 8 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				Test(t, func(t *testing.T) {
					time.Sleep(time.Minute)
					if n := runtime.GOMAXPROCS(0); n != want {
						t.Errorf("%d processors in a bubble, not %d", n, want)
					}
				})
			})
		}
	})
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d processors after the last bubble, %d before the first", n, before)
	}
}
