package setup

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// listening holds what a Corefile says, outside the setup directive, about the sockets that will be open. It is read
// from the Corefile's text because the rules must be planned before any other directive is executed, and because a
// start by flags has no setup directive.
type listening struct {
	bound    []netip.Addr     // addresses that DNS blocks on the port are bound to
	wildcard bool             // a DNS block on the port is bound to the unspecified address
	health   []netip.AddrPort // where the health endpoint listens; unspecified for all addresses
}

// defaultHealth is the default address of CoreDNS's health directive (plugin/health).
const defaultHealth = ":8080"

// readListening reads the blocks of in that serve plain DNS on port.
func readListening(in caddy.Input, port uint16) (listening, error) {
	blocks, err := caddyfile.Parse(in.Path(), bytes.NewReader(in.Body()), nil)
	if err != nil {
		return listening{}, err
	}
	var l listening
	for _, b := range blocks {
		if !servesDNS(b.Keys, port) {
			continue
		}
		binds, ok := b.Tokens["bind"]
		if !ok {
			l.wildcard = true
		}
		for d := caddyfile.NewDispenserTokens(in.Path(), binds); d.Next(); {
			for _, arg := range d.RemainingArgs() {
				l.addBind(arg)
			}
			for d.NextBlock() {
				// The block of bind holds exceptions by interface or address. They are not bound, and listing them
				// here does no harm.
				d.RemainingArgs()
			}
		}
	}
	for _, b := range blocks {
		for d := caddyfile.NewDispenserTokens(in.Path(), b.Tokens["health"]); d.Next(); {
			addr := defaultHealth
			if args := d.RemainingArgs(); len(args) > 0 {
				addr = args[0]
			}
			for d.NextBlock() {
				d.RemainingArgs()
			}
			if err := l.addHealth(addr); err != nil {
				return l, fmt.Errorf("%s:%d: health %s: %w", d.File(), d.Line(), addr, err)
			}
		}
	}
	return l, nil
}

// servesDNS reports whether one of a block's keys is a zone served over plain DNS on port.
func servesDNS(keys []string, port uint16) bool {
	for _, k := range keys {
		trans, rest := parse.Transport(k)
		if trans != transport.DNS {
			continue
		}
		_, p, err := plugin.SplitHostPort(rest)
		if err != nil {
			continue // CoreDNS itself reports a key that it cannot read
		}
		if p == "" || p == strconv.Itoa(int(port)) {
			return true
		}
	}
	return false
}

// addBind records one argument of bind: an address, or an interface that stands for its addresses.
func (l *listening) addBind(arg string) {
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(arg); err == nil {
		addrs = []netip.Addr{a.Unmap()}
	} else if ifi, err := net.InterfaceByName(arg); err == nil {
		addrs = addressesOf(ifi)
	}
	for _, a := range addrs {
		switch {
		case a.IsUnspecified():
			l.wildcard = true
		case !slices.Contains(l.bound, a):
			l.bound = append(l.bound, a)
		}
	}
}

func (l *listening) addHealth(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("port %q is not a number below 65536", port)
	}
	addr, known := netip.IPv4Unspecified(), true
	if host != "" {
		addr, known = literal(host)
	}
	if !known {
		return nil // a host name: the health plugin looks it up when it listens
	}
	h := netip.AddrPortFrom(addr.Unmap(), uint16(p))
	if !slices.Contains(l.health, h) {
		l.health = append(l.health, h)
	}
	return nil
}

// literal reads an address that is written out.
func literal(host string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(host)
	return a, err == nil
}

// linkOf returns the name of the interface that carries a; "" if there is none.
func linkOf(a netip.Addr) string {
	ifis, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for i := range ifis {
		if slices.Contains(addressesOf(&ifis[i]), a) {
			return ifis[i].Name
		}
	}
	return ""
}

func addressesOf(ifi *net.Interface) []netip.Addr {
	nets, err := ifi.Addrs()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.String()); err == nil {
			addrs = append(addrs, p.Addr().Unmap())
		}
	}
	return addrs
}
