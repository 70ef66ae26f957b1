package observe

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// arrival is one question that arrives. Times are in milliseconds.
type arrival struct {
	at     float64
	client int
	name   string
	qtype  uint16
	port   uint16
	id     uint16
	answer float64 // after which time; 0 means 0.05
	rcode  int
}

const a, aaaa = typeA, typeAAAA

// play feeds arrivals in the order of events, and returns the totals a while after the last.
func play(t testing.TB, arrivals []arrival) (Counts, *Queries) {
	t.Helper()
	return playFrom(t, time.Unix(1_700_000_000, 0), arrivals)
}

func playFrom(t testing.TB, start time.Time, arrivals []arrival) (Counts, *Queries) {
	t.Helper()
	s := newQueries(QueriesOptions{Clients: 1024}, start)
	type deed struct {
		at float64
		do func()
	}
	var deeds []deed
	last := 0.0
	for i := range arrivals {
		x := &arrivals[i]
		x.answer = max(x.answer, 0.05)
		name := cmp.Or(x.name, "name.example.")
		q := Query{
			Client: netip.AddrPortFrom(podAddr(x.client), x.port), ID: x.id, Name: wireName(name), Type: x.qtype,
			Received: start.UnixNano() + int64(x.at*1e6), Duration: time.Duration(x.answer * 1e6), Rcode: x.rcode,
		}
		last = max(last, x.at+x.answer)
		if x.answer < 5 {
			deeds = append(deeds, deed{x.at + x.answer, func() { s.Record(&q) }})
			continue
		}
		q.Source = FromUpstream
		var token Token
		deeds = append(deeds, deed{x.at, func() { token = s.Begin(&q) }})
		deeds = append(deeds, deed{x.at + x.answer, func() { s.End(token, &q, nil) }})
	}
	slices.SortStableFunc(deeds, func(a, b deed) int { return cmp.Compare(a.at, b.at) })
	for _, d := range deeds {
		d.do()
	}
	v := s.Snapshot(start.Add(time.Duration((last + 20_000) * 1e6)))
	if n := v.Total[SinceStart].Queries(); n != uint64(len(arrivals)) {
		t.Fatalf("%d queries were counted, want %d", n, len(arrivals))
	}
	if v.InFlight != 0 {
		t.Fatalf("%d in flight at the end", v.InFlight)
	}
	return v.Total[SinceStart], s
}

// pairs is the traffic before: a client that asks for A and AAAA of other names, answered at once.
func pairs(rest ...arrival) []arrival {
	var list []arrival
	for i := range 6 {
		name, port, at := fmt.Sprintf("before-%d.example.", i), uint16(2000+i), float64(100*i)
		list = append(list, arrival{at: at, name: name, qtype: a, port: port, id: uint16(10 * i)},
			arrival{at: at + 0.2, name: name, qtype: aaaa, port: port, id: uint16(10*i + 1)})
	}
	for _, x := range rest {
		x.at += 10_000
		list = append(list, x)
	}
	return list
}

