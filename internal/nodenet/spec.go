// Package nodenet keeps the node's side of a node-local DNS cache in the kernel: the interface that
// carries the local addresses, the rules that keep their queries out of connection tracking, and the
// fallback that sends queries to kube-dns while no localcache socket is open.
//
// The package is split along one line. Spec says what is wanted and Plan derives the rules from it;
// both are pure. Everything that touches the kernel stands behind Firewall (rules) and Link
// (interface and addresses), and Keeper holds the two true while the process lives.
//
// Kernel state belongs to an owner, the name of the interface: everything that is made carries it, so
// that a later process, of whatever version, finds and replaces or removes all of it.
package nodenet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Choice names the packet filter front end that a Spec asks for.
type Choice string

// The choices of the notrack property.
const (
	ChoiceAuto     Choice = "auto"     // what the node's own rules use
	ChoiceIPTables Choice = "iptables" // iptables-nft or iptables-legacy, whichever the node uses
	ChoiceNFTables Choice = "nftables" // one own nftables table, through netlink; needs no tool
	ChoiceOff      Choice = "off"      // no rules at all
)

// Choices lists the accepted values of Choice, for messages.
func Choices() []Choice { return []Choice{ChoiceAuto, ChoiceIPTables, ChoiceNFTables, ChoiceOff} }

// ExitPolicy says what becomes of interface and rules when the process ends in an orderly way.
type ExitPolicy string

// The values of the on_exit property.
const (
	ExitKeep   ExitPolicy = "keep"   // leave both in place: the fallback goes on answering
	ExitRemove ExitPolicy = "remove" // remove both, as node-cache does
)

// Defaults of a Spec.
const (
	DefaultPort  = 53
	DefaultCheck = 10 * time.Second
	// MinCheck bounds how often the rules are read back: below it the check itself would cost more
	// than the fault that it looks for.
	MinCheck = time.Second
)

// Spec is what one localcache process wants of the node's network.
type Spec struct {
	// Interface is the link that carries Addresses, and the owner of all state. At most 15 octets,
	// the kernel's IFNAMSIZ less the terminator.
	Interface string
	// ManageInterface is false where somebody else makes the interface and its addresses
	// (-setupinterface=false). Interface still names the owner of the rules.
	ManageInterface bool
	// Addresses are the local addresses that pods query, IPv4 and IPv6.
	Addresses []netip.Addr
	// Port is the DNS port on those addresses.
	Port uint16
	// Health are the addresses of the health endpoint. An unspecified address stands for each of
	// Addresses.
	Health []netip.AddrPort
	// Notrack chooses the front end, or switches all rules off.
	Notrack Choice
	// Fallback are the DNS servers to which the kernel sends queries while no localcache socket is
	// open. They must be endpoints: a packet is translated once, so that a Service IP would not be
	// translated again. They can change while the process runs; see Keeper.SetFallback.
	Fallback []netip.AddrPort
	// FallbackTCP are those for queries over TCP, where they differ; empty means those of Fallback.
	FallbackTCP []netip.AddrPort
	// KeepFallback: where there are none, the servers that are in force already stay, from before a reload or
	// from an earlier process, until Keeper.SetFallback names others.
	KeepFallback bool
	// Wildcard is true where a server block listens on the unspecified address. A socket bound to it
	// then counts as ours; else such sockets belong to somebody else and are not looked at.
	Wildcard bool
	// Check is the time between two readings of the rules.
	Check time.Duration
	// OnExit is what becomes of the state at the end.
	OnExit ExitPolicy
}

// Validate says what is wrong with s, all of it at once.
func (s Spec) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if err := checkInterfaceName(s.Interface); err != nil {
		errs = append(errs, err)
	}
	if len(s.Addresses) == 0 {
		fail("no local address: give -localip, bind to one, or name one with address")
	}
	for i, a := range s.Addresses {
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
			fail("address %s cannot be put on an interface", a)
		case slices.Contains(s.Addresses[:i], a):
			fail("address %s is named twice", a)
		}
	}
	if s.Port == 0 {
		fail("port 0 cannot be matched by a rule")
	}
	if !slices.Contains(Choices(), s.Notrack) {
		fail("notrack %q: accepted are %v", s.Notrack, Choices())
	}
	for _, servers := range [][]netip.AddrPort{s.Fallback, s.FallbackTCP} {
		for i, f := range servers {
			if wrong := s.wrongServer(f); wrong != "" {
				fail("fallback %s %s", f, wrong)
			} else if slices.Contains(servers[:i], f) {
				fail("fallback %s is named twice", f)
			}
		}
	}
	if s.hasFallback() && s.Notrack == ChoiceOff {
		fail("a fallback needs rules: it cannot go with notrack off")
	}
	if s.Check < MinCheck {
		fail("check %s is too short: the least is %s", s.Check, MinCheck)
	}
	if s.OnExit != ExitKeep && s.OnExit != ExitRemove {
		fail("on_exit %q: accepted are %s, %s", s.OnExit, ExitKeep, ExitRemove)
	}
	return errors.Join(errs...)
}

// wrongServer says why f cannot be a fallback; "" where it can.
func (s Spec) wrongServer(f netip.AddrPort) string {
	switch {
	case !f.Addr().IsValid() || f.Addr().IsUnspecified() || f.Addr().IsMulticast() || f.Port() == 0:
		return "is not the address of a server"
	case slices.Contains(s.Addresses, f.Addr()):
		return "is the local address itself: queries would turn in a circle"
	case f.Addr().IsLoopback():
		return "is a loopback address: the kernel does not forward pods' packets there"
	}
	return ""
}

func (s Spec) hasFallback() bool { return len(s.Fallback)+len(s.FallbackTCP) > 0 }

// WithFallback is s with other servers as its fallback: all of those that can be one, each once. It is for
// servers that nobody has written down, so that one that cannot be used is no reason to use none.
func (s Spec) WithFallback(udp, tcp []netip.AddrPort) Spec {
	can := func(servers []netip.AddrPort) []netip.AddrPort {
		var use []netip.AddrPort
		for _, f := range servers {
			if s.wrongServer(f) == "" && !slices.Contains(use, f) {
				use = append(use, f)
			}
		}
		return use
	}
	s.Fallback, s.FallbackTCP = can(udp), can(tcp)
	if slices.Equal(s.Fallback, s.FallbackTCP) {
		s.FallbackTCP = nil
	}
	return s
}

// checkInterfaceName applies the kernel's own rules (dev_valid_name in net/core/dev.c).
func checkInterfaceName(name string) error {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return fmt.Errorf("interface name %q: it must have 1 to 15 characters", name)
	}
	for _, c := range []byte(name) {
		if c == '/' || c == ':' || c <= ' ' || c > '~' {
			return fmt.Errorf("interface name %q: no spaces, slashes, colons or control characters", name)
		}
	}
	return nil
}
