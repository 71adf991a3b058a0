//go:build !race

package sim

// seeds is how many fixed seeds every test run simulates.
const seeds = 20
