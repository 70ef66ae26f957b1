package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Names of the cluster zone that tests may want to speak of.
const (
	// LongName has 255 octets on the wire, the most that a name can have (RFC 1035 section 2.3.4).
	LongName = "a23456789-123456789-123456789-123456789-123456789-123456789-123." +
		"b23456789-123456789-123456789-123456789-123456789-123456789-123." +
		"c23456789-123456789-123456789-123456789-123456789-123456789-123." +
		"d23456789-123456789-123456789-12345.default.svc.cluster.local."
	// AnyClusterName is a domain below which every name has an A record, for queries of names that were never asked
	// before.
	AnyClusterName = "any.default.svc.cluster.local."
	// AnyExternalName is the same at the upstream.
	AnyExternalName = "any.example.org."
)

// clusterZone is a small cluster as the Kubernetes DNS specification (version 1.1.0) wants it seen.
// ttl is that of Services in seconds; headless ones have 5.
func clusterZone(ttl uint32) *Zone {
	const domain = "cluster.local."
	z := newZone(5, domain, "233.10.in-addr.arpa.", "3.3.2.0.0.1.0.0.0.0.d.f.ip6.arpa.")
	z.mustSet("dns-version."+domain, fmt.Sprintf(`%d IN TXT "1.1.0"`, ttl))

	service := func(name, ns string, ips []string, ports ...string) {
		owner := name + "." + ns + ".svc." + domain
		for _, ip := range ips {
			z.addAddress(owner, ip, ttl)
			z.addPointer(ip, owner, ttl)
		}
		for _, p := range ports { // "_http._tcp 80"
			label, number, _ := strings.Cut(p, " ")
			z.add(label+"."+owner, fmt.Sprintf("%d IN SRV 0 100 %s %s", ttl, number, owner))
		}
	}
	service("kubernetes", "default", []string{"10.233.0.1"}, "_https._tcp 443")
	service("kube-dns", "kube-system", []string{"10.233.0.3", "fd00:10:233::3"}, "_dns._udp 53", "_dns-tcp._tcp 53", "_metrics._tcp 9153")
	service("web", "default", []string{"10.233.12.34", "fd00:10:233::1234"}, "_http._tcp 80", "_https._tcp 443")
	service("v4only", "shop", []string{"10.233.12.40"}, "_http._tcp 80")
	service("v6only", "shop", []string{"fd00:10:233::1240"})

	// A headless Service has the addresses of its pods, a name for each pod, and SRV records that point to these
	// names.
	headless := func(name, ns, port string, number, pods int, first string) {
		owner := name + "." + ns + ".svc." + domain
		ip := netip.MustParseAddr(first)
		for i := range pods {
			pod := fmt.Sprintf("%s-%d.%s", name, i, owner)
			z.addAddress(owner, ip.String(), 5)
			z.addAddress(pod, ip.String(), 5)
			z.addPointer(ip.String(), pod, 5)
			z.add(port+"."+owner, fmt.Sprintf("5 IN SRV 0 %d %d %s", 100/pods, number, pod))
			ip = ip.Next()
		}
	}
	headless("db", "default", "_postgres._tcp", 5432, 3, "10.233.65.20")
	headless("many", "default", "_peer._tcp", 7000, 60, "10.233.66.1") // more than 512 octets

	z.mustSet("ext.default.svc."+domain, fmt.Sprintf("%d IN CNAME www.example.org.", ttl))
	z.mustSet("alias.default.svc."+domain, fmt.Sprintf("%d IN CNAME web.default.svc.cluster.local.", ttl))
	z.mustSet("_under_score.default.svc."+domain, fmt.Sprintf("%d IN A 10.233.12.50", ttl))
	z.mustSet(LongName, fmt.Sprintf("%d IN A 10.233.12.55", ttl))

	any := netip.MustParseAddr("10.233.12.99")
	z.synthesize(AnyClusterName, func(owner string) []dns.RR { return []dns.RR{addressRecord(owner, any, ttl)} })
	// Pods by address: a-b-c-d.NAMESPACE.pod (CoreDNS' "pods insecure").
	for _, ns := range []string{"default", "kube-system", "shop"} {
		z.synthesize(ns+".pod."+domain, func(owner string) []dns.RR {
			label, rest, _ := strings.Cut(owner, ".")
			ip, err := netip.ParseAddr(strings.ReplaceAll(label, "-", "."))
			if err != nil || rest != ns+".pod."+domain {
				return nil
			}
			return []dns.RR{addressRecord(owner, ip, ttl)}
		})
	}
	return z
}

