package upstream

import (
	"slices"
	"time"

	"github.com/miekg/dns"
)

const (
	// probeLeast and probeMost bound the wait for a probe; between them it is the interval. A server that takes
	// longer than an interval must be detected as healthy too, so the next probe may be sent while one waits.
	probeLeast = time.Second
	probeMost  = 2 * time.Second
	// maxProbes is how many probes of a path may wait at once.
	maxProbes = 4
	// probeInterest is how long a path is probed after it was last needed.
	probeInterest = time.Minute
)

func (h Health) validDomain() bool {
	if h.Domain == "" {
		return true
	}
	_, ok := dns.IsDomainName(h.Domain)
	return ok
}

// question returns the question of a probe. Any answer will do, whatever its RCODE.
func (h Health) question() (*question, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(h.Domain), dns.TypeNS)
	m.RecursionDesired = !h.NoRecursion
	return newQuestion(m)
}

// startProbing starts the prober of a path, at most one, and only while the path is in doubt. p.mu is held.
func (p *path) startProbing() {
	if p.probing || healthState(p.state.Load()) == healthy {
		return
	}
	p.probing = p.server.run(p.probeUntilHealthy)
}

// probeUntilHealthy asks at once and then at each interval.
func (p *path) probeUntilHealthy() {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.probing = false
	}()
	interval := p.server.config.Health.Interval
	results := make(chan *call, maxProbes)
	var waiting []*call
	defer func() { abandonAll(waiting, results) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.server.closing:
			return
		case c := <-results:
			waiting = slices.DeleteFunc(waiting, func(o *call) bool { return o == c })
			c.report()
			if healthState(p.state.Load()) == healthy {
				return
			}
			continue
		case <-timer.C:
		}
		now := time.Now()
		if healthState(p.state.Load()) == healthy || sinceStart(now)-p.lastWanted.Load() > int64(probeInterest) {
			return
		}
		timer.Reset(interval)
		if len(waiting) < maxProbes {
			c := p.newProbe(results, now, min(max(interval, probeLeast), probeMost))
			waiting = append(waiting, c)
			p.submit(c)
		}
	}
}

// newProbe returns a call to be submitted. The pool ends it in time.
func (p *path) newProbe(results chan *call, now time.Time, timeout time.Duration) *call {
	q := p.server.probe
	c := &call{
		path: p, q: q, wire: q.wire, results: results, attempt: 1, probe: true,
		start: now, expire: now.Add(timeout),
	}
	if p.server.refusesEDNS(now) {
		c.wire = q.withoutEDNS()
	}
	return c
}
