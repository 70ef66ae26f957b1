package observe

import (
	"context"
	"time"
)

// Arrival is when a query came, as its socket knows it. Whoever reads sockets by himself and hands queries on
// to a chain of handlers lets the context's Value return a *Arrival for ArrivalKey, so that the time in the
// socket's queue is seen in misses too.
type Arrival struct {
	Received int64         // Unix nanoseconds: the kernel's receive timestamp, see socket(7); in a flood that of a query shortly before
	Queued   time.Duration // from then until Read
	Read     time.Time     // when the query was read from the socket, with a monotonic clock
}

// ArrivalKey is the key of a context's *Arrival.
type ArrivalKey struct{}

// ArrivalFrom is the Arrival that ctx carries; nil where there is none.
func ArrivalFrom(ctx context.Context) *Arrival {
	a, _ := ctx.Value(ArrivalKey{}).(*Arrival)
	return a
}
