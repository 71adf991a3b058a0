package config

import (
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"dfsd/dfs"
)

// httpPortOffset is how far the HTTP port is from the port of the node.
const httpPortOffset = 100

// completeServer fills in what follows from other settings, and checks what
// hangs together. It draws no conclusions from settings with a fault.
func (l *load) completeServer(s *Server) {
	for _, row := range l.settings {
		if row.derived == required && !l.bad[row.key] && !l.given(row.key) {
			l.missing(row.key)
		}
	}
	l.completeDirs(s)
	l.checkExposed(s, "listen", s.Listen)
	l.checkExposed(s, "http", s.HTTP)
	l.completeAddresses(s)
	l.completeHealth(s)
	l.checkTLS(s.TLS)
	if s.Roles.Has(dfs.RoleMeta) && !l.bad["meta"] {
		l.checkMetaRole(s)
	}
}

// leastTimeout and timeoutIntervals make the default time-out of a health
// check: short enough to notice a death soon, with room for a few lost reports.
const (
	leastTimeout     = 2 * time.Second
	timeoutIntervals = 4

	// diskTimeout is far above what a busy disk takes for one operation.
	diskTimeout = 10 * time.Second
)

func (l *load) completeHealth(s *Server) {
	h := &s.Health
	if h.Interval == 0 {
		h.Interval = s.Heartbeat
	}
	if h.Timeout == 0 && !l.bad["health_check.timeout"] {
		h.Timeout = max(leastTimeout, timeoutIntervals*h.Interval)
	}
	if h.Timeout <= h.Interval && !l.bad["health_check.timeout"] {
		l.wrong("health_check.timeout", 0, h.Timeout.String(), "want more than the interval of the reports ("+h.Interval.String()+")")
	}
	if h.DiskTimeout == 0 {
		h.DiskTimeout = max(diskTimeout, h.Interval)
	} else if h.DiskTimeout < h.Interval && !l.bad["health_check.disk_timeout"] && !l.bad["health_check.interval"] && !l.bad["heartbeat"] {
		l.wrong("health_check.disk_timeout", 0, h.DiskTimeout.String(), "want the interval of the reports ("+h.Interval.String()+") or more")
	}
}

// missing reports a setting that must be given.
func (l *load) missing(key string) {
	s := l.row(key)
	l.fault("", key, "", "not set: want "+s.kind.want+" (in the file, as --"+s.flag()+" or as "+s.env()+")")
}

func (l *load) completeDirs(s *Server) {
	if !s.Roles.Has(dfs.RoleStorage) {
		s.Stores = nil
		return
	}
	if l.bad["stores"] || s.Dir == "" {
		return
	}
	if len(s.Stores) == 0 {
		s.Stores = []string{filepath.Join(s.Dir, "store0")}
	}
	for i, store := range s.Stores {
		if within(s.Dir, store) {
			l.wrong("stores", i, store, "holds dir ("+s.Dir+"): want a directory of its own for each")
		}
	}
}

// checkExposed refuses an address that strangers can reach and that anyone may
// talk to. Where HTTP follows from listen, one fault is enough.
func (l *load) checkExposed(s *Server, key, addr string) {
	host, _, ok := splitAddress(addr)
	if ok && !loopback(host) && s.TLS == (TLS{}) && !l.bad["tls.ca"] && !s.Insecure && !l.bad["insecure"] {
		l.wrong(key, 0, addr, "not loopback, so that strangers may reach it: want tls.ca, tls.cert and tls.key, or insecure: true")
	}
}

func (l *load) completeAddresses(s *Server) {
	if s.Listen == "" && !l.bad["listen"] {
		s.Listen = "127.0.0.1:7400"
		if s.Roles == dfs.RoleStorage {
			s.Listen = "127.0.0.1:7410"
		}
	}
	host, port, ok := splitAddress(s.Listen)
	if s.Advertise == "" && ok {
		s.Advertise = s.Listen
		if unspecified(host) && !l.bad["advertise"] {
			l.wrong("listen", 0, s.Listen, "no address that others could reach: want advertise set too")
		}
	} else if h, _, _ := splitAddress(s.Advertise); s.Advertise != "" && unspecified(h) {
		l.wrong("advertise", 0, s.Advertise, "want a host that others can reach")
	}
	if s.HTTP == "" && ok && !l.bad["http"] {
		if port+httpPortOffset > 65535 {
			l.wrong("listen", 0, s.Listen, "its port + 100 is none: want http set too")
			return
		}
		s.HTTP = net.JoinHostPort(host, strconv.Itoa(port+httpPortOffset))
	}
	if s.HTTP == s.Listen && ok {
		l.wrong("http", 0, s.HTTP, "is listen: want another port")
	}
}

// checkMetaRole checks the list of the first meta nodes: each must know all
// by the same names. A node that is not in it joins a cluster that exists.
func (l *load) checkMetaRole(s *Server) {
	if !l.given("meta") {
		l.missing("meta")
		return
	}
	l.nameMeta(s)
	for i, n := range s.Meta {
		switch {
		case n.Name == "":
			want := "want name=host:port with the meta role, the same list on each meta node"
			if where, line := l.where("meta", i); line == 0 && len(l.file["meta"].items) > 0 {
				want += "; the list of " + l.path + " counts when " + where + " is not set"
			}
			l.wrong("meta", i, n.Addr, want)
		case s.Name != "" && s.Advertise != "" && (n.Name == s.Name) != (n.Addr == s.Advertise):
			l.wrong("meta", i, n.Name+"="+n.Addr, "this node is "+s.Name+"="+s.Advertise+": want it listed so, or not at all")
		}
	}
}

// nameMeta takes the file's list of meta nodes for one that has the same
// addresses and no names: an environment that was made for clients is no fault of
// a node whose file says the same.
func (l *load) nameMeta(s *Server) {
	e := l.file["meta"]
	row := l.row("meta")
	var items []string
	for _, i := range e.items {
		items = append(items, i.text)
	}
	if e.split {
		items = row.items(items[0])
	}
	var v values
	if len(items) == 0 || len(row.kind.parse(&v, items)) > 0 {
		return
	}
	addrs := func(list []MetaNode, named bool) (out []string) {
		for _, n := range list {
			if named || n.Name == "" {
				out = append(out, n.Addr)
			}
		}
		slices.Sort(out)
		return out
	}
	if slices.Equal(addrs(s.Meta, false), addrs(v.shared.Meta, true)) {
		s.Meta = v.shared.Meta
	}
}

func (l *load) checkTLS(t TLS) {
	all := []struct{ key, path string }{{"tls.ca", t.CA}, {"tls.cert", t.Cert}, {"tls.key", t.Key}}
	if t == (TLS{}) {
		return
	}
	for _, f := range all {
		if f.path == "" && !l.bad[f.key] {
			l.fault("", f.key, "", "not set: want tls.ca, tls.cert and tls.key, or none of them")
		}
	}
}

func (l *load) checkClient(c *Client) {
	l.checkTLS(c.TLS)
	if c.Retry.Max < c.Retry.Base && !l.bad["retry.base"] && !l.bad["retry.max"] {
		l.wrong("retry.max", 0, c.Retry.Max.String(), "want at least retry.base ("+c.Retry.Base.String()+")")
	}
}

// unspecified reports whether a host stands for every address of a machine.
func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// loopback reports whether only this machine reaches the host.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
