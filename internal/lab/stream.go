package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Stream is a steady stream of queries from a host.
type Stream struct {
	From      *Host
	Server    netip.Addr    // LocalIP where invalid
	Transport Transport     // UDP where empty
	Fresh     bool          // a socket (connection) for each query instead of one for all
	QPS       int           // 100 where 0, at most 20,000
	Timeout   time.Duration // a query without an answer for this long is lost; 0 means 2 s, at most 60 s
	Window    int           // queries under way at once, see Start; 100 where 0, at most 10,000
	Type      uint16        // A where 0

	// Name returns the name of the i-th query, from 0. Nil means names below AnyClusterName that repeat after 100
	// queries, so that most come from a cache.
	Name func(i int) string
	// Max ends the stream after so many queries; 100,000 where 0, at most 1,000,000.
	Max int
}

// Sample is the result of one query.
type Sample struct {
	Name     string
	Sent     time.Time
	Answered time.Time // zero: lost
	Rcode    int       // of the answer
	Resent   bool      // sent again after its TCP connection broke (RFC 7766 section 6.2.4)
	Err      error     // why it was lost where that is known; nil for mere silence
}

// Lost reports whether the query got no answer.
func (s Sample) Lost() bool { return s.Answered.IsZero() }

// Streaming is a stream under way.
type Streaming struct {
	Stream
	cancel context.CancelFunc
	ended  chan struct{}
	work   sync.WaitGroup

	mu      sync.Mutex
	samples []Sample
	pending map[uint16]int // query id to sample: the queries under way
	sock    net.Conn       // the one socket
	resends int            // consecutive connections without an answer
	err     error
}

// Start starts the stream. The caller must Stop it.
//
// The rate is an upper bound. On a machine that is too busy for it the stream falls behind instead of sending in
// bursts, and while Window queries are under way the next one waits: bursts would overflow socket buffers, which
// would look like losses. A lost query is under way until its timeout.
func (s Stream) Start() (*Streaming, error) {
	if !s.Server.IsValid() {
		s.Server = netip.MustParseAddr(LocalIP)
	}
	if s.Transport == "" {
		s.Transport = UDP
	}
	if s.QPS == 0 {
		s.QPS = 100
	}
	if s.Timeout == 0 {
		s.Timeout = 2 * time.Second
	}
	if s.Window == 0 {
		s.Window = 100
	}
	if s.Type == 0 {
		s.Type = dns.TypeA
	}
	if s.Max == 0 {
		s.Max = 100_000
	}
	if s.Name == nil {
		s.Name = func(i int) string { return fmt.Sprintf("q%d.%s", i%100, AnyClusterName) }
	}
	switch {
	case s.From == nil:
		return nil, errors.New("lab: a stream needs a host to come From")
	case s.QPS < 0 || s.QPS > 20_000:
		return nil, fmt.Errorf("lab: %d queries a second; 1 to 20,000 are possible", s.QPS)
	case s.Max < 0 || s.Max > 1_000_000:
		return nil, fmt.Errorf("lab: %d queries; 1 to 1,000,000 are possible", s.Max)
	case s.Timeout < 0 || s.Timeout > time.Minute:
		return nil, fmt.Errorf("lab: timeout %v; at most 1m is possible", s.Timeout)
	case s.Window < 0 || s.Window > 10_000:
		return nil, fmt.Errorf("lab: %d queries under way at once; 1 to 10,000 are possible", s.Window)
	}
	ctx, cancel := context.WithCancel(context.Background())
	st := &Streaming{Stream: s, cancel: cancel, ended: make(chan struct{}), pending: map[uint16]int{}}
	if !s.Fresh {
		if err := st.reconnect(nil); err != nil {
			cancel()
			return nil, err
		}
	}
	go st.run(ctx)
	return st, nil
}

// maxLate is how late a query may be so that the next one still keeps its own time: a few scheduling delays of a
// machine that is not too busy.
const maxLate = 10 * time.Millisecond

// run sends the queries at their times.
func (st *Streaming) run(ctx context.Context) {
	defer close(st.ended)
	interval := time.Second / time.Duration(st.QPS)
	due := time.Now()
	for i := range st.Max {
		if !sleepUntil(ctx, due) {
			return
		}
		for !st.mayStart() {
			if !sleepUntil(ctx, time.Now().Add(time.Millisecond)) {
				return
			}
		}
		if now := time.Now(); now.Sub(due) > maxLate {
			due = now
		}
		due = due.Add(interval)
		st.send(i)
	}
}

// sleepUntil reports false when ctx ended first.
func sleepUntil(ctx context.Context, t time.Time) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(wait):
		return true
	case <-ctx.Done():
		return false
	}
}

// mayStart reports whether there is room for another query. It forgets those under way for longer
// than the timeout; they are lost.
func (st *Streaming) mayStart() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.pending) < st.Window {
		return true
	}
	for id, i := range st.pending {
		if time.Since(st.samples[i].Sent) > st.Timeout {
			delete(st.pending, id)
		}
	}
	return len(st.pending) < st.Window
}

func (st *Streaming) send(i int) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(st.Name(i)), st.Type)
	q.Id = uint16(i)
	q.SetEdns0(maxUDPSize, false)
	packed, err := q.Pack()
	st.mu.Lock()
	st.samples = append(st.samples, Sample{Name: q.Question[0].Name, Sent: time.Now(), Err: err})
	if err == nil {
		st.pending[q.Id] = i
	}
	st.mu.Unlock()
	if err != nil {
		return
	}
	if st.Fresh {
		st.work.Go(func() { st.sendFresh(i, packed) })
		return
	}
	st.sendShared(i, packed)
}

