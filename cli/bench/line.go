package bench

import (
	"fmt"
	"strings"
	"time"
)

// line is what is printed of a figure:
//
//	engine/put-4k-w16       31250 op/s    ratio=0.91 of=raw-append    p50=0.40ms p99=1.9ms spread=7% cpu=0.031ms
func (r *result) line() string {
	var b strings.Builder
	rate := median(r.rates)
	fmt.Fprintf(&b, "%-20s %8s op/s    ratio=%s of=%s   ", r.name, number(rate), number(median(r.ratios)), r.of)
	if r.late.count > 0 {
		fmt.Fprintf(&b, " p50=%s p99=%s", millis(r.late.quantile(0.50)), millis(r.late.quantile(0.99)))
	}
	if r.bytes >= 1<<20 {
		fmt.Fprintf(&b, " bytes=%sMB/s", number(rate*float64(r.bytes)/1e6))
	}
	fmt.Fprintf(&b, " spread=%.0f%%", 100*spread(r.rates))
	per := func(d time.Duration) string { return millis(time.Duration(float64(d) / max(r.ops, 1))) }
	fmt.Fprintf(&b, " cpu=%s", per(r.cpu.self+r.cpu.servers))
	if r.cpu.servers > 0 {
		fmt.Fprintf(&b, " cpu-client=%s", per(r.cpu.self))
	}
	return b.String()
}

// number shows three digits of what is small, and none behind the point of what
// is large.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}

// millis is a duration in milliseconds, whatever its size, so that figures can
// be compared by programs.
func millis(d time.Duration) string { return number(d.Seconds()*1e3) + "ms" }
