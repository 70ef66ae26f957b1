package kube

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// shortSearch is why a resolver does not search as far as the others.
var shortSearch = map[stub]string{musl: "musl ignores a search list of more than 255 characters"}

// rootSearch is why a resolver does not get past the search domain ".".
var rootSearch = map[stub]string{musl: "musl makes a name of it that ends in two dots, and gives up"}

// testExpectations checks what Kubernetes' own DNS tests (test/e2e/network/dns.go, dns_configmap.go) expect of a
// cluster, as far as testResolve has not done so.
func (l *lab) testExpectations(ctx context.Context, t *testing.T) {
	l.apply(ctx, t, "names.yaml")
	l.awaitReady(ctx, t, "tests=names", 4)
	pods, err := l.Pods(ctx, "default", "tests=names")
	must(t, err)
	named := ""
	for _, p := range pods {
		if p.Name == "named" {
			named = p.IP
		}
	}
	everywhere := []stub{golang, glibc, musl}

	for _, c := range []struct {
		what, pod string
		list      []expectation
	}{
		{"the cluster and its parts by partial names", "named", []expectation{
			{question: "host:kubernetes.default", want: "10.96.0.1"},
			{question: "host:kubernetes.default.svc", want: "10.96.0.1"},
			{question: "host:kubernetes.default.svc.cluster.local", want: "10.96.0.1"},
			{question: "host:kube-dns.kube-system.svc", want: cluster.KubeDNS},
		}},
		{"a Service whose name starts with a digit", "named", []expectation{
			{question: "host:1st-service", want: "10.96.100.81"},
			{question: "host:1st-service.default.svc.cluster.local.", want: "10.96.100.81"},
			{question: "srv:_http._tcp.1st-service.default.svc.cluster.local.", want: "1st-service.default.svc.cluster.local.:80"},
			{question: "ptr:10.96.100.81", want: "1st-service.default.svc.cluster.local."},
		}},
		{"a pod's hostname and subdomain", "named", []expectation{
			{question: "host:given-name.subdomain", want: named},
			{question: "host:given-name.subdomain.default.svc.cluster.local.", want: named},
			{question: "ptr:" + named, want: "given-name.subdomain.default.svc.cluster.local.",
				// The pod's own name is in its /etc/hosts, which this resolver prefers, in the form there.
				except: map[stub]string{golang: "/etc/hosts", glibc: "/etc/hosts", musl: "/etc/hosts"}},
		}},
		{"another pod by its hostname and subdomain, and its PTR", "own-resolver", []expectation{
			{question: "host:given-name.subdomain.default.svc.cluster.local.", want: named},
			{question: "ptr:" + named, want: "given-name.subdomain.default.svc.cluster.local."},
		}},
		{"ExternalName", "named", []expectation{
			{question: "host:outside", want: "2001:db8:80::80,203.0.113.80"},
			{question: "host:outside.default.svc.cluster.local.", want: "2001:db8:80::80,203.0.113.80"},
			{question: "host:moving", want: "2001:db8:80::80,203.0.113.80"},
		}},
		{"more than six search domains and 256 characters", "searching", []expectation{
			{question: "host:web", want: webAddress, except: shortSearch},
			{question: "host:www", want: "2001:db8:80::80,203.0.113.80", except: shortSearch},
			{question: "host:web.default.svc.cluster.local.", want: webAddress},
		}},
		{"names and search domains with an underscore, and the root as one", "underscoring", []expectation{
			{question: "host:web", want: webAddress},
			{question: "srv:_http", want: "web.default.svc.cluster.local.:80",
				except: map[stub]string{musl: "musl's res_search does not search", golang: "Go knows no SRV question with a search"}},
			{question: "host:_under_score.example.org", want: "203.0.113.82", except: rootSearch},
			{question: "host:_under_score.example.org.", want: "203.0.113.82"},
			{question: "host:www.example.org", want: "2001:db8:80::80,203.0.113.80", except: rootSearch},
		}},
		{"a pod with a resolver configuration of its own", "own-resolver", []expectation{
			{question: "host:kube-dns", want: cluster.KubeDNS},
			{question: "host:web", want: "none"},
			{question: "host:web.default.svc.cluster.local", want: webAddress},
		}},
	} {
		t.Run(c.what, func(t *testing.T) { l.require(ctx, t, c.pod, everywhere, c.list) })
	}
	t.Run("changes", func(t *testing.T) { l.testChanges(ctx, t) })
}

const kubeDNSConfig = `apiVersion: v1
kind: ConfigMap
metadata: {name: kube-dns, namespace: kube-system}
data:
  stubDomains: |
    {%s}
`

// testChanges changes names and waits until pods see it: the stub domains of the kube-dns ConfigMap, and the target
// of an ExternalName.
func (l *lab) testChanges(ctx context.Context, t *testing.T) {
	started := time.Now()
	const stubName, moving = "host:www.acme.example.", "host:moving"
	l.require(ctx, t, "named", []stub{golang}, []expectation{{question: stubName, want: "none"}})
	must(t, l.Apply(ctx, fmt.Sprintf(kubeDNSConfig, `"acme.example": ["`+cluster.StubAddress+`"]`)))
	_, err := l.Kubectl(ctx, "patch", "service", "moving", "-p", `{"spec": {"externalName": "other.example.org"}}`)
	must(t, err)
	l.eventually(ctx, t, "named", map[string]string{stubName: "198.51.100.7", moving: "203.0.113.81"})
	progress("a stub domain and another ExternalName were seen after %.0f s", time.Since(started).Seconds())

	started = time.Now()
	must(t, l.Apply(ctx, fmt.Sprintf(kubeDNSConfig, "")))
	l.eventually(ctx, t, "named", map[string]string{stubName: "none"})
	progress("that the stub domain is gone was seen after %.0f s", time.Since(started).Seconds())
}

// eventually waits until a pod gets these answers by question.
func (l *lab) eventually(ctx context.Context, t *testing.T, pod string, want map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("a change was not seen within 3 minutes"))
	defer cancel()
	var questions []string
	for q := range want {
		questions = append(questions, q)
	}
	must(t, cluster.Poll(ctx, time.Second, func() error {
		got, err := l.lookup(ctx, pod, golang, questions...)
		for q, w := range want {
			if err == nil && got[q] != w {
				err = fmt.Errorf("%s is %q, not yet %q", q, got[q], w)
			}
		}
		return err
	}))
}
