// Package bubble runs tests in virtual time. It is testing/synctest, but for
// the race detector: there the goroutines of a bubble get one processor.
//
// The reason is a fault of Go's runtime (seen in 1.26.8). With -race the timers
// of a bubble share one shadow stack. A receive from a timer's channel that is
// overdue runs that timer on the receiver's thread without a lock, so two
// receivers on two processors move the shadow stack's end at the same time. It
// drifts by one entry now and then; once it is below its start the next
// time.AfterFunc copies a stack of four billion entries, and the process ends
// with SIGSEGV.
//
// The detector loses little: it judges by what happens before what, not by
// what runs at the same moment.
package bubble
