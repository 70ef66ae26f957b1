package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"
)

// lookupTimeout bounds the look-up of one host name at start and at each reload. A reload holds no
// query up while it waits, but it should not wait for ever.
const lookupTimeout = 10 * time.Second

// expand turns the TO arguments into upstreams in their order. Files are read and host names
// looked up now: what they say later counts from the next reload on, as in CoreDNS.
func (p *Plugin) expand(to []string, resolvers []netip.AddrPort) ([]Upstream, error) {
	var list []Upstream
	for _, arg := range to {
		ups, err := p.parseTo(arg, resolvers)
		if err != nil {
			return nil, err
		}
		list = append(list, ups...)
	}
	return list, nil
}

// distinct are the upstreams of c, each once: two are the same if they are asked in the same way, however they were
// written. Which name a certificate has to show is known when the whole stanza is.
func (c *Config) distinct() []Upstream {
	var list []Upstream
	seen := map[Upstream]bool{}
	for _, u := range c.Upstreams {
		key := u
		key.ServerName = strings.ToLower(c.serverName(u))
		if !seen[key] {
			seen[key] = true
			list = append(list, u)
		}
	}
	return list
}

// parseTo reads one TO: [SCHEME://]IP[%NAME][:PORT], a file in the format of resolv.conf(5), or a host
// name with an optional port. A file that is empty gives no upstream and no error.
func (p *Plugin) parseTo(arg string, resolvers []netip.AddrPort) ([]Upstream, error) {
	scheme, rest, found := strings.Cut(arg, "://")
	if !found {
		scheme, rest = transport.DNS, arg
	}
	if rest == "" {
		return nil, fmt.Errorf("invalid address: %q", arg)
	}
	var trans Transport
	port := uint16(53)
	switch scheme {
	case transport.DNS:
		trans = TransportDNS
	case transport.TLS:
		trans, port = TransportTLS, 853
	case transport.HTTPS, transport.QUIC:
		return nil, fmt.Errorf("'%s' is CoreDNS's but not built into localcache's forward: %s; most servers that speak it answer tls:// too", scheme, arg)
	default:
		return nil, fmt.Errorf("'%s' is not supported as a destination protocol in forward: %s; accepted are dns:// and tls://", scheme, arg)
	}

	host, zone, portText := splitTo(rest)
	if portText != "" {
		n, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("invalid port %q in %q: accepted are 1 to 65535", portText, arg)
		}
		port = uint16(n)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []Upstream{newUpstream(trans, ip, zone, port)}, nil
	}

	// A file comes before a host name, so that resolv.conf in the working directory is what it says.
	servers, fileErr := readResolvConf(rest)
	if fileErr == nil {
		if trans == TransportTLS {
			return nil, fmt.Errorf("%s: a file lists plain DNS servers, so tls:// before it would be without effect; write tls:// before each address", arg)
		}
		return servers, nil
	}
	// What holds a slash can only have been meant as a file, and a file that could be opened is one.
	var notOpened *fs.PathError
	if strings.Contains(rest, "/") || !errors.As(fileErr, &notOpened) || errors.Is(fileErr, fs.ErrPermission) {
		return nil, fmt.Errorf("not an IP address or file %q: %w", rest, fileErr)
	}
	if _, ok := dns.IsDomainName(host); !ok || host == "" || strings.ContainsAny(host, "[]") {
		return nil, fmt.Errorf("not an IP address, file, or valid domain: %q", arg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	ips, err := p.lookup(ctx, dns.Fqdn(host), resolvers)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve %q: %w", host, err)
	}
	var list []Upstream
	for _, ip := range ips {
		list = append(list, newUpstream(trans, ip, zone, port))
	}
	return list, nil
}

// splitTo takes an address apart. What follows a % is a server's name, or the zone of a link-local
// address; it ends at the port.
func splitTo(s string) (host, zone, port string) {
	if i := strings.LastIndexByte(s, '%'); i >= 0 {
		host, zone = s[:i], s[i+1:]
		if j := strings.LastIndexByte(zone, ':'); j >= 0 {
			zone, port = zone[:j], zone[j+1:]
		}
		return strings.TrimPrefix(host, "["), strings.TrimSuffix(zone, "]"), port
	}
	if h, p, err := net.SplitHostPort(s); err == nil {
		return h, "", p
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), "", ""
}

// newUpstream keeps the zone of a link-local address, without which the kernel cannot tell the link,
// and drops it from others, where CoreDNS ignores it. The unspecified address is this host, as in
// resolv.conf(5) and to connect(2).
func newUpstream(trans Transport, ip netip.Addr, zone string, port uint16) Upstream {
	u := Upstream{Transport: trans}
	ip = ip.Unmap()
	switch ip {
	case netip.IPv4Unspecified():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		ip = netip.IPv6Loopback()
	}
	switch {
	case trans == TransportTLS:
		u.ServerName = zone
	case zone != "" && ip.Is6() && ip.IsLinkLocalUnicast():
		ip = ip.WithZone(zone)
	}
	u.Addr = netip.AddrPortFrom(ip, port)
	return u
}

// readResolvConf reads the nameserver lines of a file.
func readResolvConf(name string) ([]Upstream, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	var list []Upstream
	for _, s := range conf.Servers {
		host, zone, _ := strings.Cut(s, "%")
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, fmt.Errorf("nameserver %q is not an IP address", s)
		}
		list = append(list, newUpstream(TransportDNS, ip, zone, 53))
	}
	return list, nil
}

// systemLookup asks the resolver of the machine.
func systemLookup(ctx context.Context, name string) ([]netip.Addr, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, err
}

// lookup finds the addresses of a host name, which is fully qualified: no search list applies. Of
// several resolvers the first that knows an address decides.
func (p *Plugin) lookup(ctx context.Context, name string, resolvers []netip.AddrPort) ([]netip.Addr, error) {
	if len(resolvers) == 0 {
		ips, err := p.systemLookup(ctx, name)
		if err == nil && len(ips) == 0 {
			err = errors.New("no addresses found")
		}
		return ips, err
	}
	var errs []error
	for _, r := range resolvers {
		var ips []netip.Addr
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			found, err := askAddresses(ctx, r, name, qtype)
			if err != nil {
				errs = append(errs, err)
				break
			}
			ips = append(ips, found...)
		}
		if len(ips) > 0 {
			return ips, nil
		}
	}
	if len(errs) == 0 {
		return nil, errors.New("no addresses found")
	}
	return nil, errors.Join(errs...)
}

// askAddresses asks one resolver over UDP, and over TCP where the answer does not fit.
func askAddresses(ctx context.Context, resolver netip.AddrPort, name string, qtype uint16) ([]netip.Addr, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	client := dns.Client{Timeout: 2 * time.Second}
	r, _, err := client.ExchangeContext(ctx, m, resolver.String())
	if err == nil && r.Truncated {
		client.Net = "tcp"
		r, _, err = client.ExchangeContext(ctx, m, resolver.String())
	}
	if err != nil {
		return nil, fmt.Errorf("resolver %s: %w", resolver, err)
	}
	var ips []netip.Addr
	for _, rr := range r.Answer {
		var raw net.IP
		switch rr := rr.(type) {
		case *dns.A:
			raw = rr.A
		case *dns.AAAA:
			raw = rr.AAAA
		}
		if ip, ok := netip.AddrFromSlice(raw); ok {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips, nil
}
