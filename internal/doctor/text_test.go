package doctor

import (
	"testing"
	"time"
)

func TestNumbersInWords(t *testing.T) {
	for got, want := range map[string]string{
		grouped(0): "0", grouped(999): "999", grouped(1000): "1,000", grouped(1234567): "1,234,567",
		share(0, 0): "0 %", share(0, 5): "0 %", share(5, 5): "100 %", share(1, 100000): "under 0.1 %", share(99999, 100000): "99.9 %", share(34, 100): "34 %", share(25, 1000): "2.5 %",
		rate(0.04): "0.0 queries/s", rate(9.94): "9.9 queries/s", rate(9.96): "10 queries/s", rate(1240.4): "1,240 queries/s",
		count(1, "query"): "1 query", count(2, "query"): "2 queries", count(1, "exchange"): "1 exchange", count(2000, "exchange"): "2,000 exchanges",
		brief(20 * time.Millisecond): "20 ms", brief(1500 * time.Millisecond): "1.5 s", brief(12 * time.Second): "12 s",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
