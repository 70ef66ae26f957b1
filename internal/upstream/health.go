package upstream

import (
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

const (
	// probeLeast and probeMost bound how long a probe waits. Within it is the interval itself, so
	// that one probe is over when the next is due.
	probeLeast = 250 * time.Millisecond
	probeMost  = 2 * time.Second
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
	results := make(chan *call, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.server.closing:
			return
		case <-timer.C:
		}
		now := time.Now()
		wanted := time.Unix(0, p.lastWanted.Load())
		if standing(p.standing.Load()) == healthy || now.Sub(wanted) > probeInterest {
			return
		}
		timer.Reset(interval)
		p.probe(results, now, min(max(interval, probeLeast), probeMost))
	}
}

// probe makes one call and waits for its end. The pool sees to the end in time.
func (p *path) probe(results chan *call, now time.Time, timeout time.Duration) {
	q := p.server.probe
	c := &call{
		path: p, q: q, wire: q.wire, results: results, attempt: 1, probe: true,
		start: now, expire: now.Add(timeout),
	}
	if p.server.refusesEDNS(now) {
		c.wire = q.withoutEDNS()
	}
	p.submit(c)
	c = <-results
	if c.outcome == observe.OtherRcode && c.rcode() == dns.RcodeFormatError {
		p.server.noteNoEDNS(now)
	}
	c.report()
}
