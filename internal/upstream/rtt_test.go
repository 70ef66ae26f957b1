package upstream

import (
	"testing"
	"time"
)

// TestEstimate follows the example of RFC 6298: the first sample, then smoothing by 1/8 and 1/4.
func TestEstimate(t *testing.T) {
	var e estimate
	now := time.Now()
	if e.late() != lateInitial || e.smoothed() != 0 {
		t.Errorf("without a sample: late after %s, smoothed %s", e.late(), e.smoothed())
	}
	e.sample(80*time.Millisecond, now)
	if e.srtt != 80*time.Millisecond || e.rttvar != 40*time.Millisecond || e.late() != 240*time.Millisecond {
		t.Errorf("after 80 ms: %s, %s, late after %s", e.srtt, e.rttvar, e.late())
	}
	e.sample(40*time.Millisecond, now)
	if e.srtt != 75*time.Millisecond || e.rttvar != 40*time.Millisecond {
		t.Errorf("after 40 ms: %s, %s", e.srtt, e.rttvar)
	}
	for range 200 {
		e.sample(time.Millisecond, now)
	}
	if e.late() != lateFloor {
		t.Errorf("1 ms away: late after %s, want %s", e.late(), lateFloor)
	}
	for range 200 {
		e.sample(5*time.Second, now)
	}
	if e.late() != lateCeiling {
		t.Errorf("5 s away: late after %s, want %s", e.late(), lateCeiling)
	}
}

// TestBase: the least round trip does not grow with waiting, but is forgotten after a while.
func TestBase(t *testing.T) {
	var e estimate
	now := time.Now()
	if _, known := e.base(); known {
		t.Error("a base without a sample")
	}
	e.sample(time.Millisecond, now)
	for i := range 9 {
		e.sample(100*time.Millisecond, now.Add(time.Duration(i)*time.Second))
	}
	if d, _ := e.base(); d != time.Millisecond {
		t.Errorf("base %s, want 1 ms", d)
	}
	for i := range 40 {
		e.sample(50*time.Millisecond, now.Add(time.Duration(i)*time.Second))
	}
	if d, _ := e.base(); d != 50*time.Millisecond {
		t.Errorf("base %s after 40 s of 50 ms", d)
	}
	var heir estimate
	heir.inherit(&e)
	if heir.late() != e.late() {
		t.Error("the heir is late at another time")
	}
}

func TestAllowance(t *testing.T) {
	a := newAllowance(hedgeIncome)
	n := 0
	for a.spend() {
		n++
	}
	if n != savings/extraCost {
		t.Errorf("%d hedges were saved up, want %d", n, savings/extraCost)
	}
	for range 1000 {
		a.earn()
		if a.spend() {
			n++
		}
	}
	if n -= savings / extraCost; n != 100 {
		t.Errorf("%d hedges for 1000 questions, want a tenth", n)
	}
	for range 10000 {
		a.earn()
	}
	if a.tenths.Load() > savings {
		t.Errorf("%d tenths are saved up", a.tenths.Load())
	}
}
