package fastpath

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultInFlight bounds the misses in flight. At 1 ms to kube-dns and 20,000 misses a second there are 20;
	// when an upstream is silent for the 2 s that forward gives it, 2048 are 1,000 questions a second
	// that nobody answers. One takes about 40 KiB (measured), stack and messages together, so all of them
	// 80 MiB; workers that are not needed end after idleTime.
	defaultInFlight = 2048
	// idleTime is how long a worker that has nothing to do keeps its stack warm, which is 32 KiB. One that is needed
	// more seldom than that is made anew: its stack then grows once, which takes 10 µs.
	idleTime = 2 * time.Second
	// warmStack is what a parked worker seems to use of its stack. The garbage collector halves a stack of
	// which less than a quarter is used: with 8 KiB it leaves 32 KiB alone, which the chain of a miss needs.
	warmStack = 8 << 10
)

// refusal is why a miss is dropped.
type refusal int

const (
	admitted    refusal = iota
	overloaded          // as many are in flight as may be
	clientShare         // the client has its share in flight
	stopped             // the process ends
	numRefusals
)

var refusalNames = [numRefusals]string{overloaded: "overload", clientShare: "client_share", stopped: "stopped"}

// pool is the workers of an instance. The one that was busy last works next, because its stack is the one that is
// still in the processor's caches, and so that the others get idle enough to end.
type pool struct {
	limit int
	total *atomic.Int64 // in flight in the process: while a reload goes on, two instances have some

	mu      sync.Mutex
	idle    []*worker // the last one was busy last
	busy    int
	clients map[netip.Addr]*share // that have some in flight
	spare   *share                // an entry that nobody uses
	tick    int                   // of the trimmer
	users   int                   // sockets that are being served
	closed  chan struct{}         // closes when there are none; nil before the first
	trimmer sync.WaitGroup
}

type worker struct {
	work  chan *exchange
	share *share // of the client whose query it works on
	since int    // idle, in ticks of the pool
	scratch
}

// share is what one client has in flight.
type share struct {
	addr  netip.Addr
	count int
}

func newPool(limit int, total *atomic.Int64) *pool {
	return &pool{limit: limit, total: total, clients: map[netip.Addr]*share{}}
}

// crowded reports whether so many misses are in flight that answers are likely to come in bursts.
func (p *pool) crowded() bool { return p.total.Load() >= crowd }

// open is called for each socket that is to use the pool, close when it does so no more.
func (p *pool) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users++; p.users == 1 {
		p.closed = make(chan struct{})
		closed := p.closed
		p.trimmer.Go(func() { p.trim(closed) })
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.users--
	last := p.users == 0
	if last {
		close(p.closed)
		for _, w := range p.idle {
			close(w.work)
		}
		p.idle = nil
	}
	p.mu.Unlock()
	if last {
		p.trimmer.Wait()
	}
}

// take gives a worker to a client's query, unless too many are in flight. A client may have as many as there are still
// free: one alone gets half of all, n that ask for more than there is get an n+1st each, and there
// is always room for the first query of another.
func (p *pool) take(addr netip.Addr) (*worker, refusal) {
	p.mu.Lock()
	free := p.limit - int(p.total.Load())
	c, n := p.clients[addr], 0
	if c != nil {
		n = c.count
	}
	switch {
	case p.users == 0:
		p.mu.Unlock()
		return nil, stopped
	case free <= 0:
		p.mu.Unlock()
		return nil, overloaded
	case n >= free:
		p.mu.Unlock()
		return nil, clientShare
	case c == nil:
		c = p.enter(addr)
	}
	c.count++
	p.busy++
	p.total.Add(1)
	var w *worker
	if n := len(p.idle); n > 0 {
		w = p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
	}
	p.mu.Unlock()
	if w == nil {
		w = &worker{work: make(chan *exchange, 1), share: c}
		go w.run(p)
		return w, admitted
	}
	w.share = c
	return w, admitted
}

// enter makes the entry of a client that has none. It runs with p.mu held.
func (p *pool) enter(addr netip.Addr) *share {
	c := p.spare
	if p.spare = nil; c == nil {
		c = new(share)
	}
	c.addr = addr
	p.clients[addr] = c
	return c
}

// run serves one exchange after the other.
//
//go:noinline
func (w *worker) run(p *pool) {
	// It parks below a frame of this size.
	var warm [warmStack]byte
	w.loop(p, &warm)
	runtime.KeepAlive(&warm)
}

//go:noinline
func (w *worker) loop(p *pool, _ *[warmStack]byte) {
	for x := range w.work {
		w.serve(p, x)
		if !p.release(w) {
			return
		}
	}
}

// serve is left by a panic only where debug has CoreDNS not recover, and the process ends.
func (w *worker) serve(p *pool, x *exchange) {
	defer x.socket.flying.Done()
	x.serve()
}

// release takes back the place of w's query, and reports whether w is to wait for another.
func (p *pool) release(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.total.Add(-1)
	c := w.share
	w.share = nil
	if c.count--; c.count == 0 {
		delete(p.clients, c.addr)
		p.spare = c
	}
	if p.users == 0 {
		return false
	}
	w.since = p.tick
	p.idle = append(p.idle, w)
	return true
}

// trimsIdle is how many ticks are idleTime.
const trimsIdle = 2

// trim ends workers that have been idle for long. They are the first of the list.
func (p *pool) trim(closed <-chan struct{}) {
	ticker := time.NewTicker(idleTime / trimsIdle)
	defer ticker.Stop()
	for {
		select {
		case <-closed:
			return
		case <-ticker.C:
			p.mu.Lock()
			p.tick++
			n := 0
			for n < len(p.idle) && p.tick-p.idle[n].since > trimsIdle {
				close(p.idle[n].work)
				n++
			}
			p.idle = append([]*worker(nil), p.idle[n:]...)
			p.mu.Unlock()
		}
	}
}
