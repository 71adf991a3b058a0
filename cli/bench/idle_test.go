package bench

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRaftMetrics(t *testing.T) {
	for _, c := range []struct {
		text         string
		leads, awake int // awake < 0: an error
	}{
		{text: "dfsd_raft_leader{group=\"g0\"} 1\ndfsd_raft_leader{group=\"g1\"} 0\ndfsd_raft_leader{group=\"g2\"} 1\ndfsd_raft_awake 17\n", leads: 2, awake: 17},
		{text: "dfsd_raft_awake 0\n"},
		{text: "dfsd_raft_leader{group=\"g0\"} 1\n", awake: -1},
		{text: "dfsd_raft_awake many\n", awake: -1},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.text) }))
		leads, awake, err := raftMetrics(t.Context(), strings.TrimPrefix(srv.URL, "http://"))
		srv.Close()
		if (err != nil) != (c.awake < 0) || err == nil && (leads != c.leads || awake != c.awake) {
			t.Errorf("%q: leads %d, %d awake, %v", c.text, leads, awake, err)
		}
	}
}
