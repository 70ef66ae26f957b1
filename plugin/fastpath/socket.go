package fastpath

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/replay"
	"localcache.dev/localcache/internal/udpbatch"
	"localcache.dev/localcache/internal/wire"
)

const (
	// batchSize is how many datagrams are read at once. Above 32 a larger one gains little, and the hits of
	// a batch wait for its last.
	batchSize = 64
	// querySize is the room for a query: what miekg/dns has for one. No plain query is longer than 282.
	querySize = dns.MinMsgSize
	// readBuffer is what the kernel may keep in the socket's queue, in octets: some 5,000 queries, which is
	// what comes in 25 ms at 200,000 a second. Queries that have waited longer are asked again anyway.
	readBuffer = 4 << 20
	// grace is how long a stop waits for queries in flight: dnsserver's own patience.
	grace = 5 * time.Second
	// lastBatches is how many batches are read at a stop from the socket's queue: more than fit into it.
	lastBatches = 2 * readBuffer / 768 / batchSize
)

// socket is a UDP socket of CoreDNS as its server sees it: a net.PacketConn that gives it nothing to read, because all is
// answered here. Replies to what is unusual are written to it.
type socket struct {
	plugin   *Plugin
	instance *instance
	server   *dnsserver.Server
	stock    **dns.Server // what server serves us with, when it does
	address  string       // the server's, for labels
	udp      *net.UDPConn
	cookie   uint64
	store    *replay.Store
	decorate dns.DecorateWriter // of another plugin; nil: none
	queries  Recorder
	replies  *gatherer // to misses

	// The reader's, which is the goroutine that serves the socket and at the end the one that closes it.
	in    *udpbatch.Reader
	out   *udpbatch.Writer
	slab  []byte     // answers of the batch
	query wire.Query // the one that is looked at
	count counter
	full  int             // batches in a row
	told  []observe.Query // hits of the batch, for the recorder

	reading  sync.Mutex // held by who is the reader
	stopping atomic.Bool
	deadline atomic.Int64   // of the stop, in nanoseconds of clock
	flying   sync.WaitGroup // misses
	finished sync.Once
	closing  sync.Once
	closeErr error
}

func newSocket(in *instance, s *dnsserver.Server, stock **dns.Server, udp *net.UDPConn, sh *shared, decorate dns.DecorateWriter) (*socket, error) {
	p := in.plugin
	k := &socket{
		plugin: p, instance: in, server: s, stock: stock, address: s.Address(), udp: udp,
		store: sh.store, decorate: decorate, queries: p.options.Queries,
		slab:  make([]byte, 0, batchSize*wire.MaxAnswer/4),
		count: newCounter(p.metrics, sh.classes, s.Address()),
	}
	err := udpbatch.Probe(udp)
	if err != nil {
		return nil, err
	}
	k.in, err = udpbatch.NewReader(udp, udpbatch.Options{
		Batch: batchSize, Size: querySize, Local: udpbatch.Wildcard(udp), Timestamps: k.queries != nil,
	})
	if err != nil {
		return nil, err
	}
	if k.out, err = udpbatch.NewWriter(udp, batchSize); err != nil {
		return nil, err
	}
	if k.replies, err = newGatherer(udp, p.metrics.unsent.WithLabelValues(k.address)); err != nil {
		return nil, err
	}
	if k.cookie, err = udpbatch.Cookie(udp); err != nil {
		return nil, err
	}
	if _, err := udpbatch.RaiseReadBuffer(udp, readBuffer); err != nil {
		p.log.Warningf("%s: the receive buffer stays as it is: %v", k.address, err)
	}
	return k, nil
}

// epoch is where clock begins.
var epoch = time.Now()

// clock is nanoseconds since the process began, of the clock that cache uses too and that nobody sets.
func clock(t time.Time) int64 { return int64(t.Sub(epoch)) }

