package kube

import (
	"context"
	"slices"
	"strings"
	"testing"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// noTCP is the reason why a resolver does not get an answer that does not fit into UDP.
var noTCP = map[stub]string{musl: "musl asks over TCP from 1.2.4 on"}

// testResolve makes every pod resolve every kind of name through the server of its own resolv.conf.
func (l *lab) testResolve(ctx context.Context, t *testing.T) {
	l.forgetTracked(ctx, t, cluster.LocalAddress) // for testNode, which checks what the queries leave
	pods, err := l.Pods(ctx, "default", "app=db")
	must(t, err)
	peers := make(map[string]string) // addresses by name
	var addresses, nodes []string
	for _, p := range pods {
		peers[p.Name] = p.IP
		addresses, nodes = append(addresses, p.IP), append(nodes, p.Node)
	}
	slices.Sort(addresses)
	if len(slices.Compact(slices.Sorted(slices.Values(nodes)))) != len(l.Nodes) {
		t.Fatalf("the peers are on %v, want one on each node", nodes)
	}

	list := []expectation{
		// Services, by each length of name: ndots:5 has all but the last searched for.
		{question: "host:web", want: webAddress},
		{question: "host:web.default", want: webAddress},
		{question: "host:web.default.svc", want: webAddress},
		{question: "host:web.default.svc.cluster.local", want: webAddress},
		{question: "host:web.default.svc.cluster.local.", want: webAddress},
		{question: "host:kubernetes.default", want: "10.96.0.1"},
		{question: "host:kube-dns.kube-system", want: cluster.KubeDNS},
		{question: "host:nosuch.default.svc.cluster.local.", want: "none"},
		// Headless, with pods of both nodes.
		{question: "host:peers", want: strings.Join(addresses, ",")},
		{question: "host:db-0.peers", want: peers["db-0"]},
		{question: "host:db-1.peers.default.svc.cluster.local", want: peers["db-1"]},
		{question: "host:10-1-2-3.default.pod.cluster.local", want: "10.1.2.3"},
		// SRV and PTR.
		{question: "srv:_http._tcp.web.default.svc.cluster.local.", want: "web.default.svc.cluster.local.:80"},
		{question: "srv:_peer._tcp.peers.default.svc.cluster.local.",
			want: "db-0.peers.default.svc.cluster.local.:7000,db-1.peers.default.svc.cluster.local.:7000"},
		{question: "ptr:" + webAddress, want: "web.default.svc.cluster.local."},
		{question: "ptr:" + peers["db-0"], want: "db-0.peers.default.svc.cluster.local."},
		{question: "ptr:" + peers["db-1"], want: "db-1.peers.default.svc.cluster.local."},
		{question: "ptr:203.0.113.80", want: "www.example.org."}, // kube-dns forwards what it does not know
		// Outside of the cluster.
		{question: "host:www.example.org", want: "2001:db8:80::80,203.0.113.80"},
		{question: "host:www.example.org.", want: "2001:db8:80::80,203.0.113.80"},
		{question: "host:alias.example.org", want: "2001:db8:80::80,203.0.113.80"},
		{question: "host:nosuch.example.org", want: "none"},
		// An answer that must come over TCP.
		{question: "txt:long.example.org.", want: longText, except: noTCP},
	}
	for _, p := range l.clients(ctx, t) {
		stubs := []stub{golang, glibc, musl}
		if strings.HasPrefix(p.Name, "client-tcp") {
			stubs = []stub{golang, glibc}
		}
		l.require(ctx, t, p.Name, stubs, append(list, expectation{
			question: "resolver:", want: cluster.LocalAddress, except: map[stub]string{glibc: "a question to Go's program", musl: "as glibc"}}))
	}
}

// longText is the TXT record of long.example.org in the output of the lookups.
const longText = "2000 bytes"

// withLongText puts that record into the Corefile of the world.
func withLongText(corefile string) string {
	part := strings.Repeat("x", 250)
	return strings.ReplaceAll(corefile, "LONG", strings.Join(slices.Repeat([]string{part}, 8), `\" \"`))
}
