package rule

import (
	"context"
	"errors"
	"net/netip"
)

// Backend puts rules into the kernel through one front end, for one owner. Its methods are safe to
// repeat; none of them touches what another program made, but for the leftovers of node-cache on the
// same addresses, which Apply removes because they would win over ours.
type Backend interface {
	// Name is the front end for people and metrics: iptables-nft, iptables-legacy, nftables.
	Name() string
	// SocketMatch reports whether the front end can ask for an open socket here in rules for the
	// addresses, and if not, why. It tries it out in the kernel and leaves nothing behind.
	SocketMatch(ctx context.Context, addrs []netip.Addr) error
	// Apply makes rules the whole of what the owner has: what is missing is added, what is superfluous
	// or doubled is removed. At each moment a packet meets either the old rules or the new.
	Apply(ctx context.Context, rules []Rule) error
	// Check reads the kernel back and names each difference from rules in a line; none means that
	// they are in place. It changes nothing.
	Check(ctx context.Context, rules []Rule) ([]string, error)
	// Fallback reads to which servers the owner's rules of the kind of like, a DNAT, lead.
	Fallback(ctx context.Context, like Rule) ([]netip.AddrPort, error)
	// Remove removes all that the owner has and names each thing removed.
	Remove(ctx context.Context) (removed []string, err error)
	// RemoveNodeCache removes every rule of node-cache, of whatever address, as far as this front end
	// can reach it. A node-cache that is alive puts its rules back.
	RemoveNodeCache(ctx context.Context) (removed []string, err error)
}

// ErrLocked is wrapped by errors of a Firewall that waited for the xtables lock in vain, or so long that
// there was no time left for the rest; the latter wraps the context's error as well.
var ErrLocked = errors.New("another program holds the xtables lock")

// Logger is the part of a CoreDNS plugin logger that this package writes to.
type Logger interface {
	Infof(format string, v ...any)
	Warningf(format string, v ...any)
	Errorf(format string, v ...any)
}
