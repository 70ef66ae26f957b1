// Package answers is what a cache tells other directives about the answers that it has: how long one was to live, since
// when it is there, and how often it was asked for. plugin/cache is such a cache; plugin/fastpath, which answers in its
// name, and plugin/diag, which tells fresh answers from stale ones, ask it. They do not import one another, and meet
// here. It knows no types of CoreDNS.
package answers

import (
	"math"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Cache is a cache of answers. It is safe for concurrent use.
type Cache interface {
	// Options are what the Corefile says. They do not change once the server runs.
	Options() Options
	// Find returns what is there for a question, fresh or stale, of the negative answers (RFC 2308) or of the others, as
	// the cache gives it; nil where there is nothing.
	Find(q Question, negative bool) *Answer
	// Counters are what the cache counts a server's hits in, of its negative answers or of the others. Who answers in its
	// name counts there too.
	Counters(server string, negative bool) (requests, hits Counter)
}

// Counter is one of Prometheus's.
type Counter interface {
	Inc()
	Add(float64)
}

// Told is a dns.ResponseWriter that is told where what is written to it next comes from: the memory of the cache that it was
// given to, and whether that was stale. It is not told of what came from behind the cache.
type Told interface {
	FromMemory(stale bool)
}

// Options are what others need to know of a cache's.
type Options struct {
	KeepTTL bool // answers keep their TTL while they are there

	Prefetch   int           // uses that it takes for an answer to be fetched before its TTL is over; 0: none is
	Gap        time.Duration // two uses that are further apart begin the count anew
	Percentage int           // of the TTL, the last part, in which it is fetched
}

// Question is what an answer is found under.
type Question struct {
	Name        string // in lower case and presentation form, with the dot at its end
	Type, Class uint16
	DO, CD      bool
}

// QuestionOf is what r asks; without a question, the root and no type.
func QuestionOf(r *dns.Msg) Question {
	q := Question{Name: ".", CD: r.CheckingDisabled}
	if len(r.Question) > 0 {
		asked := &r.Question[0]
		q.Name, q.Type, q.Class = strings.ToLower(dns.Name(asked.Name).String()), asked.Qtype, asked.Qclass
	}
	if opt := r.IsEdns0(); opt != nil {
		q.DO = opt.Do()
	}
	return q
}

// Answer is what a cache knows of one answer. TTL and Stored do not change.
type Answer struct {
	TTL    uint32    // that it was stored with, in seconds
	Stored time.Time // by the cache's clock

	mu   sync.Mutex
	uses int32
	last time.Duration // since it was stored
}

// Left is what is left of the TTL, in seconds; 0 and less: it is stale.
func (a *Answer) Left(now time.Time) int64 {
	return int64(a.TTL) - int64(now.Sub(a.Stored).Seconds())
}

// Use counts one use, and returns how many there were without a longer gap between two of them.
func (a *Answer) Use(gap time.Duration, now time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := now.Sub(a.Stored)
	if a.last < at-gap {
		a.uses = 0
	}
	a.last = at
	a.uses = min(a.uses, math.MaxInt32-1) + 1
	return int(a.uses)
}

// Uses is what Use returned last.
func (a *Answer) Uses() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int(a.uses)
}

// SetUses has the count go on from there.
func (a *Answer) SetUses(n int, last time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uses, a.last = int32(min(n, math.MaxInt32)), last.Sub(a.Stored)
}
