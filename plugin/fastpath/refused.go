package fastpath

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/udpbatch"
	"localcache.dev/localcache/internal/wire"
)

const (
	// toldEvery is how often the log says that queries are dropped.
	toldEvery = time.Minute
	// toldClients is among how many clients the one is looked for who lost most.
	toldClients = 256
)

// refused accounts for a query that is dropped: nobody else sees it.
func (k *socket) refused(why refusal, client netip.AddrPort, payload []byte, peer *udpbatch.Peer, arrived time.Time) {
	k.plugin.metrics.refused[why].Inc()
	if k.queries != nil {
		if question, ok := wire.Question(payload); ok {
			came := arrival(peer, arrived)
			var name [256]byte
			k.queries.RecordAll([]observe.Query{{
				Client: client, ID: binary.BigEndian.Uint16(payload), Proto: observe.UDP, Name: wire.LowerName(name[:0], question),
				Type: binary.BigEndian.Uint16(question[len(question)-4:]), Rcode: observe.NoReply, Source: observe.FromLocal,
				Received: came.Received, Queued: came.Queued, Duration: came.Queued,
			}})
		}
	}
	if why == stopped {
		return // at the end of the process; the next one has them
	}
	if n, top, most := k.plugin.lost.note(client.Addr(), arrived); n > 0 {
		k.plugin.log.Warningf("%s: %d queries dropped, %d of them from %s: %d misses are in flight, which is the limit; is an upstream slow?",
			k.address, n, most, top, k.plugin.flying.Load())
	}
}

// losses are the queries that were dropped since the log last said so.
type losses struct {
	mu      sync.Mutex
	told    time.Time
	n       int
	clients map[netip.Addr]int
}

// note counts one, and returns what is to be told now: how many there were, and who lost most. n is 0 where it is not
// yet time.
func (l *losses) note(client netip.Addr, now time.Time) (n int, top netip.Addr, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients == nil {
		l.clients = map[netip.Addr]int{}
	}
	l.n++
	if _, known := l.clients[client]; known || len(l.clients) < toldClients {
		l.clients[client]++
	}
	if !l.told.IsZero() && now.Sub(l.told) < toldEvery {
		return 0, top, 0
	}
	for c, lost := range l.clients {
		if lost > most || lost == most && c.Less(top) {
			top, most = c, lost
		}
	}
	n = l.n
	l.told, l.n = now, 0
	clear(l.clients)
	return n, top, most
}
