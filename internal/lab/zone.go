package lab

import (
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Zone is authoritative data for one or more domains, changeable while it is served.
type Zone struct {
	mu      sync.RWMutex
	origins []string                               // longest match decides the SOA of negative answers
	sets    map[string][]dns.RR                    // by lower-case owner
	exists  map[string]int                         // owners and the names above them, with the number of records sets that need them
	below   map[string]func(owner string) []dns.RR // for any name below the key that is not listed
	minTTL  uint32                                 // seconds, of negative answers
}

func newZone(minTTL uint32, origins ...string) *Zone {
	return &Zone{origins: origins, sets: map[string][]dns.RR{}, exists: map[string]int{},
		below: map[string]func(string) []dns.RR{}, minTTL: minTTL}
}

// Set replaces the records of a name; without records the name ceases to exist. Each record is the text of a master
// file line without the owner: "30 IN A 10.233.0.1".
func (z *Zone) Set(name string, records ...string) error {
	name = dns.CanonicalName(name)
	rrs := make([]dns.RR, 0, len(records))
	for _, r := range records {
		rr, err := dns.NewRR(name + " " + r)
		if err != nil {
			return fmt.Errorf("zone: record %q of %s: %w", r, name, err)
		}
		if rr == nil {
			return fmt.Errorf("zone: record %q of %s is empty", r, name)
		}
		rrs = append(rrs, rr)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	had := len(z.sets[name]) > 0
	delete(z.sets, name)
	if len(rrs) > 0 {
		z.sets[name] = rrs
	}
	change := 0
	if had && len(rrs) == 0 {
		change = -1
	} else if !had && len(rrs) > 0 {
		change = 1
	}
	for n, end := name, false; !end; {
		z.exists[n] += change
		var next int
		if next, end = dns.NextLabel(n, 0); !end {
			n = n[next:]
		}
	}
	return nil
}

// mustSet is Set for the lab's own data.
func (z *Zone) mustSet(name string, records ...string) {
	if err := z.Set(name, records...); err != nil {
		panic(err)
	}
}

// add appends a record to those of a name.
func (z *Zone) add(name, record string) {
	z.mu.RLock()
	var records []string
	for _, rr := range z.sets[dns.CanonicalName(name)] {
		_, text, _ := strings.Cut(rr.String(), "\t")
		records = append(records, text)
	}
	z.mu.RUnlock()
	z.mustSet(name, append(records, record)...)
}

// synthesize makes every unlisted name below a domain exist, with the records that f returns; none means NXDOMAIN.
func (z *Zone) synthesize(domain string, f func(owner string) []dns.RR) {
	z.below[dns.CanonicalName(domain)] = f
}

// holds reports whether the zone is the authority for a name.
func (z *Zone) holds(name string) bool { return z.origin(dns.CanonicalName(name)) != "" }

func (z *Zone) origin(name string) string {
	longest := ""
	for _, o := range z.origins {
		if dns.IsSubDomain(o, name) && len(o) > len(longest) {
			longest = o
		}
	}
	return longest
}

// lookup returns a name's records, of any type, and whether it exists.
func (z *Zone) lookup(name string) ([]dns.RR, bool) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	if rrs := z.sets[name]; rrs != nil {
		return rrs, true
	}
	if z.exists[name] > 0 {
		return nil, true
	}
	for n := name; ; {
		next, end := dns.NextLabel(n, 0)
		if end {
			return nil, false
		}
		n = n[next:]
		if f := z.below[n]; f != nil {
			rrs := f(name)
			return rrs, rrs != nil
		}
	}
}

// answer answers a query from the zone, following aliases within it (RFC 1034 section 4.3.2), with a
// SOA record in negative answers (RFC 2308 section 3).
func (z *Zone) answer(query *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(query)
	q := query.Question[0]
	owner := q.Name // the first records carry the name as it was asked
	for range 8 {
		name := dns.CanonicalName(owner)
		if !z.holds(name) {
			if len(m.Answer) == 0 {
				m.Rcode = dns.RcodeRefused
			}
			return m // an alias to another zone: the client continues from there
		}
		m.Authoritative = true
		rrs, exists := z.lookup(name)
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		var alias string
		found := false
		for _, rr := range rrs {
			c, isAlias := rr.(*dns.CNAME)
			if rr.Header().Rrtype != q.Qtype && q.Qtype != dns.TypeANY && !isAlias {
				continue
			}
			rr = dns.Copy(rr)
			rr.Header().Name = owner
			m.Answer = append(m.Answer, rr)
			found = true
			if isAlias && q.Qtype != dns.TypeCNAME && q.Qtype != dns.TypeANY {
				alias = c.Target
			}
		}
		if !found {
			m.Ns = append(m.Ns, z.soa(name))
		}
		if alias == "" {
			return m
		}
		owner = alias
	}
	m.Rcode = dns.RcodeServerFailure // aliases in a circle
	return m
}

func (z *Zone) soa(name string) dns.RR {
	origin := z.origin(name)
	below := strings.TrimPrefix(origin, ".") // nothing for the root
	return &dns.SOA{
		Hdr:    dns.RR_Header{Name: origin, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: z.minTTL},
		Ns:     "ns.dns." + below,
		Mbox:   "hostmaster." + below,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: z.minTTL,
	}
}
