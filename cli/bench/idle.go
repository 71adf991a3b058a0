package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The figure of idle groups.
const (
	idleFew, idleMany = 3, 1000 // namespace groups of the two clusters

	idleTime = time.Minute

	// idleStart is for the larger cluster to form and for its leaders to spread.
	idleStart = 15 * time.Minute

	// idleLimit is what the many groups may take more, in percent of one core.
	idleLimit = 2
)

func idleFigures() []figure {
	return []figure{{name: "meta/idle-groups", value: idleFigure}}
}

// idleFigure says how much processor time more three meta nodes take with many
// idle groups than with few. Both clusters run at the same time, so that what
// disturbs the machine disturbs both.
func idleFigure(ctx context.Context, e *env) (_ string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, idleStart, fmt.Errorf("the groups are not idle after %v", idleStart))
	defer cancel()
	var clusters []*cluster
	defer func() {
		for _, c := range clusters {
			err = errors.Join(err, c.stop())
		}
	}()
	for _, groups := range []int{idleFew, idleMany} {
		dir, err := e.subdir(fmt.Sprintf("idle-%d", groups))
		if err != nil {
			return "", err
		}
		c := &cluster{shape: metaCluster, dir: dir}
		c.settings = fmt.Sprintf("groups: %d\n", groups)
		clusters = append(clusters, c)
		if err := c.launchAll(e); err != nil {
			return "", err
		}
		if err := c.waitIdle(ctx, groups); err != nil {
			return "", err
		}
		fmt.Fprintf(e.opts.Log, "bench: %d groups are idle\n", groups)
	}
	used := make([][]time.Duration, len(clusters))
	for i, c := range clusters {
		if used[i], err = c.cpuOfNodes(); err != nil {
			return "", err
		}
	}
	begun := time.Now()
	if err := pauseFor(ctx, idleTime); err != nil {
		return "", err
	}
	took := time.Since(begun)
	var sums []float64
	var most []float64
	for i, c := range clusters {
		now, err := c.cpuOfNodes()
		if err != nil {
			return "", err
		}
		sums, most = append(sums, 0), append(most, 0)
		for n := range now {
			share := 100 * (now[n] - used[i][n]).Seconds() / took.Seconds()
			sums[i] += share
			most[i] = max(most[i], share)
		}
	}
	return fmt.Sprintf("%.2f%% core    limit=%d%% groups=%d few=%.2f%% many=%.2f%% busiest-node=%.2f%%",
		sums[1]-sums[0], idleLimit, idleMany, sums[0], sums[1], most[1]-most[0]), nil
}

// waitIdle waits until no node leads more groups than its share and no group but
// the control group is awake, for longer than a leader that is to hand over waits.
func (c *cluster) waitIdle(ctx context.Context, groups int) error {
	const looks, every = 5, 2 * time.Second
	share := (groups + 1 + c.metas - 1) / c.metas
	for calm := 0; calm < looks; calm++ {
		for _, n := range c.nodes {
			if leads, awake, err := raftMetrics(ctx, n.http); err != nil || awake > 1 || leads == 0 || leads > share {
				calm = -1
			}
		}
		if err := pauseFor(ctx, every); err != nil {
			return err
		}
	}
	return nil
}

// pauseFor waits for d.
func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// raftMetrics asks a node how many groups it leads and how many are awake.
func raftMetrics(ctx context.Context, addr string) (leads, awake int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	awake = -1
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "dfsd_raft_leader{") && strings.HasSuffix(line, " 1"):
			leads++
		case strings.HasPrefix(line, "dfsd_raft_awake "):
			if _, err := fmt.Sscanf(line, "dfsd_raft_awake %d", &awake); err != nil {
				return 0, 0, fmt.Errorf("%q: %w", line, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return 0, 0, err
	}
	if awake < 0 {
		return 0, 0, errors.New("no word of the groups")
	}
	return leads, awake, nil
}

// cpuOfNodes is the processor time of each node.
func (c *cluster) cpuOfNodes() ([]time.Duration, error) {
	out := make([]time.Duration, len(c.nodes))
	for i, n := range c.nodes {
		var err error
		if out[i], err = n.cpu(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
