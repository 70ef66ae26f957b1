package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// MaxConnections is how many connections a snapshot lists for each pair of upstream and transport.
const MaxConnections = 32

// Connection is an open connection to an upstream, with the kernel's data about it (TCP_INFO, see tcp(7)), or an open
// UDP socket. Unknown values are 0.
type Connection struct {
	Upstream string         `json:"upstream"` // "IP:port"
	Proto    Proto          `json:"proto"`
	Local    netip.AddrPort `json:"local"`
	Opened   time.Time      `json:"opened"`
	InFlight int            `json:"inFlight"`       // exchanges on it
	RTT      time.Duration  `json:"rttNanoseconds"` // of UDP: of the latest exchanges, smoothed
	RTTVar   time.Duration  `json:"rttVarNanoseconds"`
	// Retransmits are segments that were sent again since the connection was opened, Lost those that
	// are believed to be lost at the moment, Unacked those under way.
	Retransmits uint32 `json:"retransmits"`
	Lost        uint32 `json:"lost"`
	Unacked     uint32 `json:"unacked"`
	// Silent is the time since data last arrived.
	Silent time.Duration `json:"silentNanoseconds"`
}

// WatchConnections makes Snapshot include the result of list: it calls list with no lock held to get the connections
// that are open at that moment. A connection pool calls WatchConnections when it starts, and stop when it ends; a
// concurrent Snapshot may call list once more after that.
func (u *Upstreams) WatchConnections(list func() []Connection) (stop func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := new(int)
	u.pools = append(u.pools, connectionPool{key, list})
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.pools = slices.DeleteFunc(u.pools, func(p connectionPool) bool { return p.key == key })
	}
}

type connectionPool struct {
	key  *int
	list func() []Connection
}

// connections returns the connections of all pools, by pair.
func connections(pools []connectionPool) map[upstreamKey][]Connection {
	all := make(map[upstreamKey][]Connection)
	for _, p := range pools {
		for _, c := range p.list() {
			key := upstreamKey{c.Upstream, c.Proto}
			all[key] = append(all[key], c)
		}
	}
	for _, list := range all {
		sortConnections(list)
	}
	return all
}

func sortConnections(list []Connection) {
	slices.SortFunc(list, func(a, b Connection) int {
		return cmp.Or(a.Opened.Compare(b.Opened), a.Local.Compare(b.Local))
	})
}

// setConnections lists the oldest ones, and counts all.
func (s *UpstreamSnapshot) setConnections(list []Connection) {
	s.OpenConnections = len(list)
	s.Connections = list[:min(len(list), MaxConnections):min(len(list), MaxConnections)]
}