// sendFresh asks one query from a socket of its own.
func (st *Streaming) sendFresh(i int, packed []byte) {
	server := netip.AddrPortFrom(st.Server, 53)
	rcode, err := func() (int, error) {
		conn, err := st.From.connectNow(st.Transport, server)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(st.Timeout)); err != nil {
			return 0, err
		}
		if _, err := conn.Write(st.framed(packed)); err != nil {
			return 0, err
		}
		m, err := st.read(conn)
		if err != nil {
			return 0, err
		}
		if m.Id != uint16(i) {
			return 0, fmt.Errorf("answer with id %d to query %d", m.Id, uint16(i))
		}
		return m.Rcode, nil
	}()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pending[uint16(i)] == i {
		delete(st.pending, uint16(i))
	}
	if err != nil {
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			st.samples[i].Err = err
		}
		return
	}
	st.samples[i].Answered, st.samples[i].Rcode = time.Now(), rcode
}

// sendShared asks one query from the socket that all share.
func (st *Streaming) sendShared(i int, packed []byte) {
	st.mu.Lock()
	sock := st.sock
	st.mu.Unlock()
	_, err := sock.Write(st.framed(packed))
	if errors.Is(err, unix.ECONNREFUSED) && st.Transport == UDP {
		// The kernel reports an earlier query's ICMP error once, in place of sending this one.
		_, err = sock.Write(packed)
	}
	if err != nil && st.Transport == UDP {
		st.mu.Lock()
		st.samples[i].Err = err
		st.mu.Unlock()
	}
	// The reader repairs a broken TCP connection: it sends the pending queries again.
}

func (st *Streaming) framed(packed []byte) []byte {
	if st.Transport == TCP {
		return frame(packed)
	}
	return packed
}

func (st *Streaming) read(conn net.Conn) (*dns.Msg, error) {
	if st.Transport == TCP {
		return readTCP(conn)
	}
	buf := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(buf)
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	return m, m.Unpack(buf[:n])
}

// readShared notes the answers that arrive on the shared socket until it is closed.
func (st *Streaming) readShared(sock net.Conn) {
	for {
		m, err := st.read(sock)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil && st.Transport == TCP {
			if err := st.reconnect(sock); err != nil {
				st.mu.Lock()
				st.err = err
				st.mu.Unlock()
			}
			return
		}
		if err != nil {
			continue // an ICMP error: the lost query shows up without it
		}
		st.mu.Lock()
		if i, ok := st.pending[m.Id]; ok {
			delete(st.pending, m.Id)
			st.samples[i].Answered, st.samples[i].Rcode = time.Now(), m.Rcode
			st.resends = 0
		}
		st.mu.Unlock()
	}
}

// reconnect opens the shared socket, and after the TCP connection broke sends the queries that wait for
// an answer again, as a client should.
func (st *Streaming) reconnect(broken net.Conn) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if broken != nil {
		_ = broken.Close() // it is broken, and the error is already known
		select {
		case <-st.ended:
			return nil
		default:
		}
		if st.resends++; st.resends > 100 {
			return errors.New("100 TCP connections in a row broke without an answer")
		}
		if st.resends > 1 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	sock, err := st.From.connectNow(st.Transport, netip.AddrPortFrom(st.Server, 53))
	if err != nil {
		return err
	}
	st.sock = sock
	for _, i := range st.pending {
		s := &st.samples[i]
		if time.Since(s.Sent) > st.Timeout {
			continue
		}
		q := new(dns.Msg).SetQuestion(s.Name, st.Type)
		q.Id = uint16(i)
		q.SetEdns0(maxUDPSize, false)
		packed, err := q.Pack()
		if err != nil {
			return err
		}
		s.Resent = true
		if _, err := sock.Write(frame(packed)); err != nil {
			break // broken again: the reader sees it
		}
	}
	st.work.Go(func() { st.readShared(sock) })
	return nil
}

// Sent is the number of queries sent so far.
func (st *Streaming) Sent() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.samples)
}

// Wait waits until n queries are sent, or ctx ends.
func (st *Streaming) Wait(ctx context.Context, n int) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for st.Sent() < n {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d queries sent: %w", st.Sent(), n, ctx.Err())
		case <-st.ended:
			if st.Sent() < n {
				return fmt.Errorf("the stream ended after %d queries, before the %d waited for", st.Sent(), n)
			}
		case <-tick.C:
		}
	}
	return nil
}

// Stop ends the sending, waits for the last answers (not longer than Timeout), and returns every sample in the order
// of sending. Its error concerns the stream itself, not lost queries.
func (st *Streaming) Stop() (Samples, error) {
	st.cancel()
	<-st.ended
	deadline := time.Now().Add(st.Timeout)
	for time.Now().Before(deadline) && st.waiting() {
		time.Sleep(time.Millisecond)
	}
	st.mu.Lock()
	if st.sock != nil {
		_ = st.sock.Close() // all answers are in
	}
	st.mu.Unlock()
	st.work.Wait()
	// An answer that arrives after the client's timeout counts as a loss.
	for i := range st.samples {
		if s := &st.samples[i]; !s.Lost() && s.Answered.Sub(s.Sent) > st.Timeout {
			s.Answered = time.Time{}
		}
	}
	return st.samples, st.err
}

// waiting reports whether a query may still be answered in time.
func (st *Streaming) waiting() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, i := range st.pending {
		if time.Since(st.samples[i].Sent) < st.Timeout {
			return true
		}
	}
	return false
}
