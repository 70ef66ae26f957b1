package fastpath

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/udpbatch"
	"localcache.dev/localcache/internal/wire"
)

// exchange is one query on its way through the chain. It is the context and the dns.ResponseWriter of the
// query, and what plugins may hold on to after its end, so that it is not used again.
type exchange struct {
	socket   *socket
	peer     udpbatch.Peer
	received int64 // by clock
	arrival  observe.Arrival

	mu  sync.Mutex
	own *scratch // nil when it has ended

	req      dns.Msg
	question [1]dns.Question // of req, where it is a plain query
	remote   net.UDPAddr
	writer   dns.Writer

	// Written by the handlers' goroutine.
	block *block // whose cache it came to
	told  told   // what that cache writes to
	fresh bool   // that is from the cache's memory, and not stale

	missed atomic.Bool // the cache did not have it, or has it fetched anew
	class  uint32      // of the reply; 0: it is not to be learnt
	pass   int64       // from when on hits are for the chain again; 0: never
	uses   int         // how many replays are counted for cache; 0: none
}

// scratch is what a worker has for the query that it works on, which is most of what a query needs.
type scratch struct {
	form    form
	query   wire.Query // of a plain query; else it is not to be used, and nothing learnt
	size    int
	payload [querySize]byte
}

// form is what a query looks like, and by that whose it is to unpack.
type form int

const (
	plainForm   form = iota // ours (internal/wire)
	optionsForm             // the library's: it is plain but for its OPT record
	unusualForm             // the library's server's
)

// end takes away what belongs to the worker. Whoever writes a reply after it has returned from the chain can still do so.
func (x *exchange) end() {
	x.mu.Lock()
	x.own = nil
	x.mu.Unlock()
}

// serve has the chain answer the query, as dnsserver and miekg/dns do.
func (x *exchange) serve() {
	k := x.socket
	if x.own.form == unusualForm {
		x.serveUnusual()
		return
	}
	if k.decorate == nil {
		defer x.end()
	} else { // it may write when it likes
		own := *x.own
		x.own = &own
	}
	client := x.peer.AddrPort()
	from := client.Addr()
	x.remote = net.UDPAddr{IP: from.AsSlice(), Port: int(client.Port()), Zone: from.Zone()}
	x.writer = dns.Writer(rawWriter{x})
	if k.decorate != nil {
		x.writer = k.decorate(x.writer)
	}
	if x.own.form == plainForm && x.unpack(&x.own.query) {
		// as most are
	} else if err := x.req.Unpack(x.own.payload[:x.own.size]); err != nil {
		x.req.SetRcodeFormatError(&x.req)
		x.req.Ns, x.req.Answer, x.req.Extra = nil, nil, nil
		_ = x.WriteMsg(&x.req) // as miekg/dns: there is nobody to tell
		return
	}
	x.credit()
	k.server.ServeDNS(x, x, &x.req)
}

// Deadline implements context.Context: like dnsserver's own, this one has none.
func (*exchange) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (*exchange) Done() <-chan struct{} { return nil }

// Err implements context.Context.
func (*exchange) Err() error { return nil }

// Value implements context.Context, with what dnsserver's contexts have and what only the socket knows.
func (x *exchange) Value(key any) any {
	switch key.(type) {
	case dnsserver.Key:
		return x.socket.server
	case dnsserver.LoopKey:
		return 0
	case exchangeKey:
		return x
	case observe.ArrivalKey:
		return &x.arrival
	}
	return nil
}

// LocalAddr implements dns.ResponseWriter.
func (x *exchange) LocalAddr() net.Addr { return x.socket.udp.LocalAddr() }

// RemoteAddr implements dns.ResponseWriter.
func (x *exchange) RemoteAddr() net.Addr { return &x.remote }

// buffers are for packing. What is longer than most replies goes back too: Go frees them in time.
var buffers = sync.Pool{New: func() any { b := make([]byte, dns.DefaultMsgSize); return &b }}

// WriteMsg implements dns.ResponseWriter.
func (x *exchange) WriteMsg(m *dns.Msg) error {
	var signed []byte
	if t := m.IsTsig(); t != nil {
		var err error
		if signed, _, err = dns.TsigGenerate(m, x.socket.server.TsigSecret[t.Hdr.Name], "", false); err != nil {
			return err
		}
		_, err = x.writer.Write(signed)
		return err
	}
	x.classify(m)
	if x.socket.decorate != nil { // which may keep what it is given
		data, err := m.Pack()
		if err != nil {
			return err
		}
		_, err = x.writer.Write(data)
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	data, err := m.PackBuffer(*buf)
	if err != nil {
		return err
	}
	_, err = x.Write(data)
	return err
}

// Write implements dns.ResponseWriter: it sends a packed reply.
func (x *exchange) Write(data []byte) (int, error) {
	if err := x.socket.replies.send(data, &x.peer, x.socket.instance.pool.crowded()); err != nil {
		return 0, err
	}
	x.learn(data)
	return len(data), nil
}

// rawWriter is what a decorator is put around, as miekg/dns does.
type rawWriter struct{ *exchange }

// Close implements dns.ResponseWriter.
func (*exchange) Close() error { return nil }

// TsigStatus implements dns.ResponseWriter: a plain query has no signature.
func (*exchange) TsigStatus() error { return nil }

// TsigTimersOnly implements dns.ResponseWriter.
func (*exchange) TsigTimersOnly(bool) {}

// Hijack implements dns.ResponseWriter.
func (*exchange) Hijack() {}
