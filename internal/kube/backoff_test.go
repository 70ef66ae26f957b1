package kube

import (
	"errors"
	"testing"
	"time"
)

// TestBackoffForbidden checks that a server that denies a right is asked less and less often.
func TestBackoffForbidden(t *testing.T) {
	b := defaultBackoff()
	forbidden, other := &StatusError{Code: 403}, errors.New("connection refused")
	for _, c := range []struct {
		failures  int
		err       error
		low, high time.Duration
	}{
		{1, other, 125 * time.Millisecond, 375 * time.Millisecond},
		{100, other, 15 * time.Second, 45 * time.Second},
		{1, forbidden, 30 * time.Second, 90 * time.Second},
		{2, forbidden, time.Minute, 3 * time.Minute},
		{5, forbidden, 5 * time.Minute, 15 * time.Minute},
		{1 << 30, forbidden, 5 * time.Minute, 15 * time.Minute},
		{1, &StatusError{Code: 403, RetryAfter: time.Hour}, time.Hour, time.Hour + time.Minute},
	} {
		for range 100 {
			if d := b.after(c.failures, c.err); d < c.low || d > c.high {
				t.Fatalf("after %d failures, the last %v: %s, want %s to %s", c.failures, c.err, d, c.low, c.high)
			}
		}
	}
}