func TestRetransmits(t *testing.T) {
	const never = 20_000 // as good as
	certain := func(r Resolver, c Cause, n uint64) (want Counts) {
		want.Retransmits[r][c] = n
		return want
	}
	suspected := func(c Cause, n uint64) (want Counts) {
		want.Suspected[c] = n
		return want
	}
	for _, test := range []struct {
		what string
		in   []arrival
		want Counts
	}{
		{"glibc: the reply to AAAA is lost, both are sent again", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
		), certain(Glibc, ReplyLost, 1)},
		{"glibc: and again after 10 s, from new ports", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
			arrival{at: 10010, qtype: a, port: 7, id: 1}, arrival{at: 10010.5, qtype: aaaa, port: 8, id: 2},
		), certain(Glibc, ReplyLost, 2)},
		{"glibc: AAAA is lost on its way here", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
		), certain(Glibc, QueryLost, 1)},
		{"glibc: A is lost on its way here", pairs(
			arrival{at: 0, qtype: aaaa, port: 1, id: 2},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
		), certain(Glibc, QueryLost, 1)},
		{"glibc: AAAA is lost on its way here, of a program that asks for the name meanwhile", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1},
			arrival{at: 3000, qtype: a, port: 9, id: 91}, arrival{at: 3000.1, qtype: aaaa, port: 9, id: 92},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
		), certain(Glibc, ReplyLost, 1)}, // it cannot be told any more
		{"glibc asks for A only, the reply is lost, and another one asks for AAAA just then", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 5, id: 2},
		), suspected(QueryLost, 1)},
		{"musl: the reply is lost, and another program asks for the name meanwhile", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 1000, qtype: a, port: 9, id: 91},
			arrival{at: 2503, qtype: a, port: 1, id: 1},
		), certain(Musl, ReplyLost, 1)},
		{"glibc: the upstream is slow with AAAA", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, answer: never},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2, answer: never},
		), certain(Glibc, SlowUpstream, 1)},
		{"glibc: the upstream is slow with both, and answers after 6 s", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 6000}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, answer: 6000},
			arrival{at: 5005, qtype: a, port: 1, id: 1, answer: 995}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2, answer: 995},
		), certain(Glibc, SlowUpstream, 1)},
		{"glibc: an answer that was on its way when the time was over", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 4999}, arrival{at: 5000, qtype: a, port: 1, id: 1},
		), certain(Glibc, SlowUpstream, 1)},
		{"glibc asks for A only, the reply is lost", []arrival{
			{at: 0, qtype: a, port: 1, id: 1}, {at: 5004, qtype: a, port: 1, id: 1},
		}, certain(Glibc, ReplyLost, 1)},
		{"glibc in a program that asks for the same name all the time", func() (list []arrival) {
			for i := range 200 {
				at, port := float64(100*i), uint16(3000+i)
				list = append(list, arrival{at: at, qtype: a, port: port, id: uint16(7 * i)}, arrival{at: at + 0.1, qtype: aaaa, port: port, id: uint16(7*i + 1)})
			}
			return append(list, arrival{at: 6004, qtype: a, port: 3010, id: 70}, arrival{at: 6004.1, qtype: aaaa, port: 3010, id: 71})
		}(), certain(Glibc, ReplyLost, 1)},
		{"musl: the reply to A is lost, A is sent again", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2},
			arrival{at: 2501, qtype: a, port: 1, id: 1},
		), certain(Musl, ReplyLost, 1)},
		{"musl: AAAA is lost on its way here", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 2501, qtype: aaaa, port: 1, id: 2},
		), suspected(QueryLost, 1)},
		{"musl: the upstream is slow", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 3000}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2},
			arrival{at: 2501, qtype: a, port: 1, id: 1, answer: 500},
		), certain(Musl, SlowUpstream, 1)},
		{"Go: the reply to AAAA is lost, AAAA is sent again", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 2, id: 2},
			arrival{at: 5001, qtype: aaaa, port: 3, id: 3},
		), certain(Go, ReplyLost, 1)},
		{"Go: the reply to a miss is lost", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 30}, arrival{at: 0.1, qtype: aaaa, port: 2, id: 2, answer: 40},
			arrival{at: 5001, qtype: aaaa, port: 3, id: 3},
		), certain(Go, ReplyLost, 1)},
		{"glibc: the reply to a miss is lost", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 30}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, answer: 40},
			arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
		), certain(Glibc, ReplyLost, 1)},
		{"Go: both replies are lost", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 2, id: 2},
			arrival{at: 5001, qtype: a, port: 3, id: 3}, arrival{at: 5001.1, qtype: aaaa, port: 4, id: 4},
		), suspected(ReplyLost, 1)},
		{"Go asks for A only, the reply is lost", []arrival{
			{at: 0, qtype: a, port: 1, id: 1}, {at: 5001, qtype: a, port: 2, id: 2},
		}, suspected(ReplyLost, 1)},
		{"Go: AAAA is lost on its way here", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 5001, qtype: aaaa, port: 2, id: 2},
		), suspected(QueryLost, 1)},
		{"Go: the upstream is slow with both", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: never}, arrival{at: 0.1, qtype: aaaa, port: 2, id: 2, answer: never},
			arrival{at: 5001, qtype: a, port: 3, id: 3, answer: never}, arrival{at: 5001.1, qtype: aaaa, port: 4, id: 4, answer: never},
		), certain(Go, SlowUpstream, 1)},
		{"Go polls a name each 5 s, and one reply is lost", pairs(func() (list []arrival) {
			for i := range 5 {
				at, n := float64(5003*i), uint16(10*i)
				list = append(list, arrival{at: at, qtype: a, port: 100 + n, id: 1 + n}, arrival{at: at + .1, qtype: aaaa, port: 101 + n, id: 2 + n})
			}
			return append(list, arrival{at: 25012, qtype: aaaa, port: 991, id: 991})
		}()...), certain(Go, ReplyLost, 1)},
		{"musl: SERVFAIL at once, asked again at once and after its timeout", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, rcode: 2}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, rcode: 2},
			arrival{at: 1, qtype: a, port: 1, id: 1, rcode: 2}, arrival{at: 1.1, qtype: aaaa, port: 1, id: 2, rcode: 2},
			arrival{at: 2501, qtype: a, port: 1, id: 1, rcode: 2}, arrival{at: 2501.1, qtype: aaaa, port: 1, id: 2, rcode: 2},
		), Counts{}},
		{"musl: REFUSED, which it takes for no answer", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, rcode: 5}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, rcode: 5},
			arrival{at: 2501, qtype: a, port: 1, id: 1, rcode: 5}, arrival{at: 2501.1, qtype: aaaa, port: 1, id: 2, rcode: 5},
		), Counts{}},
		{"musl: SERVFAIL after 2.3 s, asked again at once", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 2301, rcode: 2}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, answer: 2302, rcode: 2},
			arrival{at: 2301.2, qtype: a, port: 1, id: 1, answer: 2301, rcode: 2}, arrival{at: 2302.4, qtype: aaaa, port: 1, id: 2, answer: 2302, rcode: 2},
		), Counts{}},
		{"musl: the upstream is slow, and fails in the end", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1, answer: 3000, rcode: 2}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2},
			arrival{at: 2501, qtype: a, port: 1, id: 1, answer: 500, rcode: 2},
		), certain(Musl, SlowUpstream, 1)},
		{"glibc: A is found, AAAA fails after 2.3 s, both are asked again at once", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2, answer: 2301, rcode: 2},
			arrival{at: 2301.4, qtype: a, port: 1, id: 1}, arrival{at: 2301.5, qtype: aaaa, port: 1, id: 2, answer: 2301, rcode: 2},
		), Counts{}},
		{"Go: AAAA fails, and somebody asks for it after 5 s", pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 2, id: 2, rcode: 2},
			arrival{at: 5001, qtype: aaaa, port: 3, id: 3, rcode: 2},
		), Counts{}},
		{"glibc: dropped on purpose", []arrival{
			{at: 0, qtype: a, port: 1, id: 1, rcode: NoReply}, {at: 5004, qtype: a, port: 1, id: 1, rcode: NoReply}, {at: 10_010, qtype: a, port: 2, id: 1, rcode: NoReply},
		}, Counts{}},
		{"glibc: a reply that is lost after one that failed", []arrival{
			{at: 0, qtype: a, port: 1, id: 1, rcode: 2}, {at: 1, qtype: a, port: 1, id: 1}, {at: 5002, qtype: a, port: 1, id: 1},
		}, certain(Glibc, ReplyLost, 1)},
		{"another timeout: options timeout:2", []arrival{
			{at: 0, qtype: a, port: 1, id: 1}, {at: 2002, qtype: a, port: 1, id: 1},
		}, certain(UnknownResolver, ReplyLost, 1)},
		{"PTR has no other half", []arrival{
			{at: 0, qtype: 12, port: 1, id: 1}, {at: 5002, qtype: 12, port: 1, id: 1},
		}, certain(Glibc, ReplyLost, 1)},
	} {
		t.Run(test.what, func(t *testing.T) {
			// Milliseconds are kept modulo 2³²: the value for "never" must not depend on the date.
			const quarter = 1 << 30 * time.Millisecond
			for _, start := range []time.Duration{0, quarter, 2 * quarter, 3 * quarter, 4*quarter - 12*time.Second} {
				got, _ := playFrom(t, time.UnixMilli(400<<32).Add(start), test.in)
				if got.Retransmits != test.want.Retransmits || got.Suspected != test.want.Suspected {
					t.Errorf("start %v: retransmits %v, suspected %v\nwant        %v,           %v", start, got.Retransmits, got.Suspected, test.want.Retransmits, test.want.Suspected)
				}
			}
		})
	}
}

