package demo

import (
	"slices"
	"testing"
	"time"

	"localcache.dev/localcache/internal/api"
)

func client(ip string) api.Client { return api.Client{Addresses: []string{ip}} }

// The account names those with problems and no others.
func TestAccount(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	well := api.Pod{Client: client("10.0.0.1"), Traffic: api.Traffic{Queries: 9000, Rcodes: map[string]uint64{"noerror": 8900, "nxdomain": 100}, SearchWaste: 100. / 8900}}
	few := api.Pod{Client: client("10.0.0.2"), Traffic: api.Traffic{Queries: 99, Rcodes: map[string]uint64{"nxdomain": 99}, SearchWaste: 99}}
	floods := api.Pod{
		Client: client("10.0.0.3"), Traffic: api.Traffic{Queries: 400, Rcodes: map[string]uint64{"noerror": 100, "nxdomain": 300}, SearchWaste: 3},
		Names: []api.Name{{Name: "www.example.org."}, {Name: "www.example.org.cluster.local."}},
	}
	slow := api.Pod{Client: client("10.0.0.4"), Traffic: api.Traffic{Retransmits: []api.Retransmit{{Resolver: "glibc", Cause: "slow_upstream", Count: 7}}, Suspected: map[string]uint64{"reply_lost": 3}}}
	loses := api.Pod{Client: api.Client{Addresses: []string{"10.0.0.5"}, Namespace: "shop", PodName: "web-0"}, Traffic: api.Traffic{Retransmits: []api.Retransmit{{Resolver: "glibc", Cause: "reply_lost", Count: 2}, {Resolver: "unknown", Cause: "reply_lost", Count: 1}}}}
	absent := []api.Name{{Name: "other.cluster.local."}, {Name: "www.example.org.cluster.local."}}
	good := api.Upstream{Upstream: "10.0.0.10:53", Proto: "tcp", Exchanges: 50, Outcomes: map[string]uint64{"noerror": 50}}
	silent := api.Upstream{
		Upstream: "192.0.2.1:53", Proto: "udp", Exchanges: 9, Outcomes: map[string]uint64{"noerror": 1, "timeout": 8},
		LastFailure: &api.Failure{At: at.Add(-3 * time.Second), Outcome: "timeout"},
	}
	waited := func(ip, upstream, outcome string, seconds float64, rcode string) api.Query {
		return api.Query{Client: client(ip), DurationSeconds: seconds, Rcode: rcode, Exchanges: []api.Exchange{{Upstream: upstream, Proto: "udp", Outcome: outcome}}}
	}
	queries := []api.Query{
		waited("10.0.0.7", "192.0.2.1:53", "timeout", 2.301, "SERVFAIL"), waited("10.0.0.6", "192.0.2.1:53", "timeout", 1.2, "NOERROR"),
		waited("10.0.0.8", "192.0.2.1:53", "noerror", 9, "NOERROR"), waited("10.0.0.9", "192.0.2.2:53", "timeout", 9, "SERVFAIL"),
	}
	for _, c := range []struct {
		what      string
		pods      []api.Pod
		upstreams []api.Upstream
		want      []string
	}{
		{"nothing", nil, nil, []string{"nothing is wrong"}},
		{"all is well", []api.Pod{well, few, slow}, []api.Upstream{good}, []string{"nothing is wrong"}},
		{"three troubles", []api.Pod{well, floods, few, slow, loses}, []api.Upstream{good, silent}, []string{
			"10.0.0.3 asks for names that do not exist: 300 of its 400 queries, 3.0 for each useful answer, such as www.example.org.cluster.local",
			"shop/web-0 asked again 3 times for what had been answered in time: replies to it get lost (reply_lost; its resolver: glibc, unknown)",
			"192.0.2.1:53 over udp was silent: no answer 8 times out of 9, the last time 3s ago (timeout)",
			"  2 queries of 10.0.0.6, 10.0.0.7 waited for it up to 2.3s and got NOERROR, SERVFAIL",
		}},
	} {
		if got := newAccount(at, c.pods, c.upstreams, absent, queries).lines(); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%q\nwant\n%q", c.what, got, c.want)
		}
	}
}
