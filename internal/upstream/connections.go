package upstream

import (
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

// Connections returns the open connections to all servers, UDP sockets included, for
// observe.Upstreams.WatchConnections. It is a method of Registry and not of each pool because the Registry knows
// which servers stay, change and go when groups open and close.
func (r *Registry) Connections() []observe.Connection {
	r.mu.Lock()
	servers := slices.Collect(maps.Values(r.servers))
	r.mu.Unlock()
	var list []observe.Connection
	for _, s := range servers {
		for _, p := range s.paths() {
			list = append(list, p.pool.connections()...)
		}
	}
	return list
}

// connections returns the open connections with the kernel's data about each. The kernel is asked after the lock is
// released, so that queries do not wait for it.
func (p *streamPool) connections() []observe.Connection {
	p.mu.Lock()
	list := make([]observe.Connection, 0, len(p.conns))
	sockets := make([]net.Conn, 0, len(p.conns))
	for _, c := range p.conns {
		if c.conn == nil { // being opened
			continue
		}
		sockets = append(sockets, c.conn)
		list = append(list, observe.Connection{
			Upstream: p.path.server.name, Proto: p.path.proto, Local: c.local, Opened: c.ready, InFlight: c.busy,
		})
	}
	p.mu.Unlock()
	for i, s := range sockets {
		addKernelInfo(&list[i], s)
	}
	return list
}

// addKernelInfo adds TCP_INFO (tcp(7)) to c. It leaves c unchanged if there is none, because the connection was
// closed meanwhile or is not TCP.
func addKernelInfo(c *observe.Connection, conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	s, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	var info *unix.TCPInfo
	var failed error
	err = raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	if err != nil || failed != nil {
		return
	}
	c.RTT, c.RTTVar = time.Duration(info.Rtt)*time.Microsecond, time.Duration(info.Rttvar)*time.Microsecond
	c.Retransmits, c.Lost, c.Unacked = info.Total_retrans, info.Lost, info.Unacked
	c.Silent = time.Duration(info.Last_data_recv) * time.Millisecond
}

// connections returns the open sockets. The kernel measures no round trip for UDP; the path's estimate is used
// instead.
func (d *datagramPool) connections() []observe.Connection {
	rtt := d.path.rtt.smoothed()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	idle := make(map[*datagramSocket]bool, len(d.idle))
	for _, s := range d.idle {
		idle[s] = true
	}
	list := make([]observe.Connection, 0, len(d.sockets))
	for s := range d.sockets {
		inFlight := 1
		if idle[s] {
			inFlight = 0
		}
		list = append(list, observe.Connection{
			Upstream: d.path.server.name, Proto: d.path.proto, Local: s.local, Opened: s.born, InFlight: inFlight, RTT: rtt,
		})
	}
	return list
}
