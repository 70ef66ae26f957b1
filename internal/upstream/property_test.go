package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestEveryClientGetsOneAnswer: many clients, few names, and upstreams with all faults there are. Each
// call returns once, in time, with the client's own answer or an *Error.
func TestEveryClientGetsOneAnswer(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	source := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return source.IntN(n)
	}
	unruly := func(_ *dns.Msg, p observe.Proto, _ int) fault {
		f := fault{delay: time.Duration(random(5)) * time.Millisecond}
		switch random(24) {
		case 0:
			f.delay = time.Duration(random(400)) * time.Millisecond
		case 1:
			f.drop = true
		case 2:
			f.reset = true
		case 3:
			f.hangUp = true
		case 4:
			f.half = true
		case 5:
			f.garbage = true
		case 6:
			f.wrongID = true
		case 7:
			f.wrongQuestion = true
		case 8:
			f.truncate = p == observe.UDP
		case 9:
			f.forgeries = 3
		case 10:
			f.rcode = dns.RcodeServerFailure
		case 11:
			f.rcode = dns.RcodeNameError
		case 12:
			f.slow = random(4) == 0
		case 13:
			f.size = random(8000)
		case 14:
			f.noEDNS = true
		}
		return f
	}
	servers := []*fakeServer{startFake(t, false, unruly), startFake(t, true, unruly), startFake(t, false, unruly)}
	g := openGroup(t, GroupConfig{Policy: RoundRobin}, servers...)

	var answered, failed int
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 40 {
				m := randomQuery(random)
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				leaves := random(20) == 0
				if leaves {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(random(20))*time.Millisecond)
				}
				asked := m.Copy()
				start := time.Now()
				a, err := g.Exchange(ctx, Query{Msg: m, Proto: observe.Proto(random(2))})
				took := time.Since(start)
				cancel()
				if took > DefaultBudget+2*time.Second {
					t.Errorf("%s took %s", m.Question[0].Name, took)
				}
				if m.String() != asked.String() {
					t.Errorf("the client's message was changed to %v", m)
				}
				mu.Lock()
				if err == nil {
					answered++
				} else {
					failed++
				}
				mu.Unlock()
				var typed *Error
				switch {
				case err == nil:
					if bad := checkAnswer(m, a.Msg); bad != nil {
						t.Errorf("%s: %v", m.Question[0].Name, bad)
					}
				case !errors.As(err, &typed):
					t.Errorf("error %T: %v", err, err)
				case !leaves && typed.Cause == CauseCanceled:
					t.Errorf("somebody else's departure: %v", err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d answers, %d errors", answered, failed)
	if answered < 20*failed/4 {
		t.Errorf("%d answers and %d errors: the faults are retried too little", answered, failed)
	}
	for _, s := range g.Status() {
		if s.Connections > 2*DefaultMaxConns+1024 {
			t.Errorf("%d connections to %s", s.Connections, s.Upstream)
		}
	}
}

func randomQuery(random func(int) int) *dns.Msg {
	letters := []byte(fmt.Sprintf("name%d.example.", random(60)))
	for i := range letters {
		if random(2) == 0 {
			letters[i] = strings.ToUpper(string(letters[i]))[0]
		}
	}
	m := ask(string(letters))
	m.CheckingDisabled = random(8) == 0
	m.RecursionDesired = random(8) != 0
	if random(2) == 0 {
		m.SetEdns0(uint16(512+random(4000)), random(4) == 0)
	}
	return m
}
