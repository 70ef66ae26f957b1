package upstream

import (
	"slices"
	"time"

	"github.com/miekg/dns"
)

const (
	// probeLeast and probeMost bound how long a probe waits; between them it is the interval. A server
	// that takes longer than an interval has to be found well, too, so that the next probe may be sent
	// while one waits.
	probeLeast = time.Second
	probeMost  = 2 * time.Second
	// probesMost is how many probes of a path may wait at once.
	probesMost = 4
	// probeInterest is for how long a path is probed after somebody last wanted it.
	probeInterest = time.Minute
)

func (h Health) validDomain() bool {
	if h.Domain == "" {
		return true
	}
	_, ok := dns.IsDomainName(h.Domain)
	return ok
}

// question is what a probe asks. Any answer will do, whatever its RCODE.
func (h Health) question() (*question, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(h.Domain), dns.TypeNS)
	m.RecursionDesired = !h.NoRecursion
	return newQuestion(m)
}

// startProbing runs with p.mu held. There is one prober a path at most, and only while it is in doubt.
func (p *path) startProbing() {
	if p.probing || standing(p.standing.Load()) == healthy {
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
	results := make(chan *call, probesMost)
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
			if standing(p.standing.Load()) == healthy {
				return
			}
			continue
		case <-timer.C:
		}
		now := time.Now()
		if standing(p.standing.Load()) == healthy || sinceStart(now)-p.lastWanted.Load() > int64(probeInterest) {
			return
		}
		timer.Reset(interval)
		if len(waiting) < probesMost {
			c := p.newProbe(results, now, min(max(interval, probeLeast), probeMost))
			waiting = append(waiting, c)
			p.submit(c)
		}
	}
}

// newProbe returns a call that is to be submitted. The pool sees to its end in time.
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
