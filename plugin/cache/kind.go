package cache

import (
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// kindOf is what a response is to a cache. CoreDNS's classification has every NOERROR with records in its answer section as
// positive; one whose CNAMEs lead to no record of the type that was asked for, and that has an SOA record, is NODATA
// (RFC 2308, section 2.2).
func kindOf(m *dns.Msg, now time.Time) response.Type {
	kind, _ := response.Typify(m, now.UTC())
	if kind == response.NoError && answers.HasSOA(m) && len(m.Answer) > 0 && !answers.Answered(m) {
		return response.NoData
	}
	return kind
}

// keepable tells whether a response of that kind is fit to be kept at all.
func keepable(m *dns.Msg, kind response.Type) bool {
	switch {
	case m.Truncated, len(m.Question) == 0:
		return false
	case kind == response.OtherError, kind == response.Meta, kind == response.Update:
		return false
	case kind == response.NameError:
		return answers.HasSOA(m) // which says for how long (RFC 2308, section 5)
	case kind == response.NoError && !answers.HasSOA(m) && len(m.Answer) > 0:
		// CNAMEs without an end are NODATA without an SOA record. Without any answer it may be one that has its data
		// elsewhere, as whoami's.
		return answers.Answered(m)
	}
	return true
}

// negative tells in which of the two stores a kind is kept.
func negative(kind response.Type) bool {
	return kind == response.NameError || kind == response.NoData || kind == response.ServerError
}

// lifetime is for how long a response of that kind is to be kept.
func (c *Config) lifetime(m *dns.Msg, kind response.Type) time.Duration {
	k := &c.Success
	switch kind {
	case response.ServerError:
		return c.ServFail
	case response.NameError, response.NoData:
		k = &c.Denial
	}
	return min(max(dnsutil.MinimalTTLWithMaximum(m, kind, k.MaxTTL), k.MinTTL), k.MaxTTL)
}
