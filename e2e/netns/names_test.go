package netns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/lab"
)

// question is asked through localcache and at the server that knows the answer. rcode and answers are the expected
// result, so that two servers which fail alike do not pass.
type question struct {
	name    string
	qtype   uint16
	rcode   int
	answers int
}

// clusterQuestions follow the Kubernetes DNS specification, version 1.1.0; the numbers are its sections.
var clusterQuestions = []question{
	{"dns-version.cluster.local.", dns.TypeTXT, dns.RcodeSuccess, 1}, // 2.2

	{"kubernetes.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 1}, // 2.3.1
	{"web.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 1},
	{"web.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, 1},
	{"v6only.shop.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, 1},
	{"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, 1}, // 2.3.2
	{"_dns._udp.kube-dns.kube-system.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, 1},
	{"34.12.233.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, 1}, // 2.3.3
	{reverse("fd00:10:233::1234"), dns.TypePTR, dns.RcodeSuccess, 1},

	{"db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 3}, // 2.4.1
	{"db-1.db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 1},
	{"_postgres._tcp.db.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, 3}, // 2.4.2
	{"21.65.233.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, 1},                   // 2.4.3
	{"many.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 60},
	{"_peer._tcp.many.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, 60},

	{"ext.default.svc.cluster.local.", dns.TypeCNAME, dns.RcodeSuccess, 1}, // 2.5
	{"ext.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 2},
	{"alias.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 2},
	{"10-233-64-11.default.pod.cluster.local.", dns.TypeA, dns.RcodeSuccess, 1},

	// A name that does not exist, and names that exist without the type asked for.
	{"absent.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, 0},
	{"absent.absent.svc.cluster.local.", dns.TypeSRV, dns.RcodeNameError, 0},
	{"web.absent.pod.cluster.local.", dns.TypeA, dns.RcodeNameError, 0},
	{"250.12.233.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, 0},
	{"v4only.shop.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, 0},
	{"v6only.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 0},
	{"default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 0},

	{"_under_score.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 1},
	{lab.LongName, dns.TypeA, dns.RcodeSuccess, 1},
	{"z" + lab.LongName[1:], dns.TypeA, dns.RcodeNameError, 0}, // 255 octets too
}

// externalQuestions are the upstream's business.
var externalQuestions = []question{
	{"www.example.org.", dns.TypeA, dns.RcodeSuccess, 1},
	{"www.example.org.", dns.TypeAAAA, dns.RcodeSuccess, 1},
	{"alias.example.org.", dns.TypeA, dns.RcodeSuccess, 2},
	{"example.org.", dns.TypeMX, dns.RcodeSuccess, 1},
	{"_dmarc.example.org.", dns.TypeTXT, dns.RcodeSuccess, 1},
	{"big.example.org.", dns.TypeA, dns.RcodeSuccess, 100},
	{"absent.example.org.", dns.TypeA, dns.RcodeNameError, 0},
	{"www.example.com.", dns.TypeAAAA, dns.RcodeSuccess, 0},
	{longest(lab.AnyExternalName), dns.TypeA, dns.RcodeSuccess, 1},
	{longest("absent.example.com."), dns.TypeA, dns.RcodeNameError, 0},
}

func reverse(addr string) string {
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		panic(err)
	}
	return name
}

// longest is a name of 255 octets below zone: labels of 63 octets, and a last one that fills up.
func longest(zone string) string {
	const most = 255
	room := most - (len(zone) + 1) // a name has one octet more than its text
	var labels []string
	for room > 0 {
		n := min(room-1, 63)
		if room-1-n == 1 {
			n-- // a single octet of room would hold no label
		}
		labels = append(labels, strings.Repeat("x", n))
		room -= n + 1
	}
	return strings.Join(labels, ".") + "." + zone
}

var localIP = netip.MustParseAddr(lab.LocalIP)

// TestNames asks one localcache, started with Corefile.example, for every kind of name.
func TestNames(t *testing.T) {
	// Under the race detector each of the many resolvers would sleep a second at its end.
	t.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	l := lab.Start(t, lab.Config{Pods: 3})
	start(t, l, serveOptions{})

	t.Run("cluster", func(t *testing.T) { agree(t, l, l.KubeDNS[0].Host.IPv4, clusterQuestions) })
	t.Run("external", func(t *testing.T) { agree(t, l, l.Upstream.Host.IPv4, externalQuestions) })
	t.Run("letter case", func(t *testing.T) { letterCase(t, l) })
	t.Run("pairs of one socket", func(t *testing.T) { pairs(t, l) })
	t.Run("stub resolvers", func(t *testing.T) { stubResolvers(t, l) })
	t.Run("long search list", func(t *testing.T) { longSearchList(t, l) })
}

// agree compares the answers of localcache, first and cached, over both transports, with and without EDNS, with those
// of the server itself.
func agree(t *testing.T, l *lab.Lab, server netip.Addr, questions []question) {
	for i, q := range questions {
		t.Run(fmt.Sprintf("%.40s %s", q.name, dns.TypeToString[q.qtype]), func(t *testing.T) {
			if n := len(packed(t, q, false)) - 12 - 4; strings.HasPrefix(q.name, "x") && n != 255 {
				t.Fatalf("the name has %d octets; this test wants 255", n)
			}
			// Each way gets its turn to be the one that fills the cache.
			ways := []lab.Transport{lab.UDP, lab.TCP}
			if i%2 == 1 {
				slices.Reverse(ways)
			}
			for round := range 2 {
				for _, transport := range ways {
					for _, edns := range []bool{true, false} {
						what := fmt.Sprintf("round %d over %s, EDNS %v", round+1, transport, edns)
						direct := exchange(t, l, transport, server, q, edns)
						got := exchange(t, l, transport, localIP, q, edns)
						if diff := difference(direct, got); diff != "" {
							t.Errorf("%s: %s", what, diff)
						}
						if transport == lab.UDP && got.Truncated {
							continue // the rest comes over TCP, the next in line
						}
						if got.Rcode != q.rcode || len(got.Answer) != q.answers {
							t.Errorf("%s: got %s with %d records, want %s with %d", what,
								dns.RcodeToString[got.Rcode], len(got.Answer), dns.RcodeToString[q.rcode], q.answers)
						}
					}
				}
			}
		})
	}
}

func message(q question, edns bool) *dns.Msg {
	m := new(dns.Msg).SetQuestion(q.name, q.qtype)
	if edns {
		m.SetEdns0(1232, false)
	}
	return m
}

func packed(t *testing.T, q question, edns bool) []byte {
	t.Helper()
	b, err := message(q, edns).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// exchange sends a question once, from a fresh socket of the first pod.
func exchange(t *testing.T, l *lab.Lab, transport lab.Transport, server netip.Addr, q question, edns bool) *dns.Msg {
	t.Helper()
	m := message(q, edns)
	answer, _, err := l.Pods[0].Exchange(t.Context(), transport, netip.AddrPortFrom(server, 53), m)
	if err != nil {
		t.Fatalf("%s %s: %v", q.name, dns.TypeToString[q.qtype], err)
	}
	if len(answer.Question) != 1 || answer.Question[0] != m.Question[0] {
		t.Fatalf("asked %v, got an answer to %v", m.Question, answer.Question)
	}
	if size := answer.IsEdns0(); (size != nil) != edns {
		t.Errorf("%s: EDNS in the query: %v, in the answer: %v", server, edns, size != nil)
	}
	return answer
}

// difference returns how got differs from want: TTLs and the order of records do not count, and of truncated answers
// only that both are truncated.
func difference(want, got *dns.Msg) string {
	if want.Rcode != got.Rcode {
		return fmt.Sprintf("rcode %s, directly it is %s", dns.RcodeToString[got.Rcode], dns.RcodeToString[want.Rcode])
	}
	if want.Truncated != got.Truncated {
		return fmt.Sprintf("truncated: %v, directly it is %v", got.Truncated, want.Truncated)
	}
	if want.Truncated {
		return ""
	}
	for _, section := range []struct {
		name      string
		want, got []dns.RR
	}{{"answer", want.Answer, got.Answer}, {"authority", want.Ns, got.Ns}} {
		w, g := timeless(section.want), timeless(section.got)
		if !slices.Equal(w, g) {
			return fmt.Sprintf("%s section\n%s\ndirectly it is\n%s", section.name, strings.Join(g, "\n"), strings.Join(w, "\n"))
		}
	}
	return ""
}

// timeless returns the records as sorted text without their TTLs.
func timeless(rrs []dns.RR) []string {
	var texts []string
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		rr = dns.Copy(rr)
		rr.Header().Ttl = 0
		texts = append(texts, rr.String())
	}
	slices.Sort(texts)
	return texts
}

// letterCase: resolvers that mix upper and lower case into a name, as a token against forged answers,
// want the very same letters back in the question, also where another spelling filled the cache.
func letterCase(t *testing.T, l *lab.Lab) {
	for _, spellings := range [][]string{
		{"wEb.DEfauLt.sVc.cluSTer.LOcal.", "WEB.default.SVC.cluster.LOCAL.", "web.default.svc.cluster.local."},
		{"ABsent.Default.svc.Cluster.local.", "absENT.default.svc.cluster.locAL."},
		{"wWw.ExAmPlE.oRg.", "WwW.eXaMpLe.OrG."},
	} {
		for _, name := range spellings {
			for round := range 2 {
				for _, transport := range []lab.Transport{lab.UDP, lab.TCP} {
					// exchange compares the questions letter by letter.
					got := exchange(t, l, transport, localIP, question{name: name, qtype: dns.TypeA}, true)
					absent := strings.EqualFold(name[:6], "absent")
					if absent && got.Rcode != dns.RcodeNameError || !absent && len(got.Answer) != 1 {
						t.Errorf("%s over %s, round %d: %v", name, transport, round+1, got)
					}
				}
			}
		}
	}
}

// pairs asks for A and AAAA at once from one socket, as glibc does, with both queries under way before the first
// answer. On the tracked path to a Service one of the two can get lost.
func pairs(t *testing.T, l *lab.Lab) {
	const sockets = 100
	for i := range sockets {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		conn, err := l.Pods[0].Dial(ctx, "udp", netip.AddrPortFrom(localIP, 53).String())
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		c := &dns.Conn{Conn: conn, UDPSize: 1232}
		waiting := map[uint16]uint16{} // ID to type
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m := message(question{name: fmt.Sprintf("pair-%d.%s", i, lab.AnyClusterName), qtype: qtype}, false)
			m.Id = uint16(2*i) + qtype
			waiting[m.Id] = qtype
			if err := c.WriteMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for len(waiting) > 0 {
			m, err := c.ReadMsg()
			if err != nil {
				t.Fatalf("socket %d: no answer for %v: %v", i, slices.Collect(maps.Values(waiting)), err)
			}
			qtype, ok := waiting[m.Id]
			records := 0
			if qtype == dns.TypeA {
				records = 1
			}
			if !ok || m.Question[0].Qtype != qtype || m.Rcode != dns.RcodeSuccess || len(m.Answer) != records {
				t.Fatalf("socket %d: not an answer to one of %v: %v", i, waiting, m)
			}
			delete(waiting, m.Id)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// lookups are names as applications write them, with the expected result for a pod of namespace default.
var lookups = []struct {
	name    string
	network string
	want    []string
}{
	{"web", "ip", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{"web.default", "ip", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{"web.default.svc", "ip", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{"web.default.svc.cluster.local", "ip", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{"web.default.svc.cluster.local.", "ip", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{"kubernetes", "ip4", []string{"10.233.0.1"}},
	{"v4only.shop", "ip", []string{"10.233.12.40"}},
	{"v6only.shop.svc", "ip", []string{"fd00:10:233::1240"}},
	{"db", "ip4", []string{"10.233.65.20", "10.233.65.21", "10.233.65.22"}},
	{"db-2.db", "ip4", []string{"10.233.65.22"}},
	{"ext", "ip", []string{"2001:db8:80::80", "203.0.113.80"}},
	{"_under_score", "ip4", []string{"10.233.12.50"}},
	{"www.example.org", "ip", []string{"2001:db8:80::80", "203.0.113.80"}},
	{strings.TrimSuffix(lab.LongName, "."), "ip4", []string{"10.233.12.55"}},
	{"absent.example.org", "ip", nil},
	{"absent", "ip", nil},
	{"_postgres._tcp.db.default.svc.cluster.local", "srv",
		[]string{"db-0.db.default.svc.cluster.local. 5432", "db-1.db.default.svc.cluster.local. 5432", "db-2.db.default.svc.cluster.local. 5432"}},
	{"10.233.12.34", "ptr", []string{"web.default.svc.cluster.local."}},
	{"10.233.65.21", "ptr", []string{"db-1.db.default.svc.cluster.local."}},
	{"fd00:10:233::1234", "ptr", []string{"web.default.svc.cluster.local."}},
}

// stubResolvers makes Go's and glibc's resolvers resolve in a pod whose name server is localcache, with the ordinary
// resolv.conf of a pod: three search domains and ndots:5.
func stubResolvers(t *testing.T, l *lab.Lab) {
	databases := map[string]string{"ip": "ahosts", "ip4": "ahostsv4"}
	for _, lookup := range lookups {
		t.Run(fmt.Sprintf("%.40s %s", lookup.name, lookup.network), func(t *testing.T) {
			rs, err := l.Pods[0].Resolve(t.Context(), lab.Lookup{Name: lookup.name, Network: lookup.network, Times: 2})
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range rs {
				slices.Sort(r.Answers)
				if !slices.Equal(r.Answers, lookup.want) || r.NotFound != (len(lookup.want) == 0) {
					t.Errorf("Go's resolver, time %d: %v (%s), want %v", i+1, r.Answers, r.Err, lookup.want)
				}
			}
			database := databases[lookup.network]
			if database == "" {
				return
			}
			got, err := l.Pods[0].Getent(t.Context(), database, lookup.name)
			if errors.Is(err, lab.ErrNoGetent) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			if !slices.Equal(got, lookup.want) {
				t.Errorf("glibc's resolver: %v, want %v", got, lookup.want)
			}
		})
	}
}

// longSearchList: Kubernetes allows 32 search domains of 2,048 octets together (KEP-2595), and resolvers try the next
// one depending on localcache's answers for the previous ones.
func longSearchList(t *testing.T, l *lab.Lab) {
	var search []string
	for i := range 7 {
		search = append(search, fmt.Sprintf("team-%d.a-rather-long-name-of-a-department.corp.example.com", i+1))
	}
	search = append(search, "default.svc.cluster.local")
	if n := len(strings.Join(search, " ")); n <= 256 {
		t.Fatalf("the search list has %d octets; more than 256, the former limit, are wanted", n)
	}
	pod := l.Pods[2]
	conf := lab.ResolvConf{Nameservers: []netip.Addr{localIP}, Search: search, Options: []string{"ndots:5"}}
	if err := pod.WriteResolvConf(conf.String()); err != nil {
		t.Fatal(err)
	}
	want := []string{"10.233.12.34"}
	rs, err := pod.Resolve(t.Context(), lab.Lookup{Name: "web", Network: "ip4"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(rs[0].Answers, want) {
		t.Errorf("Go's resolver: %v (%s), want %v", rs[0].Answers, rs[0].Err, want)
	}
	for _, domain := range search[:7] {
		if l.Upstream.Record.Asked("web."+domain+".", "") == 0 {
			t.Errorf("the resolver found web without asking for it below %s", domain)
		}
	}
	got, err := pod.Getent(t.Context(), "ahostsv4", "web")
	if errors.Is(err, lab.ErrNoGetent) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("glibc's resolver: %v, want %v", got, want)
	}
}
