package fastpath

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/freeport"
)

// freePort is a port of 127.0.0.1 that is free for UDP and TCP, so that two servers differ in their label.
// samples are all of coredns_dns_* and coredns_cache_* of one server, but for the sums and buckets of durations.
func samples(t testing.TB, server string) map[string]float64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "coredns_dns_") && !strings.HasPrefix(name, "coredns_cache_") {
			continue
		}
		for _, m := range f.GetMetric() {
			key, ours := name, false
			for _, l := range m.GetLabel() {
				if l.GetName() == "server" {
					ours = l.GetValue() == server
					continue
				}
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			if !ours {
				continue
			}
			h := m.GetHistogram()
			if h == nil {
				out[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
				continue
			}
			out[key+" count"] = float64(h.GetSampleCount())
			native, count := int64(0), int64(0)
			for i, d := range h.GetPositiveDelta() {
				count += d
				native += count
				if !strings.Contains(name, "duration") {
					out[fmt.Sprint(key, " native ", i)] = float64(count)
				}
			}
			out[key+" native"] = float64(native) + float64(h.GetZeroCount())
			if strings.Contains(name, "duration") {
				continue
			}
			out[key+" spans "+fmt.Sprint(h.GetPositiveSpan())] = 1
			out[key+" sum"] = h.GetSampleSum()
			for _, b := range h.GetBucket() {
				out[fmt.Sprint(key, " le ", b.GetUpperBound())] = float64(b.GetCumulativeCount())
			}
		}
	}
	return out
}

// The same stream of queries, with and without the fast path, gives the same samples.
func TestCountedAsTheChainWould(t *testing.T) {
	for name, block := range map[string]string{
		"usual": "prometheus 127.0.0.1:0\n errors\n loadbalance\n cache\n %s\n forward . UPSTREAM",
		// Whom prometheus counts as the writer is who stands behind it.
		"cache alone":   "prometheus 127.0.0.1:0\n cache 20\n %s\n forward . UPSTREAM",
		"no prometheus": "errors\n cache\n %s\n forward . UPSTREAM",
		"bufsize":       "bufsize 1232\n prometheus 127.0.0.1:0\n local\n any\n cache\n %s\n forward . UPSTREAM",
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			ports := [2]int{freeport.Port(t), freeport.Port(t)}
			var clients [2]*client
			for i, word := range []string{"fastpath", ""} {
				var corefile strings.Builder
				for _, zone := range []string{".", "sub.example", "other.example"} {
					fmt.Fprintf(&corefile, "%s:%d {\n bind 127.0.0.1\n %s\n}\n", zone, ports[i], fmt.Sprintf(block, word))
				}
				r := run(t, corefile.String(), u)
				clients[i] = dial(t, r.addr(0))
			}
			before := hits(t)
			rng := rand.New(rand.NewPCG(1, 2))
			names := []string{"a.example.", "B.sub.example.", "c.other.example.", "x.nx.", "y.alias.", "z.big.", "t.three.", "l.localhost.", "1.0.0.127.in-addr.arpa.", "f.fail."}
			types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeSRV, dns.TypeMX, dns.TypePTR, dns.TypeHTTPS,
				dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeCNAME, dns.TypeNAPTR, dns.TypeANY, dns.TypeHINFO, dns.TypeDNSKEY,
				dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG, dns.TypeSVCB}
			for range 3000 {
				q := question(names[rng.IntN(len(names))], dns.TypeA)
				if rng.IntN(3) == 0 {
					q.Question[0].Qtype = types[rng.IntN(len(types))]
				}
				q.CheckingDisabled = rng.IntN(10) == 0
				q.AuthenticatedData = rng.IntN(10) == 0
				if rng.IntN(2) == 0 {
					q.SetEdns0([]uint16{512, 1232, 4096}[rng.IntN(3)], rng.IntN(2) == 0)
				}
				clients[0].exchange(q.Copy())
				clients[1].exchange(q)
			}
			if hits(t) < before+500 {
				t.Errorf("only %.0f hits: the test tests nothing", hits(t)-before)
			}
			var fast, stock map[string]float64
			servers := [2]string{fmt.Sprintf("dns://127.0.0.1:%d", ports[0]), fmt.Sprintf("dns://127.0.0.1:%d", ports[1])}
			eventually(t, "the last one is counted", func() bool {
				fast, stock = samples(t, servers[0]), samples(t, servers[1])
				return total(fast) >= total(stock)
			})
			if len(stock) < 3 {
				t.Fatalf("only %d samples", len(stock))
			}
			keys := slices.Collect(maps.Keys(stock))
			keys = slices.AppendSeq(keys, maps.Keys(fast))
			slices.Sort(keys)
			for _, k := range slices.Compact(keys) {
				a, inFast := fast[k]
				b, inStock := stock[k]
				if a != b || inFast != inStock {
					t.Errorf("%s: %v with the fast path, %v without", k, a, b)
				}
			}
		})
	}
}

func total(samples map[string]float64) float64 {
	n := 0.0
	for _, v := range samples {
		n += v
	}
	return n
}
