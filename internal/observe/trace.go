package observe

import (
	"context"
	"slices"
	"sync"
	"time"
)

// MaxSteps is how many exchanges a Trace holds: the three attempts of a question, and those that the protocol
// requires.
const MaxSteps = 6

// Step is one exchange in the story of a query.
type Step struct {
	Upstream string        `json:"upstream"` // "IP:port"
	Start    time.Time     `json:"start"`    // zero if unknown
	Proto    Proto         `json:"proto"`
	Outcome  Outcome       `json:"outcome"`
	Rcode    int           `json:"rcode"`
	Duration time.Duration `json:"durationNanoseconds"`
	Hedge    bool          `json:"hedge,omitempty"`  // sent while an earlier one was waiting
	Reused   bool          `json:"reused,omitempty"` // on a connection that had carried another one
	Shared   bool          `json:"shared,omitempty"` // made for another client's question
	// Overtaken is true if another exchange answered first, so that its own end is unknown. Outcome is Timeout then.
	Overtaken bool   `json:"overtaken,omitempty"`
	Err       string `json:"error,omitempty"`
}

// Trace collects the exchanges of one query. The server of the query puts it into its context with WithTrace, the
// code that exchanges adds to it, and Queries.End reads it. Later additions, for example by a refresh that outlives
// the query, are ignored. A Trace is used for one query only: a pool would mix the late exchanges of one query into
// another. The zero value is ready to use.
type Trace struct {
	mu    sync.Mutex
	ended bool
	n     int // added; those beyond MaxSteps were lost
	first Step
	more  []Step // nearly all queries have one exchange
	wait  time.Duration
}

// Add notes an exchange. It is safe for concurrent use; on a nil Trace it does nothing.
func (t *Trace) Add(s Step) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	switch {
	case t.n == 0:
		t.first = s
	case t.n < MaxSteps:
		t.more = append(t.more, s)
	}
	t.n++
}

// Wait adds d to the time that the query spent waiting for upstreams, which is not the sum of its
// exchanges: those overlap, and a query may join one that is under way. On a nil Trace it does nothing.
func (t *Trace) Wait(d time.Duration) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.wait += max(d, 0)
	}
}

// Waited is the time that the query spent waiting for upstreams so far, and whether any exchange was
// made or waited for: then its answer is a miss.
func (t *Trace) Waited() (d time.Duration, asked bool) {
	if t == nil {
		return 0, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wait, t.n > 0 || t.wait > 0
}

// end closes the trace.
func (t *Trace) end() {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
}

// copyTo copies what was added to steps. It is called after end, when nothing changes any more.
func (t *Trace) copyTo(steps *[MaxSteps]Step) (n, lost int) {
	if t == nil || t.n == 0 {
		return 0, 0
	}
	steps[0] = t.first
	return 1 + copy(steps[1:], t.more), max(0, t.n-MaxSteps)
}

// failed reports whether an exchange brought no answer. It is called after end.
func (t *Trace) failed() bool {
	if t == nil || t.n == 0 {
		return false
	}
	bad := func(s Step) bool { return !s.Outcome.Answer() && !s.Overtaken }
	return bad(t.first) || slices.ContainsFunc(t.more, bad)
}

// WithoutTrace returns ctx without its Trace, for work that a query starts and does not wait for.
func WithoutTrace(ctx context.Context) context.Context {
	if TraceFrom(ctx) == nil {
		return ctx
	}
	return WithTrace(ctx, nil)
}

// TraceKey is the key of a context's *Trace.
type TraceKey struct{}

// WithTrace returns a context that carries t. A context type whose Value returns it saves an allocation.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, TraceKey{}, t)
}

// TraceFrom returns the Trace that ctx carries; nil if there is none.
func TraceFrom(ctx context.Context) *Trace {
	t, _ := ctx.Value(TraceKey{}).(*Trace)
	return t
}
