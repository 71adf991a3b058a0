// Package sim runs a whole cluster in one test process: real nodes, real
// Pebble and real segments over a disk that forgets what was not synced, real
// dRPC over in-memory pipes, in the virtual time of a testing/synctest bubble.
//
// A run is a workload of file operations by a few clients, a schedule of
// faults, and checks: see Run. Everything random comes from one printed seed;
// the order of goroutines does not, so a seed that fails is a strong hint and
// not a replay to the letter.
//
// A crash is: cut the node's network, clone the disk without what was not
// synced, close the old node on its orphaned disk, start a new one on the
// clone. The network goes first: what the node said before the cut was synced
// before the clone. Nothing of the old node can reach the new one.
package sim
