package kube

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube/kubetest"
)

var kubeDNS = Service{"kube-system", "kube-dns"}

// testLog keeps what is logged.
type testLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *testLog) add(level, format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, level+" "+fmt.Sprintf(format, v...))
}
func (l *testLog) Infof(format string, v ...any)    { l.add("INFO", format, v...) }
func (l *testLog) Warningf(format string, v ...any) { l.add("WARN", format, v...) }
func (l *testLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// count counts the lines that hold text.
func (l *testLog) count(text string) (n int) {
	for _, line := range l.all() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// quick are bounds short enough for tests.
func quick() timing {
	return timing{
		dial: time.Second, header: 300 * time.Millisecond, list: 600 * time.Millisecond,
		idle: 300 * time.Millisecond, ping: 2 * time.Second,
		watch: time.Hour, watchGrace: time.Hour,
		backoff: backoff{first: 5 * time.Millisecond, most: 40 * time.Millisecond, forbidden: 20 * time.Millisecond},
	}
}

// clientOf is a client of s with short bounds, and where its files are.
func clientOf(t testing.TB, s *kubetest.Server) *Client {
	t.Helper()
	token, ca, err := s.Mount(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(Config{Server: s.Address, TokenFile: token, CAFile: ca})
	c.time = quick()
	t.Cleanup(c.Close)
	return c
}

func newServer(t testing.TB) *kubetest.Server {
	t.Helper()
	s := kubetest.New(nil, "secret")
	t.Cleanup(s.Close)
	return s
}

// following is an EndpointWatch that runs until the end of the test.
type following struct {
	t   testing.TB
	w   *EndpointWatch
	log *testLog
}

func follow(t testing.TB, c *Client) *following {
	t.Helper()
	f := &following{t: t, log: &testLog{}}
	f.w = c.WatchEndpoints(kubeDNS, "n1", f.log)
	running(t, f.w.Run)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", strings.Join(f.log.all(), "\n"))
		}
	})
	return f
}

// running runs f until the end of the test, and waits for its end.
func running(t testing.TB, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// want waits until the endpoints are those, over both transports.
func (f *following) want(addresses ...string) {
	f.t.Helper()
	var want []string
	for _, a := range addresses {
		want = append(want, netip.AddrPortFrom(netip.MustParseAddr(a), 53).String())
	}
	eventually(f.t, fmt.Sprintf("the endpoints are %v", want), func() error {
		e, known := f.w.Endpoints()
		if got := fmt.Sprint(e.UDP); known != (len(want) > 0) || got != fmt.Sprint(want) || fmt.Sprint(e.TCP) != got {
			return fmt.Errorf("they are %+v (known %t), state %+v", e, known, f.w.State())
		}
		return nil
	})
}

func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it never came to be that %s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func setSlice(s *kubetest.Server, name string, addresses ...string) {
	s.Set(kubetest.Slices, kubetest.Slice("kube-system", "kube-dns", name, kubetest.Ready(addresses...)...))
}
