package lab

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// An outage in the middle of a stream: queries sent during it are lost, and no others, over each transport, from one
// socket and from new ones.
func TestStreamSeesAnOutage(t *testing.T) {
	for _, transport := range []Transport{UDP, TCP} {
		for _, fresh := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s fresh=%v", transport, fresh), func(t *testing.T) {
				t.Parallel() // most of it is waiting for lost queries to time out
				l := Start(t, Config{})
				server := l.KubeDNS[0]
				st, err := Stream{From: l.Pods[0], Server: server.Host.IPv4, Transport: transport, Fresh: fresh,
					QPS: 200, Timeout: 4 * time.Second, Window: 1000}.Start()
				if err != nil {
					t.Fatal(err)
				}
				wait := func(n int) {
					if err := st.Wait(within(t), n); err != nil {
						t.Fatal(err)
					}
				}
				wait(100)
				down := time.Now()
				// Dropping keeps the connection; a shared one that is refused is sent again when it is back.
				if err := server.Break(Fault{Drop: 1}); err != nil {
					t.Fatal(err)
				}
				silent := time.Now()
				wait(200)
				back := time.Now()
				if err := server.Mend(); err != nil {
					t.Fatal(err)
				}
				up := time.Now()
				wait(300)
				ss, err := st.Stop()
				if err != nil {
					t.Fatal(err)
				}
				// Queries sent just before a change may meet either side of it.
				const slack = 200 * time.Millisecond
				if lost := ss.SentBefore(down.Add(-slack)).Lost(); len(lost) > 0 {
					t.Errorf("before the outage: %v", lost)
				}
				during := ss.SentAfter(silent).SentBefore(back.Add(-slack))
				if len(during) == 0 || len(during.Lost()) != len(during) {
					t.Errorf("during the outage: %v, want all lost", during)
				}
				if after := ss.SentAfter(up); len(after) == 0 || len(after.Lost()) > 0 {
					t.Errorf("after the outage: %v", after)
				}
				if got := ss.Rcodes(); got[dns.RcodeSuccess] != len(ss)-len(ss.Lost()) {
					t.Errorf("response codes %v of %v", got, ss)
				}
			})
		}
	}
}

// A query that meets a broken TCP connection is sent again on the next one.
func TestSharedTCPStreamReconnects(t *testing.T) {
	l := Start(t, Config{})
	server := l.KubeDNS[0]
	st, err := Stream{From: l.Pods[0], Server: server.Host.IPv4, Transport: TCP, QPS: 500}.Start()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{50, 100, 150} {
		if err := st.Wait(within(t), n); err != nil {
			t.Fatal(err)
		}
		if err := server.Break(Fault{Refuse: true}); err != nil {
			t.Fatal(err)
		}
		if err := server.Mend(); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Wait(within(t), 250); err != nil {
		t.Fatal(err)
	}
	ss, err := st.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if len(ss.Lost()) > 0 {
		t.Errorf("%v; want none lost", ss)
	}
	if n := server.Record.Conns(); n < 4 {
		t.Errorf("%d connections, want one more for each of the 3 refusals at least", n)
	}
}

// The stream's rate, its bound, and its one socket.
func TestStreamRate(t *testing.T) {
	l := Start(t, Config{})
	st, err := Stream{From: l.Pods[0], Server: l.Service, QPS: 1000, Max: 500}.Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Wait(within(t), 500); err != nil {
		t.Fatal(err)
	}
	ss, err := st.Stop()
	if err != nil || len(ss) != 500 || len(ss.Lost()) > 0 {
		t.Fatalf("%v, %v; want 500 sent and none lost", ss, err)
	}
	if took := ss[499].Sent.Sub(ss[0].Sent); took < 450*time.Millisecond {
		t.Errorf("500 queries at 1,000 a second took %v", took)
	}
	if flows, err := l.Node.Conntrack(l.Service); err != nil || len(flows) != 1 {
		t.Errorf("%d flows, %v; want 1 of one socket", len(flows), err)
	}
	if err := st.Wait(within(t), 501); err == nil {
		t.Error("waiting for more than the stream's end: no error")
	}
}

// While a full window of queries is under way no other is sent, and a lost one makes room at its timeout.
func TestStreamWindow(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		l := Start(t, Config{})
		if err := l.KubeDNS[0].Break(Fault{Drop: 1}); err != nil {
			t.Fatal(err)
		}
		st, err := Stream{From: l.Pods[0], Server: l.KubeDNS[0].Host.IPv4, QPS: 20_000, Fresh: fresh,
			Window: 10, Timeout: 300 * time.Millisecond}.Start()
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Wait(within(t), 30); err != nil {
			t.Fatal(err)
		}
		ss, err := st.Stop()
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(ss) - 10 {
			if gap := ss[i+10].Sent.Sub(ss[i].Sent); gap < 300*time.Millisecond {
				t.Fatalf("fresh=%v: query %d was sent %v after query %d, with room for 10 and a timeout of 300ms", fresh, i+10, gap, i)
			}
		}
	}
}

func TestStreamIsChecked(t *testing.T) {
	h := &Host{Name: "x"}
	for _, s := range []Stream{{}, {From: h, QPS: 20_001}, {From: h, Max: -1}, {From: h, Timeout: time.Hour}, {From: h, Window: 10_001}} {
		if st, err := s.Start(); err == nil {
			_, _ = st.Stop()
			t.Errorf("%+v: no error", s)
		}
	}
}

func TestSamples(t *testing.T) {
	zero := time.Unix(1000, 0)
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	ss := Samples{
		{Name: "answered long before", Sent: at(0), Answered: at(1)},
		{Name: "lost long before", Sent: at(10)},
		{Name: "in flight, lost", Sent: at(990)},
		{Name: "in flight, answered", Sent: at(995), Answered: at(1005)},
		{Name: "after", Sent: at(1000), Answered: at(1002)},
		{Name: "after, lost", Sent: at(1010)},
	}
	kill := at(1000)
	if got := ss.SentAfter(kill); len(got) != 2 || len(got.Lost()) != 1 || got.Lost()[0].Name != "after, lost" {
		t.Errorf("after: %v", got)
	}
	if got := ss.InFlight(kill, 100*time.Millisecond); len(got) != 2 || len(got.Lost()) != 1 || got.Lost()[0].Name != "in flight, lost" {
		t.Errorf("in flight: %v", got)
	}
	if got := ss.Quantile(1); got != 10*time.Millisecond {
		t.Errorf("slowest: %v", got)
	}
}
