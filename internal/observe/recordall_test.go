package observe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// RecordAll has the same result as Record, however the queries are cut into batches: clients in runs and mixed, more
// of them than have a place, some without an address, repeated questions, and some worth a story.
func TestRecordAll(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	one := newQueries(QueriesOptions{Clients: 20}, start)
	all := newQueries(QueriesOptions{Clients: 20}, start)
	all.names, all.seed = one.names, one.seed

	random := rand.New(rand.NewPCG(1, 2))
	var list []Query
	received := start.UnixNano()
	client := 0
	for i := range 20_000 {
		if random.IntN(3) == 0 {
			client = random.IntN(30)
		}
		received += int64(random.IntN(int(5 * time.Millisecond)))
		q := Query{
			Client: netip.AddrPortFrom(podAddr(client), uint16(1024+random.IntN(4))), ID: uint16(random.IntN(8)), Proto: Proto(random.IntN(2)),
			Name: wireName(fmt.Sprintf("service-%d.svc.cluster.local.", random.IntN(40))), Type: uint16(1 + 27*random.IntN(2)),
			Source: Source(random.IntN(NumSources)), Received: received, Queued: time.Duration(random.IntN(1000)),
			Duration: time.Duration(random.IntN(int(120 * time.Millisecond))),
		}
		switch random.IntN(50) {
		case 0:
			q.Rcode = 2
		case 1, 2, 3:
			q.Rcode = 3
		case 4:
			q.Client = netip.AddrPort{}
		case 5:
			q.Received = 0
		}
		if i == 10_000 { // clients that were silent so long lose their places
			received += int64(10 * time.Minute)
		}
		list = append(list, q)
	}
	for i := range list {
		one.Record(&list[i])
	}
	all.RecordAll(nil)
	for rest := list; len(rest) > 0; {
		n := min(1+random.IntN(64), len(rest))
		all.RecordAll(rest[:n])
		rest = rest[n:]
	}

	now := time.Unix(0, received).Add(time.Second)
	want, got := one.Snapshot(now), all.Snapshot(now)
	if n := want.Total[SinceStart].Queries() + want.Lost[LossNoClient]; n != uint64(len(list)) {
		t.Fatalf("%d of %d queries are counted", n, len(list))
	}
	if want.Total[SinceStart].Retransmitted() == 0 || len(want.Stories) == 0 || want.Clients[len(want.Clients)-1].Client != Overflow {
		t.Errorf("%d retransmits, %d stories, the last client is %s: there is nothing to compare",
			want.Total[SinceStart].Retransmitted(), len(want.Stories), want.Clients[len(want.Clients)-1].Client)
	}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("one by one: %+v\ntogether: %+v", want.Total[SinceStart], got.Total[SinceStart])
	}
}

// It allocates nothing for clients that are known.
func TestRecordAllAllocations(t *testing.T) {
	s := NewQueries(QueriesOptions{})
	list := traffic(64, 10, 20, time.Now())
	s.RecordAll(list)
	if n := testing.AllocsPerRun(100, func() { s.RecordAll(list) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
