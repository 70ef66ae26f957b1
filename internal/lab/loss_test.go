package lab

import (
	"context"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Each loss drops the described messages and no others, of its pod only.
func TestLose(t *testing.T) {
	l := Start(t, Config{})
	const name, other = "web.default.svc.cluster.local.", "kubernetes.default.svc.cluster.local."
	for _, c := range []struct {
		what             string
		losses           []Loss
		name             string
		qtype            uint16
		silent           int // of three questions, the first ones
		queries, replies int // lost
	}{
		{"none", nil, name, dns.TypeA, 0, 0, 0},
		{"queries", []Loss{{}}, name, dns.TypeA, 3, 3, 0},
		{"replies", []Loss{{Replies: true}}, name, dns.TypeA, 3, 0, 3},
		{"the first query", []Loss{{First: 1}}, name, dns.TypeA, 1, 1, 0},
		{"the first two replies", []Loss{{Replies: true, First: 2}}, name, dns.TypeA, 2, 0, 2},
		{"a name", []Loss{{Name: name}}, name, dns.TypeA, 3, 3, 0},
		{"another name", []Loss{{Name: other}, {Name: other, Replies: true}}, name, dns.TypeA, 0, 0, 0},
		{"a type", []Loss{{Name: name, Type: dns.TypeAAAA, Replies: true}}, name, dns.TypeAAAA, 3, 0, 3},
		{"another type", []Loss{{Name: name, Type: dns.TypeAAAA, Replies: true}}, name, dns.TypeA, 0, 0, 0},
		{"the first of a type, both ways", []Loss{{Name: name, Type: dns.TypeAAAA, First: 1}, {Name: name, Type: dns.TypeAAAA, First: 1, Replies: true}}, name, dns.TypeAAAA, 2, 1, 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			if err := l.Lose(l.Pods[0], c.losses...); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				for pod, silent := range []bool{i < c.silent, false} {
					timeout := 20 * time.Second
					if silent {
						timeout = 200 * time.Millisecond
					}
					ctx, cancel := context.WithTimeout(t.Context(), timeout)
					m, _, err := l.Pods[pod].Ask(ctx, UDP, l.KubeDNS[0].Host.IPv4, c.name, c.qtype)
					cancel()
					if silent != isTimeout(err) || !silent && err != nil {
						t.Errorf("question %d of pod-%d: %v, %v; want silence: %v", i+1, pod+1, m, err, silent)
					}
				}
			}
			queries, replies, err := l.Lost(l.Pods[0])
			if err != nil || queries != c.queries || replies != c.replies {
				t.Errorf("lost %d queries and %d replies (%v), want %d and %d", queries, replies, err, c.queries, c.replies)
			}
		})
	}
	if err := l.Lose(l.Pods[0], Loss{Type: dns.TypeA}); err == nil {
		t.Error("a type without a name: no error")
	}
}
