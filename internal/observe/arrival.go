package observe

import (
	"context"
	"time"
)

// Arrival is the time at which a query arrived, as its socket knows it. A reader of sockets that passes queries to a
// chain of handlers returns a *Arrival from the context's Value for ArrivalKey, so that misses include the time in
// the socket's queue.
type Arrival struct {
	Received int64         // Unix nanoseconds: the kernel's receive timestamp, see socket(7); in a flood that of a query shortly before
	Queued   time.Duration // from then until Read
	Read     time.Time     // when the query was read from the socket, with a monotonic clock
}

// ArrivalKey is the key of a context's *Arrival.
type ArrivalKey struct{}

// ArrivalFrom returns the Arrival that ctx carries; nil if there is none.
func ArrivalFrom(ctx context.Context) *Arrival {
	a, _ := ctx.Value(ArrivalKey{}).(*Arrival)
	return a
}
