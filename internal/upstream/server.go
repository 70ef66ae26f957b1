package upstream

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// ednsMemory is how long a server that answered EDNS with FORMERR is asked without it. Long enough that the second
// round trip does not matter, short enough to notice that the server was replaced.
const ednsMemory = 5 * time.Minute

// server is one upstream with its two paths. It belongs to a Registry and is shared by groups.
type server struct {
	config ServerConfig // with defaults
	name   string       // Addr as text
	probe  *question
	refs   int // guarded by the Registry's lock

	datagram *path // nil with TLS
	stream   *path

	noEDNSUntil atomic.Int64 // as sinceStart has it

	mu      sync.Mutex
	closed  bool
	closing chan struct{}
	running sync.WaitGroup
}

func newServer(c ServerConfig, limits Limits, recorder observe.Recorder, dial Dialer) (*server, error) {
	probe, err := c.Health.question()
	if err != nil {
		return nil, err
	}
	s := &server{config: c, name: c.Addr.String(), probe: probe, closing: make(chan struct{})}
	newPath := func(proto observe.Proto) *path {
		return &path{server: s, proto: proto, sink: recorder.Sink(s.name, proto)}
	}
	proto := observe.TLS
	if c.TLS != nil {
		s.config.TLS = c.TLS.Clone()
		if s.config.TLS.ClientSessionCache == nil {
			// Connections are replaced for their age: those that follow need no full handshake.
			s.config.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		}
	} else {
		proto = observe.TCP
		s.datagram = newPath(observe.UDP)
		s.datagram.datagrams = newDatagramPool(s.datagram, dial, limits.Sockets)
		s.datagram.pool = s.datagram.datagrams
	}
	s.stream = newPath(proto)
	s.stream.pool = newStreamPool(s.stream, dial)
	return s, nil
}

// run starts f in a goroutine that close waits for. It is false when the server is closed.
func (s *server) run(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Go(f)
	return true
}

// close ends all calls and waits for the server's goroutines.
func (s *server) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.closing)
	for _, p := range s.paths() {
		p.pool.close()
	}
	s.running.Wait()
	for _, p := range s.paths() {
		p.sink.Release()
	}
}

func (s *server) paths() []*path {
	if s.datagram == nil {
		return []*path{s.stream}
	}
	return []*path{s.datagram, s.stream}
}

// inherit takes over what was learned about the same address under other settings.
func (s *server) inherit(other *server) {
	s.noEDNSUntil.Store(other.noEDNSUntil.Load())
	s.stream.inherit(other.stream)
	if s.datagram != nil && other.datagram != nil {
		s.datagram.inherit(other.datagram)
	}
}

func (s *server) refusesEDNS(now time.Time) bool { return sinceStart(now) < s.noEDNSUntil.Load() }

func (s *server) noteNoEDNS(now time.Time) { s.noEDNSUntil.Store(sinceStart(now.Add(ednsMemory))) }
