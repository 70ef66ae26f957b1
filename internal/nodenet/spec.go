// Package nodenet maintains the node's side of a node-local DNS cache in the kernel: the interface that carries the
// local addresses, the rules that keep queries to them out of connection tracking, and the fallback that sends
// queries to kube-dns while no localcache socket is open.
//
// Spec describes the desired state, and Plan derives the rules from it; both are pure. The packages below touch the
// kernel: link (interface and addresses), iptables and nftables (rules), conntrack, process (other processes of the
// node) and sockets. Keeper brings them together and maintains the state while the process lives; Teardown removes
// it.
//
// Kernel state belongs to an owner, the name of the interface. Everything that localcache creates carries the owner's
// name, so that a later process of any version finds it and can replace or remove it.
package nodenet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Choice names the packet filter backend that a Spec asks for.
type Choice string

// The choices of the notrack property.
const (
	ChoiceAuto     Choice = "auto"     // the backend of the node's own rules
	ChoiceIPTables Choice = "iptables" // iptables-nft or iptables-legacy, whichever the node uses
	ChoiceNFTables Choice = "nftables" // one own nftables table, through netlink; needs no tool
	ChoiceOff      Choice = "off"      // no rules at all
)

// Choices lists the accepted values of Choice, for messages.
func Choices() []Choice { return []Choice{ChoiceAuto, ChoiceIPTables, ChoiceNFTables, ChoiceOff} }

// ExitPolicy says what happens to interface and rules when the process ends in an orderly way.
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
	// MinCheck is the least time between two checks of the rules: below it the check would cost more than the fault
	// that it finds.
	MinCheck = time.Second
)

// Spec is the state of the node's network that one localcache process wants.
type Spec struct {
	// Interface is the link that carries Addresses, and the owner of all state. At most 15 octets (the kernel's
	// IFNAMSIZ less the terminator).
	Interface string
	// ManageInterface is false if another program creates the interface and its addresses (-setupinterface=false).
	// Interface still names the owner of the rules.
	ManageInterface bool
	// Addresses are the local addresses that pods query, IPv4 and IPv6.
	Addresses []netip.Addr
	// Port is the DNS port on those addresses.
	Port uint16
	// Health lists the addresses of the health endpoint. An unspecified address stands for each of Addresses.
	Health []netip.AddrPort
	// Notrack chooses the backend, or switches all rules off.
	Notrack Choice
	// Fallback are the DNS servers to which the kernel sends queries while no localcache socket is
	// open. They must be endpoints: a packet is translated once, so that a Service IP would not be
	// translated again. They can change while the process runs; see Keeper.SetFallback.
	Fallback []netip.AddrPort
	// FallbackTCP lists the servers for TCP if they differ; empty means those of Fallback.
	FallbackTCP []netip.AddrPort
	// KeepFallback keeps the servers that are already in force, from before a reload or from an earlier process, if
	// the Spec names none, until Keeper.SetFallback names others.
	KeepFallback bool
	// Wildcard is true if a server block listens on the unspecified address. A socket bound to it then counts as
	// localcache's; otherwise such a socket belongs to another program and is ignored.
	Wildcard bool
	// Check is the time between two readings of the rules.
	Check time.Duration
	// OnExit says what happens to the state at the end.
	OnExit ExitPolicy
}

// Validate returns everything that is wrong with s, joined.
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

// wrongServer returns why f cannot be a fallback server; "" if it can.
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

// WithFallback returns s with other fallback servers: all valid ones, each once. The servers come from a watch and
// not from a configuration, so an invalid one is left out and the others are used.
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
