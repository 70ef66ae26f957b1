// Package load sends DNS queries over UDP as fast as they are answered, or evenly paced, and reports the result of
// each. It runs on the caller's thread, many datagrams to a system call, so that it costs little compared with the
// server.
//
// A paced run does not wait for a slow server: the latency of a query counts from the time at which it was due, and a
// query that could not even be sent is lost.
package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Config describes one run.
type Config struct {
	Server netip.AddrPort // IPv4
	Source Source

	// Window is how many queries may be unanswered at a time, over all sockets.
	Window  int
	Sockets int     // each is a client with its own port; Window/Sockets is at most 256
	Rate    float64 // queries a second; 0 for as fast as answers come

	Warm    time.Duration // time before the measurement
	Length  time.Duration // time of the measurement; 0 means until the source is exhausted
	Timeout time.Duration // after which a query is lost

	// Retry repeats a query that is lost, refused or answered with SERVFAIL, up to Retry times.
	Retry int
	// Spin polls the sockets without sleeping. It is for a core that no other program needs.
	Spin bool
	// Edge, if set, is called at the start and the end of the measurement. It should be quick.
	Edge func()
}

// Result holds the results of the queries. Answered counts answers that arrived between the edges; the other counts
// are of queries that were due between them.
type Result struct {
	Between  time.Duration // from edge to edge
	Answered uint64        // answers between the edges, by which the server's CPU time is divided
	Sent     uint64        // queries that were due
	Lost     uint64        // of these, not answered within Timeout, or never sent
	Wrong    uint64        // of these, answered with another rcode or number of records than expected
	Rcodes   [16]uint64    // of these, by rcode
	Stray    uint64        // datagrams that belong to no query
	Latency  Histogram     // of these; a lost one counts until it was given up
}

const (
	// batch is how many datagrams are received at once from one socket.
	batch = 32
	// maxSlots is the number of values of a byte in a query's ID.
	maxSlots = 256
	// lookForLost is the time between two searches for lost queries.
	lookForLost = 10 * time.Millisecond
	// longestSleep bounds a wait for answers, so that lost queries and the end are noticed.
	longestSleep = time.Millisecond
	// maxBurst is how many due queries are sent before answers are read again.
	maxBurst = 256
)

// runner is a run in progress.
type runner struct {
	cfg     Config
	pace    Pace
	clients []*client
	started time.Time
	res     Result

	polled    []unix.PollFd
	due       uint64 // of a paced run: queries sent so far
	next      int    // the client that sends the next one
	waiting   int    // queries without an answer
	counting  bool
	exhausted bool // the source is exhausted
}

// Run sends and receives until the configured end or until the context ends, which is an error.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	slots := cfg.Window / max(cfg.Sockets, 1)
	if cfg.Sockets < 1 || slots < 1 || slots > maxSlots || cfg.Timeout <= 0 {
		return nil, fmt.Errorf("load: window %d over %d sockets, timeout %v: 1 to %d queries a socket and a timeout are needed", cfg.Window, cfg.Sockets, cfg.Timeout, maxSlots)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The kernel may wake a sleeper 50 µs late by default. An error leaves it so.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)

	r := &runner{cfg: cfg, pace: Pace{Rate: cfg.Rate}}
	for range cfg.Sockets {
		c, err := newClient(cfg.Server, slots)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.clients = append(r.clients, c)
		r.polled = append(r.polled, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
	}
	r.started = time.Now()
	err := r.run(ctx)
	return &r.res, errors.Join(err, r.close())
}

func (r *runner) close() error {
	var errs []error
	for _, c := range r.clients {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

func (r *runner) now() time.Duration { return time.Since(r.started) }

func (r *runner) run(ctx context.Context) error {
	end := r.cfg.Warm + r.cfg.Length
	if r.cfg.Length == 0 {
		end = 1 << 62
	}
	var searched, edge time.Duration
	for ctx.Err() == nil {
		now := r.now()
		if !r.counting && now >= r.cfg.Warm {
			r.begin()
			edge, now = r.now(), r.now()
		}
		if now >= end || r.exhausted && r.waiting == 0 {
			if r.cfg.Edge != nil {
				r.cfg.Edge()
			}
			r.res.Between = r.now() - edge
			return r.drain(ctx, end)
		}
		r.send(now)
		got, err := r.receive()
		if err != nil {
			return err
		}
		if now = r.now(); now-searched > lookForLost {
			searched = now
			r.expire(now)
		}
		if got == 0 && !r.cfg.Spin {
			if err := r.sleep(now); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// begin starts the measurement.
func (r *runner) begin() {
	r.counting = true
	r.res = Result{}
	if r.cfg.Edge != nil {
		r.cfg.Edge()
	}
}

// drain sends queries that were due before the end and could not be sent yet, and waits for the answers, to know how
// many are lost. They do not count as Answered, because the edge is past.
func (r *runner) drain(ctx context.Context, end time.Duration) error {
	answered := r.res.Answered
	paced := r.cfg.Rate > 0 && r.cfg.Length > 0
	if !paced {
		r.exhausted = true
	}
	for ctx.Err() == nil {
		if paced && !r.exhausted {
			r.send(end - 1)
			left := r.pace.Count(end-1) - r.due
			if now := r.now(); left == 0 || now > end+r.cfg.Timeout {
				r.exhausted = true
				r.res.Sent += left
				r.res.Lost += left
				for i := range left {
					r.res.Latency.Add(now - r.pace.Due(r.due+i))
				}
			}
		}
		if r.exhausted && r.waiting == 0 {
			break
		}
		got, err := r.receive()
		if err != nil {
			return err
		}
		r.expire(r.now())
		if got == 0 {
			if err := r.sleep(r.now()); err != nil {
				return err
			}
		}
	}
	r.res.Answered = answered
	return ctx.Err()
}

// send sends due queries, as far as there is room.
func (r *runner) send(now time.Duration) {
	if r.exhausted {
		return
	}
	if r.cfg.Rate == 0 {
		for _, c := range r.clients {
			for !r.exhausted && c.hasRoom() {
				r.ask(c, now, now)
			}
			c.flush()
		}
		return
	}
	count := r.pace.Count(now)
	for burst := 0; r.due < count && burst < maxBurst && !r.exhausted; burst++ {
		c := r.roomy()
		if c == nil {
			return // the server is a whole window behind; queries stay due
		}
		r.ask(c, r.pace.Due(r.due), now)
		r.due++
		c.flush()
	}
}

// roomy returns the next client with room; nil if there is none.
func (r *runner) roomy() *client {
	for range r.clients {
		c := r.clients[r.next]
		r.next = (r.next + 1) % len(r.clients)
		if c.hasRoom() {
			return c
		}
	}
	return nil
}

// ask queues one query.
func (r *runner) ask(c *client, due, now time.Duration) {
	if !c.ask(r.cfg.Source, due, now, r.counting) {
		r.exhausted = true
		return
	}
	r.waiting++
	if r.counting {
		r.res.Sent++
	}
}

// sleep waits for an answer, or for the time of the next query.
func (r *runner) sleep(now time.Duration) error {
	d := longestSleep
	if r.cfg.Rate > 0 && !r.exhausted {
		// An overdue query waits for room, which comes with an answer.
		if next := r.pace.Due(r.due) - now; next > 0 {
			d = min(d, next)
		}
	}
	ts := unix.NsecToTimespec(int64(d))
	if _, err := unix.Ppoll(r.polled, &ts, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("load: wait for answers: %w", err)
	}
	return nil
}
