package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/lab"
)

// demoLookup is one name that a pod resolves, and the expected result.
type demoLookup struct {
	pod     int
	glibc   bool
	name    string
	network string // of lab.Lookup
	want    []string
}

var demoLookups = []demoLookup{
	{0, false, "kubernetes", "ip4", []string{"10.233.0.1"}},
	{0, false, "web.default", "ip", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{1, true, "web.default.svc.cluster.local", "ahosts", []string{"10.233.12.34", "fd00:10:233::1234"}},
	{1, true, "db.default", "ahostsv4", []string{"10.233.65.20", "10.233.65.21", "10.233.65.22"}},
	{0, false, "_https._tcp.kubernetes.default.svc.cluster.local", "srv", []string{"kubernetes.default.svc.cluster.local. 443"}},
	{0, false, "10.233.12.34", "ptr", []string{"web.default.svc.cluster.local."}},
	{0, false, "www.example.org", "ip", []string{"2001:db8:80::80", "203.0.113.80"}},
	{1, true, "www.example.com", "ahostsv4", []string{"203.0.113.90"}},
}

// lookups has the pods resolve each name twice, by their stub resolvers.
func (d *demonstration) lookups(ctx context.Context) error {
	d.title("Pods resolve through %s", lab.LocalIP)
	d.lab.ResetRecords()
	rows := [][]string{{"POD", "RESOLVER", "NAME", "ANSWER", "FIRST", "AGAIN"}}
	var wrong, missed []string
	noGetent := false
	for _, l := range demoLookups {
		first, firstTook, err := d.resolve(ctx, l)
		if errors.Is(err, lab.ErrNoGetent) {
			noGetent = true
			continue
		}
		if err != nil {
			return err
		}
		before := d.upstreamQueries()
		again, againTook, err := d.resolve(ctx, l)
		if err != nil {
			return err
		}
		from := "cached"
		if n := d.upstreamQueries() - before; n != 0 {
			missed = append(missed, l.name)
			from = fmt.Sprintf("asked %d times", n)
		}
		for _, got := range [][]string{first, again} {
			if !slices.Equal(slices.Sorted(slices.Values(got)), l.want) {
				wrong = append(wrong, l.name)
			}
		}
		resolver := "Go"
		if l.glibc {
			resolver = "glibc getent"
		}
		answer := strings.Join(first, ", ")
		if answer == "" {
			answer = "none"
		}
		rows = append(rows, []string{d.lab.Pods[l.pod].Name, resolver, l.name, answer, firstTook, strings.TrimSpace(againTook + " " + from)})
	}
	d.table(rows)
	if noGetent {
		d.line("(glibc's resolver was not tried: this machine has no getent)")
	}
	d.promise(len(wrong) == 0, "every answer is the one of the zone%s", naming(wrong))
	d.promise(len(missed) == 0, "the second time all came from the cache: neither kube-dns nor the upstream was asked%s", naming(missed))
	tcp, udp := d.lab.KubeDNSTotal(lab.TCP), d.lab.KubeDNSTotal(lab.UDP)
	conns := 0
	for _, s := range d.lab.KubeDNS {
		conns += s.Record.Conns()
	}
	d.promise(tcp > 0 && udp == 0, "kube-dns was asked over TCP only: %d queries, %d new connections, %d over UDP", tcp, conns, udp)
	return nil
}

// resolve asks a stub resolver in the lookup's pod, and returns how long it took if the start of a process does not
// hide it.
func (d *demonstration) resolve(ctx context.Context, l demoLookup) (answers []string, took string, err error) {
	pod := d.lab.Pods[l.pod]
	if l.glibc {
		answers, err = pod.Getent(ctx, l.network, l.name)
		return answers, "", err
	}
	rs, err := pod.Resolve(ctx, lab.Lookup{Name: l.name, Network: l.network})
	if err != nil {
		return nil, "", err
	}
	return rs[0].Answers, round(rs[0].Took).String(), nil
}

// upstreamQueries counts the queries that localcache sent for pods. The loop plugin also sends some, for HINFO, in
// the first seconds.
func (d *demonstration) upstreamQueries() int {
	n := 0
	for _, s := range append(slices.Clone(d.lab.KubeDNS), d.lab.Upstream) {
		for _, q := range s.Record.Queries() {
			if q.Type != dns.TypeHINFO {
				n++
			}
		}
	}
	return n
}

func naming(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return ", except for " + strings.Join(slices.Compact(names), ", ")
}

// trackedQueries is how many new sockets ask each address. The kernel forgets an answered UDP flow after 30 s or
// more; the queries take less than a second.
const trackedQueries = 200

// tracking shows what queries cost in the node's connection tracking table.
func (d *demonstration) tracking(ctx context.Context) error {
	d.title("Connection tracking on the node, after %d queries from fresh sockets of pod-1, half UDP, half TCP", trackedQueries)
	pod := d.lab.Pods[0]
	count := func(server netip.Addr) (int, error) {
		for i := range trackedQueries {
			transport := lab.UDP
			if i%2 == 1 {
				transport = lab.TCP
			}
			qctx, cancel := context.WithTimeout(ctx, dialTimeout)
			_, _, err := pod.Ask(qctx, transport, server, "web.default.svc.cluster.local", dns.TypeA)
			cancel()
			if err != nil {
				return 0, err
			}
		}
		flows, err := d.lab.Node.Conntrack(server)
		// localcache's own connections to the Service are not the pod's.
		flows = slices.DeleteFunc(flows, func(f lab.Flow) bool { return f.From.Addr() != pod.IPv4 })
		return len(flows), err
	}
	local, err := count(netip.MustParseAddr(lab.LocalIP))
	if err != nil {
		return err
	}
	service, err := count(d.lab.Service)
	if err != nil {
		return err
	}
	d.table([][]string{
		{lab.LocalIP, "localcache", fmt.Sprintf("%d entries", local)},
		{d.lab.Service.String(), "kube-dns' Service address, asked directly", fmt.Sprintf("%d entries", service)},
	})
	d.promise(local == 0 && service > 0, "queries to %s are not tracked, so they cannot fill the table or race in it", lab.LocalIP)
	return nil
}
