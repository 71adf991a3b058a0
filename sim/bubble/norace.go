//go:build !race

package bubble

// Race says whether the race detector is on: work takes many times as long with it.
const Race = false
