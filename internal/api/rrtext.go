package api

import (
	"fmt"
	"slices"

	"localcache.dev/localcache/internal/observe"
)

// types are the mnemonics of the types that stub resolvers ask for (IANA, DNS parameters).
var types = map[uint16]string{
	1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
	39: "DNAME", 43: "DS", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 52: "TLSA", 64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY", 257: "CAA",
}

// typeText returns a type's mnemonic, or its form in RFC 3597, section 5.
func typeText(t uint16) string {
	if s, ok := types[t]; ok {
		return s
	}
	return fmt.Sprintf("TYPE%d", t)
}

// rcodes are the mnemonics by number (RFC 6895, section 2.3).
var rcodes = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"}

const noReply = "NOREPLY"

func rcodeText(n int) string {
	switch {
	case n == observe.NoReply:
		return noReply
	case n >= 0 && n < len(rcodes):
		return rcodes[n]
	case n == 16:
		return "BADVERS"
	case n == 23:
		return "BADCOOKIE"
	}
	return fmt.Sprintf("RCODE%d", n)
}

func knownRcode(s string) bool {
	return slices.Contains(rcodes, s) || s == noReply || s == "BADVERS" || s == "BADCOOKIE"
}