// TestRetransmitMoments checks every deviation of Go's retry time that is recognized, and its limits.
// TestRetransmitInAFlood: other clients ask so much meanwhile that single questions are not remembered, but the names
// are.
func TestRetransmitInAFlood(t *testing.T) {
	in := pairs(
		arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 1, id: 2},
		arrival{at: 5005, qtype: a, port: 1, id: 1}, arrival{at: 5005.1, qtype: aaaa, port: 1, id: 2},
	)
	for i := range 40_000 {
		in = append(in, arrival{at: 10_001 + float64(i)/10, client: 100 + i%20, name: fmt.Sprintf("n%d.example.", i%3), qtype: a, port: uint16(i), id: uint16(i / 7)})
	}
	got, _ := play(t, in)
	if got.Retransmits[Glibc][ReplyLost] != 1 {
		t.Errorf("retransmits %v, suspected %v", got.Retransmits, got.Suspected)
	}
}

func TestRetransmitMoments(t *testing.T) {
	for at := 4900; at <= 5200; at += 5 {
		got, _ := play(t, pairs(
			arrival{at: 0, qtype: a, port: 1, id: 1}, arrival{at: 0.1, qtype: aaaa, port: 2, id: 2},
			arrival{at: float64(at), qtype: aaaa, port: 3, id: 3},
		))
		want := uint64(0)
		if at >= 4980 && at <= 5090 {
			want = 1
		}
		if n := got.Retransmitted(); n != want {
			t.Errorf("asked again after %d ms: %d retransmits, want %d", at, n, want)
		}
	}
}

