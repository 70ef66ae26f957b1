package forward

import (
	"context"
	"errors"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// failure is why a question could not be answered. It travels as an error through the chain, as in
// CoreDNS, so that cache can serve a stale answer instead and errors can log it; explain turns what is
// left of it at the other end into a reply.
type failure struct {
	code  uint16 // RFC 8914, section 4
	text  string // names the upstreams; within what a 512-byte reply holds
	cause error
}

func (f *failure) Error() string { return f.cause.Error() }
func (f *failure) Unwrap() error { return f.cause }

// explainer is the outermost handler of a block that forwards. CoreDNS's server writes the reply for an
// rcode that comes back unwritten and knows nothing of the error beside it; the explainer writes it first
// and adds an Extended DNS Error. forward itself cannot: what it writes, cache stores, and a stored
// SERVFAIL would hide the stale answer that cache still has.
type explainer struct{ next plugin.Handler }

// explainFailures puts an explainer in front of a block's chain. The directives before forward are in
// the chain by now.
func explainFailures(block *dnsserver.Config) {
	block.Plugin = append([]plugin.Plugin{func(next plugin.Handler) plugin.Handler {
		return explainer{next: next}
	}}, block.Plugin...)
}

// Name implements plugin.Handler.
func (explainer) Name() string { return "forward_explain" }

// ServeDNS implements plugin.Handler.
func (e explainer) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	// Not by plugin.NextOrFailure: it would wrap w to note who writes, and find nobody outside of the
	// chain who wants to know.
	rcode, err := e.next.ServeDNS(ctx, w, r)
	var f *failure
	if plugin.ClientWrite(rcode) || !errors.As(err, &f) {
		return rcode, err
	}
	opt := r.IsEdns0()
	if opt == nil {
		return rcode, err
	}
	reply := new(dns.Msg).SetRcode(r, rcode)
	reply.SetEdns0(opt.UDPSize(), opt.Do())
	reply.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: f.code, ExtraText: f.text}}
	if writeErr := w.WriteMsg(reply); writeErr != nil {
		return rcode, errors.Join(err, writeErr)
	}
	return dns.RcodeSuccess, err
}