// ReadFrom implements net.PacketConn. It reads and answers queries, and returns at the end.
func (k *socket) ReadFrom([]byte) (int, net.Addr, error) {
	k.reading.Lock()
	defer k.reading.Unlock()
	for {
		if k.stopping.Load() {
			k.finish()
			return 0, nil, net.ErrClosed
		}
		err := k.in.Serve(k.batch)
		switch {
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, net.ErrClosed):
			return 0, nil, err
		default:
			// Memory is short, say. The server would give the socket up for good.
			k.plugin.metrics.socketErrors.WithLabelValues(k.address).Inc()
			time.Sleep(time.Millisecond)
		}
	}
}

// batch answers what it can of the n datagrams that were read and gives workers what it cannot. It reports whether
// reading may go on.
func (k *socket) batch(n int) bool {
	arrived := k.plugin.now()
	now := clock(arrived)
	missed := false
	for i := range n {
		payload := k.in.Payload(i)
		if len(payload) < headerSize {
			continue // as miekg/dns does
		}
		f := unusualForm
		switch {
		case k.in.Truncated(i):
		case k.query.Parse(payload):
			if e := k.store.Get(&k.query, now); e != nil && k.mayReplay(e, payload) {
				k.answer(i, e, now, arrived)
				continue
			}
			f = plainForm
		case wire.HasOptions(payload):
			f = optionsForm
		}
		missed = true
		k.dispatch(i, payload, f, now, arrived)
	}
	if len(k.count.hits) > 0 {
		k.flush(arrived)
	}
	if n == batchSize {
		k.full++
	} else {
		k.full = 0
	}
	// On a core that is busy with hits, those that work on misses and those that send something else have
	// to come to their turn. The scheduler would take this goroutine off after 10 ms only.
	if missed && n > 1 || k.full >= 4 {
		k.full = 0
		runtime.Gosched()
	}
	return !k.stopping.Load()
}

const headerSize = 12

// mayReplay is false for a compressed answer to a question with capital letters: CoreDNS compresses a name
// only onto one in the same letters, and might have sent more octets.
func (k *socket) mayReplay(e *replay.Entry, payload []byte) bool {
	return e.Class()&classCompressed == 0 || string(payload[headerSize:headerSize+len(k.query.Name())]) == string(k.query.Name())
}

// answer puts the answer to the i-th datagram, which k.query has read, into the batch to be sent.
func (k *socket) answer(i int, e *replay.Entry, now int64, arrived time.Time) {
	if cap(k.slab)-len(k.slab) < e.Len() {
		k.flush(arrived)
	}
	begin := len(k.slab)
	k.slab = e.Append(k.slab, &k.query, now)
	peer := k.in.Peer(i)
	k.out.Add(k.slab[begin:], peer)
	k.count.add(e.Class(), &k.query, len(k.in.Payload(i)), peer.IPv6())
	if k.queries != nil {
		k.tell(peer, e, arrived)
	}
}

// flush sends the answers of the batch, counts them, and hands them to the recorder.
func (k *socket) flush(arrived time.Time) {
	failed, err := k.out.Flush()
	if err != nil || failed > 0 {
		k.plugin.metrics.unsent.WithLabelValues(k.address).Add(float64(failed))
	}
	k.slab = k.slab[:0]
	took := time.Since(arrived)
	k.count.flush(took)
	if k.queries == nil {
		return
	}
	for i := range k.told {
		q := &k.told[i]
		q.Duration = q.Queued + took
	}
	k.queries.RecordAll(k.told)
	k.told = k.told[:0]
}

// dispatch gives a miss to a worker, or drops it. A client that gets no answer asks again, in seconds; one
// that gets REFUSED gives the name up or asks the next server at once, and a flood of refusals costs as
// much as one of hits.
func (k *socket) dispatch(i int, payload []byte, f form, now int64, arrived time.Time) {
	peer := k.in.Peer(i)
	client := peer.AddrPort()
	k.flying.Add(1)
	w, refused := k.instance.pool.take(client.Addr())
	if refused != admitted {
		k.flying.Done()
		k.refused(refused, client, payload, peer, arrived)
		return
	}
	w.form, w.size = f, copy(w.payload[:], payload)
	if f == plainForm {
		w.query = k.query
	}
	w.work <- &exchange{socket: k, peer: *peer, received: now, arrival: arrival(peer, arrived), own: &w.scratch}
}

