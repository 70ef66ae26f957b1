package fastpath

import (
	"math"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/rcode"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
	"localcache.dev/localcache/internal/replay"
	"localcache.dev/localcache/internal/wire"
)

const second = int64(time.Second)

// classify decides whether the reply m may be learnt, and under what class. It runs before m is packed, behind
// dnsserver's ScrubWriter: m is what the client gets.
func (x *exchange) classify(m *dns.Msg) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.class, x.pass, x.uses = 0, 0, 0
	b, own := x.block, x.own
	if b == nil || !b.on || own == nil || own.form != plainForm || !x.fresh || x.missed.Load() || !replayable(own.query.Type(), own.query.Class()) || m.Truncated ||
		m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return
	}
	compressed := m.Compress
	m.Compress = false
	size := m.Len()
	m.Compress = compressed
	// ScrubWriter compresses what is longer than 1480 octets for a client with IPv4, and than 1220 with IPv6. In
	// between the reply depends on more than the query.
	if size > 1220 && size <= 1480 || size > math.MaxUint16 {
		return
	}
	if own.query.EDNS() {
		// prometheus, which comes before ScrubWriter, does not see the OPT record.
		size -= optSize
	}
	if compressed && !lowerCase(m.Question) {
		return
	}
	ttl, ok := commonTTL(m)
	denial := isDenial(m)
	if !ok || !x.lasts(b, denial, ttl) {
		return
	}
	qname := m.Question[0].Name
	zone := ""
	if b.metrics != nil {
		if zone = plugin.Zones(b.metrics.ZoneNames()).Matches(qname); zone == "" {
			zone = "."
		}
	}
	c := x.socket.count.classes.of(class{block: b, zone: zone, rcode: m.Rcode, denial: denial})
	if c == 0 {
		return
	}
	x.class = c<<16 | uint32(size)
	if compressed {
		x.class |= classCompressed
	}
}

const optSize = 11 // RFC 6891, section 6.1.2, without options

// learn stores a packed reply that classify found fit.
func (x *exchange) learn(data []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.class == 0 || x.own == nil || x.missed.Load() || len(data) > wire.MaxAnswer {
		return
	}
	x.socket.store.Put(&x.own.query, data, replay.PutOptions{
		Now: x.received, PassAfter: x.pass, Uses: x.uses, Gap: x.block.options.Gap,
		Class: x.class, Rotate: x.block.rotate,
	})
	x.class = 0
}

// replayable tells types and classes whose answers may be kept. HINFO is how loop finds loops; 128 to 255 are types
// of questions and transactions (RFC 6895, section 3.1), and 41 is OPT.
func replayable(qtype, qclass uint16) bool {
	switch {
	case qclass != dns.ClassINET, qtype == 0, qtype == dns.TypeHINFO, qtype == dns.TypeOPT, qtype >= 128 && qtype <= 255:
		return false
	}
	return true
}

func lowerCase(questions []dns.Question) bool {
	return len(questions) == 1 && questions[0].Name == strings.ToLower(questions[0].Name)
}

// commonTTL is the one TTL that cache gives all records of a hit. Where there are several, it was none.
func commonTTL(m *dns.Msg) (uint32, bool) {
	ttl, seen := uint32(0), false
	for _, section := range [...][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if h.Rrtype == dns.TypeOPT {
				continue
			}
			if seen && h.Ttl != ttl {
				return 0, false
			}
			ttl, seen = h.Ttl, true
		}
	}
	return ttl, seen && ttl > 0
}

// isDenial tells which of cache's two stores a hit came from: NXDOMAIN and NODATA have one of their own
// (RFC 2308). A chain of CNAMEs that ends without a record of the type is NODATA if an SOA record says for
// how long.
func isDenial(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeNameError || answers.HasSOA(m) && !answers.Answered(m)
}

// class is what hits are counted under.
type class struct {
	block  *block
	zone   string // of prometheus
	rcode  int
	denial bool
}

// A replayed answer's class, as the store keeps it: the length of the uncompressed answer without OPT in the lower
// half, which prometheus counts; the number of a class above it; and a mark.
const (
	classCompressed = 1 << 31
	maxClasses      = 1<<15 - 1
)

func classNumber(tag uint32) uint32 { return tag &^ classCompressed >> 16 }
func classSize(tag uint32) int      { return int(uint16(tag)) }

func (c *class) rcodeLabel() string { return rcode.ToString(c.rcode) }
