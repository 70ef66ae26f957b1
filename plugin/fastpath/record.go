package fastpath

import (
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/replay"
	"localcache.dev/localcache/internal/udpbatch"
)

// tell notes a hit for the recorder. Its name is the entry's, since the query's is gone by the time of flush.
func (k *socket) tell(peer *udpbatch.Peer, e *replay.Entry, arrived time.Time) {
	came := arrival(peer, arrived)
	k.told = append(k.told, observe.Query{
		Client: peer.AddrPort(), ID: k.query.ID(), Proto: observe.UDP, Name: e.Key()[:len(k.query.Name())], Type: k.query.Type(),
		Rcode: k.count.rcode(e.Class()), Source: observe.FromReplay, Received: came.Received, Queued: came.Queued,
	})
}

// arrival is when a query came by the kernel's clock, which may be set between then and now.
func arrival(peer *udpbatch.Peer, read time.Time) observe.Arrival {
	a := observe.Arrival{Received: read.UnixNano(), Read: read}
	if peer.Received != 0 && peer.Received <= a.Received {
		a.Queued = time.Duration(a.Received - peer.Received)
		a.Received = peer.Received
	}
	return a
}
