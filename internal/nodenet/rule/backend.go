package rule

import (
	"context"
	"errors"
	"net/netip"
)

// Backend puts rules into the kernel through one packet filter, for one owner. Its methods may be repeated. They
// never touch rules of other programs, except for node-cache's leftovers on the same addresses: Apply removes those
// because they would take precedence.
type Backend interface {
	// Name is the backend for people and metrics: iptables-nft, iptables-legacy, nftables.
	Name() string
	// SocketMatch reports whether rules for the addresses can match an open socket in this kernel, and if not, why.
	// It tries this in the kernel and leaves nothing behind.
	SocketMatch(ctx context.Context, addrs []netip.Addr) error
	// Apply makes rules the complete set of the owner's rules: it adds missing ones and removes surplus and duplicate
	// ones. At each moment a packet meets either the old or the new rules.
	Apply(ctx context.Context, rules []Rule) error
	// Check reads the rules back from the kernel and describes each difference in one line; an empty result means
	// that they are in place. It changes nothing.
	Check(ctx context.Context, rules []Rule) ([]string, error)
	// Fallback reads to which servers the owner's rules of the kind of like, a DNAT, lead.
	Fallback(ctx context.Context, like Rule) ([]netip.AddrPort, error)
	// Remove removes all that the owner has and names each thing removed.
	Remove(ctx context.Context) (removed []string, err error)
	// RemoveNodeCache removes every rule of node-cache, for any address, that this backend can reach. A running
	// node-cache puts its rules back.
	RemoveNodeCache(ctx context.Context) (removed []string, err error)
}

// ErrLocked is wrapped by errors of a Backend that could not get the xtables lock, or got it so late that no time was
// left for the rest; the latter also wraps the context's error.
var ErrLocked = errors.New("another program holds the xtables lock")

// Logger is the part of a CoreDNS plugin logger that this package writes to.
type Logger interface {
	Infof(format string, v ...any)
	Warningf(format string, v ...any)
	Errorf(format string, v ...any)
}
