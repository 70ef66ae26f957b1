package upstream

import "sync/atomic"

// allowance bounds what is sent on top of the clients' questions while an upstream is merely slow: a
// hedge for every tenth question, and a few saved up for when an upstream falls silent. So in an
// outage of all upstreams, when everything is late, the load on them grows by a tenth and not to a
// multiple.
//
// What was given up on a path that answers others is asked again from an allowance of its own, of three
// for ten questions: as many datagrams may be lost on the way. All in all the load grows by less than a half.
type allowance struct {
	tenths atomic.Int64
	income int64
}

const (
	// extraCost is the price of an exchange.
	extraCost = 10
	// hedgeIncome and retryIncome are what a question earns.
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