// WriteTo implements net.PacketConn. CoreDNS's server writes to the addresses that ReadFrom gave it.
func (k *socket) WriteTo(b []byte, a net.Addr) (int, error) {
	to, ok := a.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: a, Err: net.InvalidAddrError("no UDP address")}
	}
	n, _, err := k.udp.WriteMsgUDP(b, controlOf(to), to)
	if err != nil {
		k.plugin.metrics.unsent.WithLabelValues(k.address).Inc()
	}
	return n, err
}

// LocalAddr implements net.PacketConn.
func (k *socket) LocalAddr() net.Addr { return k.udp.LocalAddr() }

// SetReadDeadline implements net.PacketConn. miekg/dns sets one before each read, which ReadFrom needs not, and
// one in 1970 to end the reading. The former may be over when it comes here, where the process did not run for a while
// (SIGSTOP, a freezer); but none is from before the process began.
func (k *socket) SetReadDeadline(t time.Time) error {
	if t.IsZero() || !t.Before(epoch) {
		return nil
	}
	k.stop()
	return k.udp.SetReadDeadline(t)
}

// stop has the reader come to its end.
func (k *socket) stop() {
	k.deadline.CompareAndSwap(0, clock(time.Now().Add(grace)))
	k.stopping.Store(true)
}

// SetDeadline implements net.PacketConn.
func (k *socket) SetDeadline(t time.Time) error {
	return errors.Join(k.SetReadDeadline(t), k.SetWriteDeadline(t))
}

// SetWriteDeadline implements net.PacketConn.
func (k *socket) SetWriteDeadline(t time.Time) error { return k.udp.SetWriteDeadline(t) }

// Close implements net.PacketConn. The server calls it when the handlers that it started itself are done, or
// when it does not want to wait for them any more: ours get as much time.
func (k *socket) Close() error {
	k.closing.Do(func() {
		k.stop()
		// A reader that waits comes back; there is one only where the server was not stopped first.
		_ = k.udp.SetReadDeadline(epoch)
		k.reading.Lock()
		k.finish()
		k.reading.Unlock()
		k.plugin.part(k)
		k.closeErr = k.udp.Close()
	})
	return k.closeErr
}

// finish answers what lies in the socket's queue, and waits for the misses. At a reload the next instance reads from
// the same queue meanwhile.
func (k *socket) finish() {
	k.finished.Do(func() {
		for range lastBatches {
			n, err := k.in.Poll()
			if n == 0 || err != nil {
				break
			}
			k.batch(n)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			k.flying.Wait()
		}()
		select {
		case <-done:
		case <-time.After(time.Duration(k.deadline.Load() - clock(time.Now()))):
		}
	})
}

// remoteAddr is the address that a query came from as plugins know it: a *net.UDPAddr and nothing else, for some
// look at the type. What a reply needs besides lies behind the octets of its IP, within the
// slice's capacity: only controlOf looks there.
func remoteAddr(p *udpbatch.Peer) *net.UDPAddr {
	from, control := p.AddrPort(), p.Control()
	ip := from.Addr().AsSlice()
	buf := make([]byte, 0, len(ip)+controlHeader+len(control))
	buf = append(buf, ip...)
	if len(control) > 0 {
		buf = append(binary.LittleEndian.AppendUint32(buf, controlMagic), control...)
	}
	return &net.UDPAddr{IP: buf[:len(ip):cap(buf)], Port: int(from.Port()), Zone: from.Addr().Zone()}
}

// controlHeader tells a control message from whatever else may lie behind an IP.
const (
	controlHeader = 4
	controlMagic  = 0x9e3779b9
)

// controlOf is the control message of an address that remoteAddr made; nil where there is none.
func controlOf(a *net.UDPAddr) []byte {
	behind := a.IP[len(a.IP):cap(a.IP)]
	if len(behind) <= controlHeader || binary.LittleEndian.Uint32(behind) != controlMagic {
		return nil
	}
	return behind[controlHeader:]
}
