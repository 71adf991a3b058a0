// Package chaos runs scenarios: a cluster of real processes, steps that use it,
// and faults, all named in a YAML file (testdata/scenarios). After every
// read-back it compares what came back with what was stored, byte for byte.
//
// A scenario has no time limits of its own but one hang guard a wait; it fails
// on the first difference, and ends every process it started, by its PID.
package chaos