func addressRecord(owner string, ip netip.Addr, ttl uint32) dns.RR {
	if ip.Is4() {
		return &dns.A{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: ttl}, AAAA: ip.AsSlice()}
}

func (z *Zone) addAddress(owner, ip string, ttl uint32) {
	kind := "A"
	if netip.MustParseAddr(ip).Is6() {
		kind = "AAAA"
	}
	z.add(owner, fmt.Sprintf("%d IN %s %s", ttl, kind, ip))
}

func (z *Zone) addPointer(ip, target string, ttl uint32) {
	owner, err := dns.ReverseAddr(ip)
	if err != nil {
		panic(err)
	}
	z.add(owner, fmt.Sprintf("%d IN PTR %s", ttl, target))
}

// kubeDNS is one replica: it serves the cluster zone and forwards everything else to the upstream, as Kubernetes'
// default Corefile does.
type kubeDNS struct {
	zone     *Zone
	host     *Host
	upstream netip.AddrPort
}

// forwardTimeout is how long a replica waits for the upstream.
const forwardTimeout = 2 * time.Second

func (k kubeDNS) answer(query *dns.Msg) *dns.Msg {
	name := query.Question[0].Name
	if k.zone.holds(name) {
		m := k.zone.answer(query)
		return k.follow(query, m)
	}
	ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	defer cancel()
	answer, err := k.forward(ctx, name, query.Question[0].Qtype)
	if err != nil {
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	m := new(dns.Msg).SetRcode(query, answer.Rcode)
	m.RecursionAvailable = true
	m.Answer, m.Ns = answer.Answer, answer.Ns
	return m
}

// follow completes an answer that ends in an alias to a name outside of the cluster (ExternalName).
func (k kubeDNS) follow(query, m *dns.Msg) *dns.Msg {
	if len(m.Answer) == 0 || query.Question[0].Qtype == dns.TypeCNAME {
		return m
	}
	alias, ok := m.Answer[len(m.Answer)-1].(*dns.CNAME)
	if !ok || k.zone.holds(alias.Target) {
		return m
	}
	ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	defer cancel()
	answer, err := k.forward(ctx, alias.Target, query.Question[0].Qtype)
	if err != nil {
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	m.Answer = append(m.Answer, answer.Answer...)
	return m
}

// forward asks the upstream over UDP, and over TCP where the answer was cut.
func (k kubeDNS) forward(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype)
	q.SetEdns0(maxUDPSize, false)
	answer, _, err := k.host.Exchange(ctx, UDP, k.upstream, q)
	if err != nil || !answer.Truncated {
		return answer, err
	}
	answer, _, err = k.host.Exchange(ctx, TCP, k.upstream, q)
	return answer, err
}

// externalZone is the rest of the world: the root, and a few names below example.org and example.com.
func externalZone() *Zone {
	z := newZone(60, ".", "example.org.", "example.com.")
	z.mustSet("www.example.org.", "300 IN A 203.0.113.80", "300 IN AAAA 2001:db8:80::80")
	z.mustSet("short.example.org.", "2 IN A 203.0.113.81")
	z.mustSet("alias.example.org.", "300 IN CNAME www.example.org.")
	z.mustSet("www.example.com.", "300 IN A 203.0.113.90")
	z.mustSet("_dmarc.example.org.", `300 IN TXT "v=DMARC1; p=none"`)
	z.mustSet("example.org.", "300 IN MX 10 mail.example.org.")
	z.mustSet("mail.example.org.", "300 IN A 203.0.113.25")
	z.mustSet("53.100.51.198.in-addr.arpa.", "300 IN PTR ns.example.org.")
	z.mustSet("ns.example.org.", "300 IN A 198.51.100.53")
	ip := netip.MustParseAddr("203.0.113.100")
	for range 100 { // 1,600 octets and more: over TCP only
		z.addAddress("big.example.org.", ip.String(), 300)
		ip = ip.Next()
	}
	any, any6 := netip.MustParseAddr("203.0.113.99"), netip.MustParseAddr("2001:db8:99::99")
	z.synthesize(AnyExternalName, func(owner string) []dns.RR {
		return []dns.RR{addressRecord(owner, any, 300), addressRecord(owner, any6, 300)}
	})
	return z
}
