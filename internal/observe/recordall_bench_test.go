package observe

import (
	"math/rand/v2"
	"testing"
	"time"
)

// BenchmarkRecordAll does what plugin/fastpath does: batches of one client's hits, here for A and AAAA of 1,000 names
// in random order, so that branches cannot be predicted. Cold is with the processor's caches as the rest of a process
// leaves them between two batches.
func BenchmarkRecordAll(b *testing.B) {
	const batch, names = 64, 1000
	for _, bench := range []struct {
		name    string
		between []byte // what is read between two batches
	}{{"warm", nil}, {"cold", make([]byte, 512<<10)}} {
		b.Run(bench.name, func(b *testing.B) {
			s := NewQueries(QueriesOptions{})
			hits := traffic(2*names, 1, names, time.Now())
			for i := range hits {
				hits[i].Type, hits[i].Rcode = uint16(1+27*(i/names)), 0
			}
			random := rand.New(rand.NewPCG(1, 2))
			order := make([]Query, 0, batch)
			now := time.Now().UnixNano()
			var spent time.Duration
			var read byte
			b.ReportAllocs()
			for b.Loop() {
				now += int64(batch * 4 * time.Microsecond)
				order = order[:0]
				for range batch {
					q := hits[random.IntN(len(hits))]
					q.ID, q.Received, q.Duration = uint16(random.Uint32()), now, time.Duration(20+now>>18%50)*time.Microsecond
					order = append(order, q)
				}
				for i := 0; i < len(bench.between); i += 64 {
					read += bench.between[i]
				}
				start := time.Now()
				s.RecordAll(order)
				spent += time.Since(start)
			}
			_ = read
			b.ReportMetric(float64(spent)/float64(b.N)/batch, "ns/query")
		})
	}
}
