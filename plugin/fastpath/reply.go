package fastpath

import (
	"errors"
	"net"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/udpbatch"
)

const (
	// crowd is how many misses have to be in flight for their replies to wait for one another. With fewer there
	// is seldom another reply to wait for.
	crowd = 8
	// gatherSize is the room for the replies of one batch, in octets.
	gatherSize = 32 << 10
)

// gatherer sends the replies of workers. Answers come from an upstream in bursts, many in one segment, and
// their workers then run one after the other: the first of them lets the others come to their turn, and sends
// what all have to say in one system call.
type gatherer struct {
	unsent prometheus.Counter

	mu      sync.Mutex
	out     *udpbatch.Writer
	slab    []byte // replies of the batch; never grown, because out refers to it
	waiting bool   // somebody is about to flush
}

func newGatherer(udp *net.UDPConn, unsent prometheus.Counter) (*gatherer, error) {
	out, err := udpbatch.NewWriter(udp, batchSize)
	if err != nil {
		return nil, err
	}
	return &gatherer{unsent: unsent, out: out, slab: make([]byte, 0, gatherSize)}, nil
}

// send sends data to p, soon if crowded is set: another reply is likely to be ready in a moment. What cannot be sent
// then is counted.
func (g *gatherer) send(data []byte, p *udpbatch.Peer, crowded bool) error {
	g.mu.Lock()
	if !crowded || len(data) > gatherSize/4 {
		defer g.mu.Unlock()
		_ = g.flush() // what waits there is others', who have gone on
		g.out.Add(data, p)
		return g.flush()
	}
	if g.out.Len() == batchSize || len(g.slab)+len(data) > cap(g.slab) {
		_ = g.flush() // of others, who have gone on
	}
	begin := len(g.slab)
	g.slab = append(g.slab, data...)
	g.out.Add(g.slab[begin:], p)
	first := !g.waiting
	g.waiting = true
	g.mu.Unlock()
	if !first {
		return nil
	}
	runtime.Gosched()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = false
	return g.flush()
}

// errUnsent is what the chain is told of replies that the kernel did not take.
var errUnsent = errors.New("the kernel did not take the reply, or one that was to leave with it")

// flush sends the batch and counts what could not be sent. The caller holds mu.
func (g *gatherer) flush() error {
	if g.out.Len() == 0 {
		return nil
	}
	failed, err := g.out.Flush()
	g.slab = g.slab[:0]
	if failed > 0 {
		g.unsent.Add(float64(failed))
		err = errors.Join(err, errUnsent)
	}
	return err
}