// random makes ports and IDs as resolvers do.
type random struct{ *rand.Rand }

func (r random) port() uint16 { return uint16(32768 + r.IntN(28232)) }
func (r random) id() uint16   { return uint16(r.IntN(65536)) }

// lookup is a pair of questions: of glibc and musl from one port, of Go from two.
func (r random) lookup(at float64, client int, name string, pair, onePort bool) []arrival {
	x := arrival{at: at, client: client, name: name, qtype: a, port: r.port(), id: r.id()}
	if !pair {
		return []arrival{x}
	}
	y := x
	y.at, y.qtype, y.id = at+0.1+r.Float64(), aaaa, r.id()
	if !onePort {
		y.port = r.port()
	}
	return []arrival{x, y}
}

// TestNoFalseRetransmits is about programs that ask again because they want to.
func TestNoFalseRetransmits(t *testing.T) {
	r := random{rand.New(rand.NewPCG(1, 2))}
	polls := func(interval, jitter float64, clients, times int, pair bool) (list []arrival) {
		for c := range clients {
			at := r.Float64() * interval
			for range times {
				list = append(list, r.lookup(at, c, "polled.example.", pair, c%2 == 0)...)
				at += interval + r.Float64()*jitter
			}
		}
		return list
	}
	for _, test := range []struct {
		what string
		in   []arrival
		most uint64 // suspected; nothing may be certain
	}{
		{"50 programs that poll each 5 s", polls(5000, 0, 50, 100, false), 0},
		{"the same for pairs", polls(5000, 0, 50, 100, true), 0},
		{"each 5 s after the last answer", polls(5000, 10, 50, 100, true), 0},
		{"each 5 s, and up to a second later", polls(5000, 1000, 50, 100, true), 0},
		{"each 5 s, with one ID for ever", func() (list []arrival) {
			for i := range 200 {
				list = append(list, arrival{at: float64(5002 * i), qtype: a, port: uint16(2000 + i), id: 4711})
			}
			return list
		}(), 0},
		{"a forwarder in a pod, from one port for ever", func() (list []arrival) {
			for i := range 30_000 {
				list = append(list, arrival{at: float64(10 * i), name: fmt.Sprintf("n%d.example.", r.IntN(10)), qtype: a, port: 2000, id: uint16(r.IntN(65536))})
			}
			return list
		}(), 0},
		{"each 2.5 s", polls(2500, 0, 50, 100, false), 0},
		{"each 2.5 s for pairs", polls(2500, 5, 50, 100, true), 0},
		{"each 10 s", polls(10_000, 0, 50, 100, true), 0},
		{"each second", polls(1000, 0, 50, 100, true), 0},
		{"pairs of 200 pods at random", func() (list []arrival) {
			for range 20_000 {
				list = append(list, r.lookup(r.Float64()*600_000, r.IntN(200), fmt.Sprintf("n%d.example.", r.IntN(30)), true, r.IntN(2) == 0)...)
			}
			return list
		}(), 40},
		{"walks of search paths", func() (list []arrival) {
			for range 2000 {
				at, c, onePort := r.Float64()*600_000, r.IntN(50), r.IntN(2) == 0
				for i, domain := range []string{"ns.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
					list = append(list, r.lookup(at+float64(3*i), c, "api.example.com."+domain, true, onePort)...)
				}
			}
			return list
		}(), 40},
	} {
		got, _ := play(t, test.in)
		var suspected uint64
		for _, n := range got.Suspected {
			suspected += n
		}
		t.Logf("%s: %d certain and %d suspected of %d queries", test.what, got.Retransmitted(), suspected, len(test.in))
		if got.Retransmitted() > 0 || suspected > test.most {
			t.Errorf("%s: retransmits %v, suspected %v", test.what, got.Retransmits, got.Suspected)
		}
	}
}
