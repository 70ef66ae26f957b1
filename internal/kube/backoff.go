package kube

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

// backoff holds the pauses between attempts. Each is spread between half and one and a half of its length,
// so that the nodes of a cluster do not come back to a server in one instant.
type backoff struct {
	first, most time.Duration // after a failure: first, then twice the one before, up to most
	// forbidden is the least pause after a 403, at first and at most: the right must be granted first, or is denied
	// on purpose.
	forbidden, forbiddenMost time.Duration
}

func defaultBackoff() backoff {
	return backoff{first: 250 * time.Millisecond, most: 30 * time.Second, forbidden: time.Minute, forbiddenMost: 10 * time.Minute}
}

// after is the pause after so many failures in a row, the last of which was err.
func (b backoff) after(failures int, err error) time.Duration {
	d := b.first
	for range failures - 1 {
		if d *= 2; d >= b.most {
			d = b.most
			break
		}
	}
	var s *StatusError
	if errors.As(err, &s) {
		if s.Code == http.StatusForbidden {
			least := b.forbidden
			for i := 1; i < failures && least < b.forbiddenMost; i++ {
				least = min(2*least, b.forbiddenMost)
			}
			d = max(d, least)
		}
		if s.RetryAfter > 0 {
			// No sooner than asked for: the spread is on top.
			return max(d, s.RetryAfter) + rand.N(d)
		}
	}
	return d/2 + rand.N(d)
}
