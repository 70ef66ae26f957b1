package upstream

import "sync/atomic"

// allowance bounds what is sent in addition to the clients' queries while an upstream is slow: one hedge for every
// ten queries, and a few saved up for the moment when an upstream falls silent. In an outage of all upstreams, when
// every attempt is late, the load on them grows by a tenth and does not multiply.
//
// An attempt that was given up on a path which answers other queries is repeated from an allowance of its own, three
// for ten queries: that many datagrams may be lost on the way. In total the load grows by less than a half.
type allowance struct {
	tenths atomic.Int64
	income int64
}

const (
	// extraCost is the price of an exchange.
	extraCost = 10
	// hedgeIncome and retryIncome are what one query adds to the allowances.
	hedgeIncome, retryIncome = 1, 3
	// savings is the most that is saved up: ten exchanges. A path that is silent is in doubt after
	// the first one, and leaving it costs nothing.
	savings = 10 * extraCost
)

func newAllowance(income int64) *allowance {
	a := &allowance{income: income}
	a.tenths.Store(savings)
	return a
}

func (a *allowance) earn() {
	if n := a.tenths.Load(); n < savings {
		a.tenths.CompareAndSwap(n, n+a.income) // one lost under contention does not matter
	}
}

func (a *allowance) spend() bool {
	for {
		n := a.tenths.Load()
		if n < extraCost {
			return false
		}
		if a.tenths.CompareAndSwap(n, n-extraCost) {
			return true
		}
	}
}
