package nodenet

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	if err := testSpec().Validate(); err != nil {
		t.Fatalf("the valid one: %v", err)
	}
	addr, server := netip.MustParseAddr, netip.MustParseAddrPort
	for _, test := range []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"no name", func(s *Spec) { s.Interface = "" }, `interface name "": it must have 1 to 15 characters`},
		{"long name", func(s *Spec) { s.Interface = "a123456789012345" }, `interface name "a123456789012345": it must have 1 to 15 characters`},
		{"dot", func(s *Spec) { s.Interface = "." }, `interface name ".": it must have 1 to 15 characters`},
		{"slash", func(s *Spec) { s.Interface = "a/b" }, `interface name "a/b": no spaces, slashes, colons or control characters`},
		{"space", func(s *Spec) { s.Interface = "a b" }, `interface name "a b": no spaces, slashes, colons or control characters`},
		{"colon", func(s *Spec) { s.Interface = "a:b" }, `interface name "a:b": no spaces, slashes, colons or control characters`},
		{"no address", func(s *Spec) { s.Addresses = nil }, "no local address: give -localip, bind to one, or name one with address"},
		{"unspecified address", func(s *Spec) { s.Addresses[0] = addr("0.0.0.0") }, "address 0.0.0.0 cannot be put on an interface"},
		{"invalid address", func(s *Spec) { s.Addresses[0] = netip.Addr{} }, "address invalid IP cannot be put on an interface"},
		{"multicast address", func(s *Spec) { s.Addresses[0] = addr("224.0.0.1") }, "address 224.0.0.1 cannot be put on an interface"},
		{"zone", func(s *Spec) { s.Addresses[0] = addr("fe80::1%eth0") }, "address fe80::1%eth0 cannot be put on an interface"},
		{"address twice", func(s *Spec) { s.Addresses[1] = s.Addresses[0] }, "address 169.254.25.10 is named twice"},
		{"port", func(s *Spec) { s.Port = 0 }, "port 0 cannot be matched by a rule"},
		{"choice", func(s *Spec) { s.Notrack = "ipvs" }, `notrack "ipvs": accepted are [auto iptables nftables off]`},
		{"fallback without port", func(s *Spec) { s.Fallback[0] = server("10.0.0.1:0") }, "fallback 10.0.0.1:0 is not the address of a server"},
		{"fallback unspecified", func(s *Spec) { s.Fallback[0] = server("0.0.0.0:53") }, "fallback 0.0.0.0:53 is not the address of a server"},
		{"fallback multicast", func(s *Spec) { s.Fallback[0] = server("224.0.0.1:53") }, "fallback 224.0.0.1:53 is not the address of a server"},
		{"fallback to itself", func(s *Spec) { s.Fallback[0] = server("169.254.25.10:5353") }, "fallback 169.254.25.10:5353 is the local address itself: queries would turn in a circle"},
		{"fallback loopback", func(s *Spec) { s.Fallback[0] = server("127.0.0.53:53") }, "fallback 127.0.0.53:53 is a loopback address: the kernel does not forward pods' packets there"},
		{"fallback twice", func(s *Spec) { s.Fallback[1] = s.Fallback[0] }, "fallback 10.233.74.65:53 is named twice"},
		{"fallback off", func(s *Spec) { s.Notrack = ChoiceOff }, "a fallback needs rules: it cannot go with notrack off"},
		{"check", func(s *Spec) { s.Check = time.Millisecond }, "check 1ms is too short: the least is 1s"},
		{"exit", func(s *Spec) { s.OnExit = "stay" }, `on_exit "stay": accepted are keep, remove`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := testSpec()
			test.change(&s)
			err := s.Validate()
			if err == nil {
				t.Fatalf("valid, want %q", test.want)
			}
			if err.Error() != test.want {
				t.Errorf("got %q, want %q", err, test.want)
			}
		})
	}

	s := testSpec()
	s.Interface, s.Port, s.Check = "", 0, 0
	if err := s.Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three faults, got %v", err)
	}
}
