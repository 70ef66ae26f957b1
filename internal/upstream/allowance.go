package upstream

import "sync/atomic"

// allowance bounds what is sent on top of the clients' questions while an upstream is merely slow: a
// hedge for every tenth question, and a few saved up for when an upstream falls silent. So in an
// outage of all upstreams, when everything is late, the load on them grows by a tenth and not to a
// multiple.
type allowance struct{ tenths atomic.Int64 }

const (
	// hedgeCost is the price of a hedge where a question earns 1.
	hedgeCost = 10
	// hedgeSavings is the most that is saved up: ten hedges. A path that is silent is in doubt after
	// the first one, and leaving it costs nothing.
	hedgeSavings = 10 * hedgeCost
)

func newAllowance() *allowance {
	a := new(allowance)
	a.tenths.Store(hedgeSavings)
	return a
}

func (a *allowance) earn() {
	if n := a.tenths.Load(); n < hedgeSavings {
		a.tenths.CompareAndSwap(n, n+1) // one lost under contention does not matter
	}
}

func (a *allowance) spend() bool {
	for {
		n := a.tenths.Load()
		if n < hedgeCost {
			return false
		}
		if a.tenths.CompareAndSwap(n, n-hedgeCost) {
			return true
		}
	}
}
