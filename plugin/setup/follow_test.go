package setup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/kube/kubetest"
)

// kernel takes what a follower sets, in place of the Keeper.
type kernel struct {
	mu    sync.Mutex
	now   []netip.AddrPort
	times []time.Time
	err   error
	lines []string
}

func (k *kernel) set(_ context.Context, udp, _ []netip.AddrPort) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return k.err
	}
	k.now = udp
	k.times = append(k.times, time.Now())
	return nil
}

func (k *kernel) log(format string, v ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lines = append(k.lines, fmt.Sprintf(format, v...))
}
func (k *kernel) Infof(format string, v ...any)    { k.log(format, v...) }
func (k *kernel) Warningf(format string, v ...any) { k.log(format, v...) }
func (k *kernel) Errorf(format string, v ...any)   { k.log(format, v...) }

func (k *kernel) logged(text string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.lines {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to be that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func running(t *testing.T, f *follower) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// Outside of a cluster the addresses of the Corefile stay, and the log says so once.
func TestFollowOutsideOfACluster(t *testing.T) {
	k := &kernel{}
	f := &follower{
		log:     k,
		cluster: func() (kube.Config, error) { return kube.InCluster(func(string) string { return "" }) },
		inForce: func() []netip.AddrPort { return nil },
		set:     k.set,
		wake:    make(chan struct{}, 1),
	}
	running(t, f)
	for range 3 {
		f.want(kube.Service{Namespace: "kube-system", Name: "kube-dns"})
		eventually(t, "it is seen", func() bool { return len(f.wake) == 0 })
	}
	eventually(t, "it says so", func() bool {
		return k.logged("does not follow the endpoints of kube-system/kube-dns, it has no server: "+kube.ErrNotInCluster.Error()) == 1
	})
}

func TestFollow(t *testing.T) {
	s := kubetest.New(nil, "secret")
	t.Cleanup(s.Close)
	token, ca, err := s.Mount(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	slice := func(service string, addresses ...string) {
		s.Set(kubetest.Slices, kubetest.Slice("kube-system", service, service+"-a", kubetest.Ready(addresses...)...))
	}
	slice("kube-dns", "10.0.0.1")
	slice("coredns", "10.0.1.1")

	k := &kernel{}
	f := &follower{
		log:     k,
		cluster: func() (kube.Config, error) { return kube.Config{Server: s.Address, TokenFile: token, CAFile: ca}, nil },
		inForce: func() []netip.AddrPort { return []netip.AddrPort{ap("10.9.9.9:53")} },
		set:     k.set,
		wake:    make(chan struct{}, 1),
	}
	running(t, f)
	is := func(want ...string) func() bool {
		return func() bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			var got []string
			for _, a := range k.now {
				got = append(got, a.Addr().String())
			}
			return slices.Equal(got, want)
		}
	}
	kubeDNS, coreDNS := kube.Service{Namespace: "kube-system", Name: "kube-dns"}, kube.Service{Namespace: "kube-system", Name: "coredns"}

	f.want(kubeDNS)
	eventually(t, "the endpoints are the fallback", is("10.0.0.1"))
	if k.logged("until the API server at "+s.Address+" has answered, it is 10.9.9.9:53") != 1 {
		t.Errorf("log %q", k.lines)
	}
	if e, known := f.learnt(kubeDNS); !known || len(e.UDP) != 1 {
		t.Errorf("learnt %+v, %t", e, known)
	}
	if _, known := f.learnt(coreDNS); known {
		t.Error("the endpoints of one Service are given out for another's")
	}

	// A reload that names the same Service goes on with the same watch, and sets again what its Commit undid.
	k.mu.Lock()
	k.now = nil
	k.mu.Unlock()
	before := len(s.Requests())
	f.want(kubeDNS)
	eventually(t, "the endpoints are the fallback again", is("10.0.0.1"))
	if n := len(s.Requests()); n != before {
		t.Errorf("%d requests for a reload", n-before)
	}

	// A flood becomes a few changes.
	k.mu.Lock()
	k.times = nil
	k.mu.Unlock()
	began := time.Now()
	for i := range 300 {
		slice("kube-dns", fmt.Sprintf("10.0.2.%d", i%250+1))
		time.Sleep(time.Millisecond)
	}
	slice("kube-dns", "10.0.3.1")
	eventually(t, "the last change is in force", is("10.0.3.1"))
	k.mu.Lock()
	n, took := len(k.times), time.Since(began)
	k.mu.Unlock()
	if most := int(took/followGap) + 2; n > most {
		t.Errorf("%d changes of the rules in %v, want %d at most", n, took, most)
	}

	// A change that did not come to its turn is made later.
	k.mu.Lock()
	k.err = errors.New("busy for the test")
	k.mu.Unlock()
	slice("kube-dns", "10.0.3.2")
	eventually(t, "the failure is logged", func() bool { return k.logged("busy for the test; trying again") > 0 })
	k.mu.Lock()
	k.err = nil
	k.mu.Unlock()
	eventually(t, "it is made", is("10.0.3.2"))

	// The server is gone: what is known stays, across a reload too.
	s.SetToken("another")
	s.Cut()
	s.Reset()
	eventually(t, "the server is gone", func() bool { _, w := f.current(); return !w.State().Connected })
	f.want(kubeDNS)
	if e, known := f.learnt(kubeDNS); !known || e.UDP[0] != ap("10.0.3.2:53") {
		t.Errorf("learnt %+v, %t", e, known)
	}
	s.SetToken("secret")

	f.want(coreDNS)
	eventually(t, "another Service is followed", is("10.0.1.1"))
}
