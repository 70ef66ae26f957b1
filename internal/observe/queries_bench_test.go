package observe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// traffic is n queries of so many clients, each for one of names names, as a node sees them.
func traffic(n, clients, names int, start time.Time) []Query {
	list := make([]Query, n)
	for i := range list {
		list[i] = Query{
			Client: netip.AddrPortFrom(podAddr(i%clients), uint16(1024+i*7919%60000)), ID: uint16(i * 40503),
			Name: wireName(fmt.Sprintf("service-%d.namespace.svc.cluster.local.", i*31%names)), Type: uint16(1 + 27*(i%2)),
			Received: start.Add(time.Duration(i) * time.Microsecond).UnixNano(), Queued: 3 * time.Microsecond, Duration: time.Duration(20+i%50) * time.Microsecond,
		}
		if i%5 == 4 {
			list[i].Rcode = 3
		}
	}
	return list
}

func podAddr(i int) netip.Addr {
	a := [4]byte{10, 244}
	binary.BigEndian.PutUint16(a[2:], uint16(i+2))
	return netip.AddrFrom4(a)
}

func BenchmarkRecord(b *testing.B) {
	for _, clients := range []int{1, 100, 1000} {
		for _, names := range []int{10, 500} {
			b.Run(fmt.Sprintf("clients=%d/names=%d", clients, names), func(b *testing.B) {
				s := NewQueries(QueriesOptions{Clients: 1024})
				list := traffic(2_000, clients, names, time.Now())
				for i := range list {
					s.Record(&list[i])
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					q := &list[i%len(list)]
					q.Received += int64(10 * time.Millisecond)
					s.Record(q)
					i++
				}
			})
		}
	}
}

func BenchmarkRecordParallel(b *testing.B) {
	for _, clients := range []int{1, 100} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := NewQueries(QueriesOptions{})
			var worker atomic.Int64
			start := time.Now()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				list := traffic(2_000, clients, 100, start)
				i := int(worker.Add(1)) * 977
				for pb.Next() {
					q := &list[i%len(list)]
					q.Received += int64(10 * time.Millisecond)
					s.Record(q)
					i++
				}
			})
		})
	}
}

// BenchmarkMiss is a query of the chain: Begin, a trace with one exchange, End.
func BenchmarkMiss(b *testing.B) {
	s := NewQueries(QueriesOptions{})
	list := traffic(2_000, 100, 100, time.Now())
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		q := &list[i%len(list)]
		q.Received += int64(10 * time.Millisecond)
		q.Source = FromUpstream
		token := s.Begin(q)
		s.End(token, q, nil)
		i++
	}
}

func BenchmarkSnapshot(b *testing.B) {
	s := NewQueries(QueriesOptions{Clients: 1024})
	list := traffic(100_000, 1024, 500, time.Now())
	for i := range list {
		s.Record(&list[i])
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Snapshot(time.Now())
	}
}
