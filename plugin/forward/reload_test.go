package forward

import (
	"fmt"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// TestReload hands connections from one instance to the next, and closes them when nobody wants them.
func TestReload(t *testing.T) {
	s := serve(t, answerA("192.0.2.1"))
	p := newTestPlugin(t)
	p.retireAfter = 500 * time.Millisecond
	c := caddy.NewTestController("dns", "")
	open := func(g generation) *handler {
		t.Helper()
		cfg, err := parseOne(t, p, "forward . "+s.addr+" {\nforce_tcp\n}")
		if err != nil {
			t.Fatal(err)
		}
		f := &forward{plugin: p, config: cfg}
		if err := p.start(f, g, dnsserver.GetConfig(c)); err != nil {
			t.Fatal(err)
		}
		return &handler{forward: f}
	}
	opened := func() float64 { return value(t, p.metrics.opened.WithLabelValues("forward", s.addr, "tcp")) }
	groups := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.open)
	}
	first := open(1)
	if _, _, err := ask(t, first, question("one.example.org.")); err != nil {
		t.Fatal(err)
	}
	second := open(2)
	p.retire(first.forward)
	// The old instance is asked while it is drained, for longer than it would wait without a question.
	for i := range 30 {
		if _, _, err := ask(t, first, question(fmt.Sprintf("two%d.example.org.", i))); err != nil {
			t.Fatalf("the old instance: %v", err)
		}
		time.Sleep(40 * time.Millisecond)
	}
	for deadline := time.Now().Add(10 * time.Second); groups() > 1 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	if n := groups(); n != 1 {
		t.Fatalf("%d groups are open after the reload", n)
	}
	if _, _, err := ask(t, second, question("three.example.org.")); err != nil {
		t.Fatal(err)
	}
	if n := opened(); n != 1 {
		t.Errorf("%v connections were opened, want the first one to be kept", n)
	}
	open(3)
	p.closeNewerThan(2) // the start of the third failed
	if n := groups(); n != 1 {
		t.Errorf("%d groups are open after a reload that failed", n)
	}
	if _, _, err := ask(t, second, question("four.example.org.")); err != nil {
		t.Errorf("the running instance after a reload that failed: %v", err)
	}
}
