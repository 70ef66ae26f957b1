package cache

import (
	"errors"
	"fmt"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
)

// What holds where a stanza says nothing. They are CoreDNS v1.15's.
const (
	defaultCapacity = 10000
	defaultMinTTL   = dnsutil.MinimalDefaultTTL // 5 s
	defaultMaxTTL   = dnsutil.MaximumDefaultTTL // 1 h; half of it for negative answers
	defaultServFail = defaultMinTTL
	defaultStale    = time.Hour
	defaultGap      = time.Minute
	defaultPercent  = 10
)

const (
	// maxServFail is how long a server failure may be kept (RFC 2308, section 7.1).
	maxServFail = 5 * time.Minute
	// maxRecheck is how long a refresh that failed may be left at that (RFC 8767, section 5).
	maxRecheck = 5 * time.Minute
)

// Config is one stanza.
type Config struct {
	Zones []string

	Success Kept
	Denial  Kept
	// ServFail is how long a server failure is kept; 0: it is not.
	ServFail time.Duration

	Prefetch Prefetch
	Stale    Stale

	// KeepTTL has a reply say the TTL that its answer was stored with.
	KeepTTL bool
}

// Kept is how answers of one kind are kept.
type Kept struct {
	Capacity       int // answers, in 256 shards of at least 4
	MinTTL, MaxTTL time.Duration
	Except         []string // zones whose answers are not
}

// Prefetch is when an answer is fetched before its TTL is over.
type Prefetch struct {
	Amount     int           // of uses; 0: never
	Gap        time.Duration // two uses that are further apart begin the count anew
	Percentage int           // of the TTL, the last part, in which it is fetched
}

// Stale is what becomes of answers past their TTL (RFC 8767).
type Stale struct {
	For            time.Duration // they are given for so long; 0: never
	Verify         bool          // an upstream is asked first, and not afterwards
	VerifyTimeout  time.Duration // for so long; 0: as long as it takes
	TTL            time.Duration // of the replies
	Recheck        time.Duration // after a refresh that failed there is none for so long
	PreferPositive bool          // before negative answers that are newer
}

// refreshesOnce tells whether stale answers are refreshed one at a time also where an upstream is asked first.
func (s *Stale) refreshesOnce() bool { return s.Recheck > 0 || s.VerifyTimeout > 0 }

func newConfig() *Config {
	return &Config{
		Success:  Kept{Capacity: defaultCapacity, MinTTL: defaultMinTTL, MaxTTL: defaultMaxTTL},
		Denial:   Kept{Capacity: defaultCapacity, MinTTL: defaultMinTTL, MaxTTL: defaultMaxTTL / 2},
		ServFail: defaultServFail,
		Prefetch: Prefetch{Gap: defaultGap, Percentage: defaultPercent},
	}
}

// Validate says what is wrong with one kind's numbers.
func (k *Kept) Validate() error {
	switch {
	case k.Capacity < 0:
		return fmt.Errorf("the capacity %d is negative", k.Capacity)
	case k.MaxTTL <= 0: // 0 is kept for later use
		return fmt.Errorf("cache TTL can not be zero or negative: %d", k.MaxTTL/time.Second)
	case k.MinTTL < 0:
		return fmt.Errorf("cache min TTL can not be negative: %d", k.MinTTL/time.Second)
	}
	return nil
}

// Validate says what is wrong with the property prefetch.
func (p *Prefetch) Validate() error {
	switch {
	case p.Amount < 0:
		return fmt.Errorf("prefetch amount should be positive: %d", p.Amount)
	case p.Percentage < 10 || p.Percentage > 90:
		return fmt.Errorf("percentage should fall in range [10, 90]: %d", p.Percentage)
	}
	return nil
}

// Validate says what is wrong with the property serve_stale.
func (s *Stale) Validate() error {
	switch {
	case s.For < 0:
		return errors.New("invalid negative duration for serve_stale")
	case s.VerifyTimeout < 0:
		return errors.New("invalid negative timeout for serve_stale verify")
	case s.TTL < 0:
		return errors.New("invalid negative response TTL for serve_stale")
	case s.TTL%time.Second != 0:
		return errors.New("serve_stale response TTL must be a whole number of seconds")
	case s.TTL/time.Second > 1<<32-1:
		return errors.New("serve_stale response TTL exceeds the DNS TTL range")
	case s.Recheck < 0:
		return errors.New("invalid negative failure recheck for serve_stale")
	case s.Recheck > maxRecheck:
		return errors.New("serve_stale failure recheck cannot exceed 5 minutes")
	}
	return nil
}
