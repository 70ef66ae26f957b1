package upstream

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestReloadKeepsConnections: a server that stays keeps its connections, its estimate and its health.
func TestReloadKeepsConnections(t *testing.T) {
	f, gone := startFake(t, false, wellBehaved), startFake(t, false, wellBehaved)
	old := openGroup(t, GroupConfig{ForceTCP: true, Policy: Sequential}, f, gone)
	old.mustAnswer(t, "one.example.", observe.TCP)
	estimate := old.servers[0].stream.rtt.smoothed()

	config := GroupConfig{ForceTCP: true, Servers: []ServerConfig{{Addr: f.addr, Health: NewHealth()}}}
	reloaded, err := old.registry.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	old.Close()
	g := sides{Group: reloaded, registry: old.registry, stats: old.stats}
	if got := g.servers[0].stream.rtt.smoothed(); got != estimate {
		t.Errorf("the round trip was %s and is %s", estimate, got)
	}
	if a := g.mustAnswer(t, "two.example.", observe.TCP); !a.Exchange.Reused || f.dials.Load() != 1 {
		t.Error("the warm connection was not kept")
	}
	if _, err := old.Exchange(context.Background(), Query{Msg: ask("three.example."), Proto: observe.TCP}); !errors.Is(err, ErrClosed) {
		t.Errorf("the old group says %v", err)
	}

	// Other settings make other connections; what was learned about the server stays.
	f.set(silence) // or a probe would find the server well at once
	g.servers[0].stream.failed(time.Now())
	config.Servers[0].Expire = time.Second
	changed, err := g.registry.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	reloaded.Close()
	if got := changed.servers[0].stream.rtt.smoothed(); got == 0 || changed.servers[0].stream.state.Load() != uint32(doubtful) {
		t.Errorf("the round trip is %s, the server %s", got, healthState(changed.servers[0].stream.state.Load()))
	}
	changed.Close()
	g.registry.Wait()
	eventually(t, "all connections are closed", func() bool { return f.connections() == 0 })
}

// TestCloseLetsQuestionsFinish: those under way get their answer.
func TestCloseLetsQuestionsFinish(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 200 * time.Millisecond} })
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.mustAnswer(t, "name.example.", observe.TCP)
	}()
	eventually(t, "the question is on its way", func() bool { return f.queries.Load() == 1 })
	g.Close()
	<-done
}

func TestValidate(t *testing.T) {
	good := ServerConfig{Addr: unusedAddr(t), Health: NewHealth()}
	if err := (GroupConfig{Servers: []ServerConfig{good}}).Validate(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.Expire, bad.MaxConns, bad.TLSName, bad.Health.Domain = -1, 65, "x", strings.Repeat("a", 64)+"."
	err := (GroupConfig{Servers: []ServerConfig{bad, bad, {}}, Policy: 9, Budget: -1, MaxAttempts: -1, Failover: []int{0}}).Validate()
	if err == nil {
		t.Fatal("everything wrong is accepted")
	}
	for _, want := range []string{"negative duration", "65 connections", "without a configuration", "is not a domain name",
		"named twice", "not the address of a server", "policy 9", "budget", "negative limit", "NOERROR"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %q in %q", want, err)
		}
	}
	if _, err := NewRegistry(Limits{}, nil).Open(GroupConfig{}); err == nil {
		t.Error("a group without servers was opened")
	}
}
