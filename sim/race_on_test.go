//go:build race

package sim

// seeds is how many fixed seeds a run under the race detector simulates: it is
// several times slower, and make test runs all seeds without it.
const seeds = 3
