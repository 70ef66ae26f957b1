package diag

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// handler is the outermost of a block's chain.
type handler struct {
	queries *observe.Queries
	next    plugin.Handler
}

// Name implements plugin.Handler.
func (*handler) Name() string { return directive }

// ServeDNS implements plugin.Handler. It does not call the next handler through plugin.NextOrFailure, which would
// wrap the writer to record the handler that writes: no code outside of the chain needs that.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (rcode int, err error) {
	if ctx.Value(insideKey{}) != nil {
		// A handler (dns64, template) looks up something for its own answer: the client asked once. The client waits
		// for these exchanges too.
		return h.next.ServeDNS(nested{ctx}, w, r)
	}
	rec := &record{writer: writer{ResponseWriter: w}, remote: w.RemoteAddr()}
	rec.writer.rec = rec
	rec.Context = ctx
	rec.begin(ctx, r)
	token := h.queries.Begin(&rec.query)
	rcode = dns.RcodeServerFailure // a panic, which the server answers so
	defer func() {
		rec.end(rcode)
		h.queries.End(token, &rec.query, &rec.trace)
	}()
	return h.next.ServeDNS(rec, &rec.writer, r)
}

// record is one query in progress. It is also the context that carries it: one allocation for both.
type record struct {
	context.Context
	trace  observe.Trace
	query  observe.Query
	start  time.Time // when the query was read
	remote net.Addr  // by identity
	writer writer
	name   [usualName]byte

	// Written by the chain's goroutine.
	came        bool // to a cache
	source      observe.Source
	known       bool // the source
	cacheWriter cacheWriter
}

const (
	// maxName is the longest domain name in wire format (RFC 1035, section 3.1).
	maxName = 255
	// usualName is room for nearly all names: a Service's name plus a search domain.
	usualName = 80
)

type (
	recordKey struct{}
	insideKey struct{} // of anything that a query started
)

// Value implements context.Context.
func (rec *record) Value(key any) any {
	switch key.(type) {
	case recordKey, insideKey:
		return rec
	case observe.TraceKey:
		return &rec.trace
	}
	return rec.Context.Value(key)
}

// recordOf is the record that ctx belongs to; nil for look-ups and refreshes.
func recordOf(ctx context.Context) *record {
	rec, _ := ctx.Value(recordKey{}).(*record)
	return rec
}

// nested is the context of work that belongs to a query and is not the query itself: its cache look-ups are not the
// client's.
type nested struct{ context.Context }

// Value implements context.Context.
func (c nested) Value(key any) any {
	if _, ok := key.(recordKey); ok {
		return nil
	}
	return c.Context.Value(key)
}

// begin records the question as received: handlers may change it.
func (rec *record) begin(ctx context.Context, r *dns.Msg) {
	q := &rec.query
	q.Client, q.Proto = client(rec.remote)
	q.ID = r.Id
	question := &r.Question[0]
	q.Type = question.Qtype
	name := rec.name[:0]
	if len(question.Name) > usualName-1 { // the wire format takes one octet more, or fewer if there are escapes
		name = make([]byte, 0, maxName+1)
	}
	q.Name = wireName(name, question.Name)
	if a := observe.ArrivalFrom(ctx); a != nil {
		q.Received, q.Queued, rec.start = a.Received, a.Queued, a.Read
		return
	}
	rec.start = time.Now()
	q.Received = rec.start.UnixNano()
}

// end records the answer as the client got it, and its source.
func (rec *record) end(rcode int) {
	q := &rec.query
	q.Duration = q.Queued + time.Since(rec.start)
	switch {
	case rec.writer.wrote:
		q.Rcode = rec.writer.rcode
	case !plugin.ClientWrite(rcode): // the server writes it
		q.Rcode = rcode
	default:
		q.Rcode = observe.NoReply
	}
	waited, asked := rec.trace.Waited()
	switch {
	case rec.known:
		q.Source = rec.source
	case asked:
		q.Source = observe.FromUpstream
	default:
		q.Source = observe.FromLocal
	}
	q.Upstream = min(waited, q.Duration)
}

// fromMemory notes where a cache has its reply from. The first one counts.
func (rec *record) fromMemory(stale bool) {
	if rec.known {
		return
	}
	rec.known, rec.source = true, observe.FromCache
	if stale {
		rec.source = observe.FromStale
	}
}

// writer notes the first reply.
type writer struct {
	dns.ResponseWriter
	rec   *record
	rcode int
	wrote bool
}

// RemoteAddr implements dns.ResponseWriter: it always returns the same value, by which afterCache recognizes the
// client.
func (w *writer) RemoteAddr() net.Addr { return w.rec.remote }

// WriteMsg implements dns.ResponseWriter.
func (w *writer) WriteMsg(m *dns.Msg) error {
	if !w.wrote && m != nil {
		w.wrote, w.rcode = true, m.Rcode
	}
	return w.ResponseWriter.WriteMsg(m)
}

// Write implements dns.ResponseWriter: a packed message, with its RCODE in the header (RFC 1035, section 4.1.1).
func (w *writer) Write(b []byte) (int, error) {
	if !w.wrote && len(b) > 3 {
		w.wrote, w.rcode = true, int(b[3]&0xf)
	}
	return w.ResponseWriter.Write(b)
}

// SetPlugin implements plugin.PluginTracker for a tracker around this writer.
func (w *writer) SetPlugin(name string) {
	if t, ok := w.ResponseWriter.(plugin.PluginTracker); ok {
		t.SetPlugin(name)
	}
}

// GetPlugin implements plugin.PluginTracker.
func (w *writer) GetPlugin() string {
	if t, ok := w.ResponseWriter.(plugin.PluginTracker); ok {
		return t.GetPlugin()
	}
	return ""
}

// client returns the address and transport of the client. DNS over TLS and HTTPS count as TCP, QUIC as UDP.
func client(a net.Addr) (netip.AddrPort, observe.Proto) {
	switch a := a.(type) {
	case *net.UDPAddr:
		return unmapped(a.AddrPort()), observe.UDP
	case *net.TCPAddr:
		return unmapped(a.AddrPort()), observe.TCP
	}
	return netip.AddrPort{}, observe.TCP
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// wireName appends a name in wire format and lower case (RFC 4343) to b, which has room for it. b stays empty for a
// malformed name: a name from an unpacked message is never malformed, so this concerns callers with names of their
// own.
func wireName(b []byte, name string) []byte {
	n, err := dns.PackDomainName(name, b[:cap(b)], 0, nil, false)
	if err != nil {
		return b
	}
	b = b[:n]
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}
