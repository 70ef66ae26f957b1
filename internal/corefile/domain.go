package corefile

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
)

// checkDomain returns an error unless s is a valid zone name: at most 253 octets in labels of 1 to 63 (RFC 1035,
// section 3.1), of letters, digits, "-" within, and "_", which stub domains of Active Directory have (_msdcs). A
// final dot is accepted.
func checkDomain(s string) error {
	if s == "" {
		return errors.New("the domain is empty")
	}
	if s == "." {
		return errors.New("the domain is the root")
	}
	name := strings.TrimSuffix(s, ".")
	if len(name) > 253 {
		return fmt.Errorf("the domain has %d octets, at most 253 are allowed", len(name))
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("is an IP address, not a domain")
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return errors.New("the domain has an empty label")
		case len(label) > 63:
			return fmt.Errorf("label %q has %d octets, at most 63 are allowed", label, len(label))
		case label[0] == '-' || label[len(label)-1] == '-':
			return fmt.Errorf("label %q begins or ends with a hyphen", label)
		}
		for _, r := range label {
			if r > unicode.MaxASCII || !isWord(byte(r)) && r != '-' {
				return fmt.Errorf(`label %q has %q; letters, digits, "-" and "_" are allowed`, label, string(r))
			}
		}
	}
	return nil
}

// parseServer reads a name server as "IP" or "IP:port" ("[IP]:port" for IPv6). The default port is 53. Zones of
// link-local addresses are not accepted, as in kube-dns.
func parseServer(s string) (netip.AddrPort, error) {
	server, err := netip.ParseAddrPort(s)
	if err != nil {
		var ip netip.Addr
		ip, err = netip.ParseAddr(s)
		server = netip.AddrPortFrom(ip, DefaultPort)
	}
	switch {
	case err != nil || server.Addr().Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("server %q is not an IP address or IP:port ([IP]:port for IPv6)", s)
	case server.Port() == 0:
		return netip.AddrPort{}, fmt.Errorf("server %q has port 0", s)
	case server.Addr().IsUnspecified() || server.Addr().IsMulticast():
		return netip.AddrPort{}, fmt.Errorf("server %q is not the address of a server", s)
	}
	return server, nil
}

// formatServer is the shortest form of a server that forward reads.
func formatServer(server netip.AddrPort) string {
	if server.Port() == DefaultPort {
		return server.Addr().String()
	}
	return server.String()
}
